"""What every arm of the stable-baselines3 study shares: protocol, training, evaluation on the way."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from policies.rollouts import Decision
from policies.sb3 import SB3Agent, observation_encoder
from policies.sb3_study import RLProtocol, learn, ppo
from tests.policies.test_sb3 import world_model

TINY = RLProtocol(
    max_steps=4, env_steps=16, every=8, curve_problems=3, problems=6, split="selection", envs=2, rollout=4, batch=8,
    epochs=1,
)  # fmt: skip


class Straight:
    """Heads for the goal as if there were no wall."""

    inputs = "state"

    def start(self, env: Any, problems: Any) -> None:
        pass

    def decide(self, situation: Any) -> Decision:
        way = situation.goal_states - situation.states
        length = np.linalg.norm(way, axis=1, keepdims=True)
        return Decision(actions=(2.4 * way / np.maximum(length, 2.4))[:, None])


def test_success_is_the_environments_own_within_the_steps_of_an_episode() -> None:
    long, short = (replace(TINY, max_steps=m).success(Straight(), 20) for m in (60, 3))
    assert len(long) == len(short) <= 20
    env = TINY.env()
    problems = [env.problem(seed, "selection") for seed in range(20)]
    untried = [p for p in problems if not env.success(p, p.start[None])[0]]
    assert len(long) == len(untried)
    for problem, solved, soon in zip(untried, long, short, strict=True):
        near = np.linalg.norm(problem.start - problem.goal) < 3 * 2.4 + env.radius
        same = (problem.start[0] < env.layout[0]) == (problem.goal[0] < env.layout[0])
        assert solved or not same
        assert not soon or near


@pytest.mark.parametrize("frozen", [True, False, None])
def test_learning_is_reported_and_repeats(frozen: bool | None) -> None:
    encoder = None if frozen is None else observation_encoder(world_model())
    points: list[dict[str, float]] = []
    found, again = (
        learn(TINY, ppo(TINY, seed=1, encoder=encoder, frozen=bool(frozen)), on_point=points.append)
        for _ in range(2)
    )
    assert [p["env_steps"] for p in found["curve"]] == [0, 8, 16]
    assert points[:3] == found["curve"]
    assert found["success"] == again["success"]
    assert [p["success"] for p in found["curve"]] == [p["success"] for p in again["curve"]]
    assert found["curve"][0]["cpu_s"] == 0 < found["curve"][2]["cpu_s"]
    inside = 0 if encoder is None else sum(p.numel() for p in encoder.parameters())
    assert found["parameters"] - found["trained_parameters"] == (inside if frozen else 0)


def test_the_same_seed_begins_with_the_same_policy() -> None:
    one, two, other = (ppo(TINY, seed=seed, encoder=observation_encoder(world_model())) for seed in (0, 0, 1))
    weights = [torch.cat([p.flatten() for p in m.policy.parameters()]) for m in (one, two, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert TINY.success(SB3Agent(one), 6) == TINY.success(SB3Agent(two), 6)


def test_steps_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of every"):
        RLProtocol(env_steps=5000)
    with pytest.raises(ValueError, match="envs \\* rollout = 1024"):
        RLProtocol(every=1000, env_steps=10_000)
