"""JEPA encoders under stable-baselines3, and its policies as experts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

pytest.importorskip("stable_baselines3")

from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO, SAC

from envs.goal_tasks import GoalTask
from envs.manipulation.rollout import demonstrate
from envs.two_rooms import TwoRooms
from policies.rollouts import EpisodeBudget, rollout
from policies.sb3 import JEPAFeatures, SB3Agent, WithSB3Expert, observation_encoder
from tests.envs.manipulation.toy import ToyReach
from worldmodel.jepa_dynamics import DynamicsModel, GoalCode
from worldmodel.nn.patch_map import ConvPredictor, PatchMap


def world_model() -> DynamicsModel:
    torch.manual_seed(0)
    return DynamicsModel(
        encoder=PatchMap(image_size=(65, 65), in_channels=2, embed_dim=4),
        predictor=ConvPredictor(4, 2, hidden=4),
        action_scale=torch.ones(2),
        goal_code=GoalCode(4 * 13 * 13, 8),
    )


def policy_kwargs(encoder: nn.Module, **options: Any) -> dict[str, Any]:
    return {
        "features_extractor_class": JEPAFeatures,
        "features_extractor_kwargs": {"encoder": encoder, **options},
    }


def task(**options: Any) -> GoalTask:
    return GoalTask(TwoRooms(layout=(32.0, 32.0)), **{"max_steps": 12, **options})


def test_the_task_keeps_gymnasiums_contract() -> None:
    check_env(task(), skip_render_check=True)


def test_rewards_sum_to_the_way_made_and_success_ends() -> None:
    env = task(max_steps=300, scale=5.0)
    _, info = env.reset(seed=3)
    began, total, steps, ended = info["distance"], 0.0, 0, False
    while not ended and steps < 300:
        path = info["goal_state"] - info["state"]
        action = (path / max(1.0, np.linalg.norm(path))).astype(np.float32)
        _, reward, ended, late, info = env.step(action)
        total, steps = total + reward, steps + 1
        assert late == (not ended and steps == 300)
    assert total == pytest.approx((began - info["distance"]) / 5.0 + info["is_success"])
    assert ended == info["is_success"]


def test_the_same_seed_is_the_same_episode_and_problems_are_few() -> None:
    one, other = task(problems=1), task(problems=1)
    a, b = one.reset(seed=1)[0], other.reset(seed=2)[0]
    assert np.array_equal(a["goal"], b["goal"])
    assert np.array_equal(task().reset(seed=5)[0]["goal"], task().reset(seed=5)[0]["goal"])
    with pytest.raises(ValueError, match="must be positive"):
        task(max_steps=0)


def test_features_are_the_codes_of_observation_and_goal() -> None:
    model = world_model().eval()
    encoder = observation_encoder(model)
    space = task().observation_space
    features = JEPAFeatures(space, encoder=encoder)
    assert features.features_dim == 16
    seen = {key: torch.rand(3, 2, 65, 65) for key in ("goal", "observation")}
    codes = [model.goal_code(model.encode(seen[key][:, None])[:, 0]) for key in space.spaces]
    torch.testing.assert_close(features(seen), torch.cat(codes, dim=1))
    assert torch.equal(features(dict(reversed(seen.items()))), features(seen))


@pytest.mark.parametrize("algorithm", [PPO, SAC])
@pytest.mark.parametrize(("frozen", "frozen_before"), [(True, False), (False, False), (False, True)])
def test_learning_leaves_a_frozen_encoder_bit_identical(
    algorithm: Any, frozen: bool, frozen_before: bool, tmp_path: Path
) -> None:
    encoder = observation_encoder(world_model()).requires_grad_(not frozen_before)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    few = {"n_steps": 16} if algorithm is PPO else {"learning_starts": 8, "buffer_size": 64}
    model = algorithm(
        "MultiInputPolicy", task(), batch_size=8, seed=0, device="cpu",
        policy_kwargs=policy_kwargs(encoder, frozen=frozen), **few,
    )  # fmt: skip
    model.learn(24)
    policy = model.policy
    extractor = policy.features_extractor if algorithm is PPO else policy.actor.features_extractor
    after = extractor.encoder.state_dict()
    same = [torch.equal(before[name], after[name]) for name in before]
    assert all(same) == frozen
    assert all(torch.equal(a, b) for a, b in zip(before.values(), encoder.state_dict().values(), strict=True))
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model", device="cpu")
    seen, _ = task().reset(seed=0)
    assert np.array_equal(
        again.predict(seen, deterministic=True)[0], model.predict(seen, deterministic=True)[0]
    )


@pytest.mark.parametrize("frozen", [True, False])
def test_probabilities_are_the_same_before_an_update_and_in_it(frozen: bool) -> None:
    kwargs = policy_kwargs(observation_encoder(world_model()), frozen=frozen)
    policy = PPO("MultiInputPolicy", task(), n_steps=16, device="cpu", policy_kwargs=kwargs).policy
    seen = {key: torch.randint(0, 256, (8, 2, 65, 65), dtype=torch.uint8) for key in ("goal", "observation")}
    policy.set_training_mode(False)
    actions, _, acted = policy(seen)
    policy.set_training_mode(True)
    torch.testing.assert_close(policy.evaluate_actions(seen, actions)[1], acted)


def test_an_agent_acts_as_the_model_does_in_the_task() -> None:
    model = PPO(
        "MultiInputPolicy", task(), n_steps=16, seed=0, device="cpu",
        policy_kwargs=policy_kwargs(observation_encoder(world_model())),
    )  # fmt: skip
    env = task(max_steps=5, split="selection")
    problem = env.env.problem(3, "selection")
    seen, _ = env.reset(options={"problem": problem})
    path, late = [], False
    while not late:
        seen, _, _, late, info = env.step(model.predict(seen, deterministic=True)[0])
        path.append(info["state"])
    (episode,) = rollout(
        SB3Agent(model), envs=[TwoRooms(layout=(32.0, 32.0))], problems=[problem],
        budget=EpisodeBudget(env_steps=5),
    )  # fmt: skip
    np.testing.assert_allclose(episode.path[1:], path, atol=1e-4)


def test_other_entries_are_flattened_and_errors_name_the_fix() -> None:
    image, vector = spaces.Box(0, 255, (2, 65, 65), np.uint8), spaces.Box(-1, 1, (3,), np.float32)
    encoder = observation_encoder(world_model())
    mixed = JEPAFeatures(spaces.Dict({"image": image, "state": vector}), encoder=encoder)
    found = mixed({"image": torch.rand(2, 2, 65, 65), "state": torch.ones(2, 3)})
    assert found.shape == (2, 11)
    assert torch.equal(found[:, 8:], torch.ones(2, 3))
    assert JEPAFeatures(image, encoder=encoder)(torch.rand(2, 2, 65, 65)).shape == (2, 8)
    with pytest.raises(ValueError, match="name them with encoded"):
        JEPAFeatures(spaces.Dict({"a": vector, "b": vector}), encoder=encoder)
    with pytest.raises(ValueError, match=r"features \[N, D\]"):
        JEPAFeatures(image, encoder=world_model().encoder)


def test_a_policy_as_expert_is_recorded_like_any_other() -> None:
    class Greedy:
        """What `predict` of an algorithm does, for a point that heads for a goal."""

        def predict(self, seen: np.ndarray, deterministic: bool) -> tuple[np.ndarray, None]:
            assert deterministic
            return 1.2 * (seen[2:] - seen[:2]), None

    env = WithSB3Expert(ToyReach(), Greedy())
    found = demonstrate(env, seed=4, image=False)
    assert found.success
    assert abs(found.action).max() <= 1
    assert np.array_equal(found.action, demonstrate(env, seed=4, image=False).action)
