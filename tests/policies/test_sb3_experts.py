"""A saved policy of stable-baselines3 as the expert of a recording."""

import pickle
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("pyarrow")

from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, RescaleAction
from stable_baselines3 import PPO, SAC

from envs.demonstrations import load_demonstrations
from envs.manipulation import EnvOptions, RolloutSettings, demonstrate
from envs.manipulation.recording import RecordingError, RecordingSettings, record
from policies.sb3 import WithSB3Expert
from policies.sb3_experts import SB3Experts
from tests.envs.manipulation.toy import ToyReach

OPTIONS = EnvOptions(image_size=8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that were never trained: PPO of the dictionary, SAC of a vector, PPO of other actions."""
    folder = tmp_path_factory.mktemp("models")
    PPO("MultiInputPolicy", ToyReach(), n_steps=8, seed=0, device="cpu").save(folder / "ppo.zip")
    flat = FlattenObservation(ToyReach())
    SAC("MlpPolicy", flat, buffer_size=8, seed=1, device="cpu").save(folder / "sac.zip")
    scaled = RescaleAction(ToyReach(), -2, 2)
    PPO("MultiInputPolicy", scaled, n_steps=8, device="cpu").save(folder / "scaled.zip")
    return folder


def test_what_is_recorded_is_what_the_model_does(saved: Path, tmp_path: Path) -> None:
    experts = SB3Experts(saved / "ppo.zip", "ppo")
    settings = RecordingSettings(
        rollout=RolloutSettings(options=OPTIONS, image=False), keep_failures=True, expert=experts.name
    )
    record(tmp_path / "set", names=["toy/reach"], episodes=2, settings=settings, make=experts)
    model = PPO.load(saved / "ppo.zip", device="cpu")
    env = WithSB3Expert(ToyReach(options=OPTIONS), model, keys=None)
    for seed, found in enumerate(load_demonstrations(tmp_path / "set", image=False)):
        assert np.array_equal(found.action, demonstrate(env, seed=seed, image=False).action)
        seen, _ = ToyReach().reset(seed=seed)
        assert np.array_equal(found.action[0], model.predict(seen, deterministic=True)[0].clip(-1, 1))
    scripted = RecordingSettings(rollout=settings.rollout, keep_failures=True)
    with pytest.raises(RecordingError, match=r"expert: ppo [0-9a-f]{64}, now None"):
        record(tmp_path / "set", names=["toy/reach"], episodes=3, settings=scripted)


def test_a_vector_is_made_of_the_named_parts_in_their_order(saved: Path) -> None:
    flat = FlattenObservation(ToyReach())
    seen, _ = flat.reset(seed=5)
    expected = SAC.load(saved / "sac.zip", device="cpu").predict(seen, deterministic=True)[0]
    for keys, same in ((("environment", "state"), True), (("state", "environment"), False)):
        env = SB3Experts(saved / "sac.zip", "sac", keys)("toy/reach", OPTIONS)
        env.reset(seed=5)
        assert np.array_equal(env.expert().act(env), expected) == same


def test_processes_keep_their_environment(saved: Path) -> None:
    experts = SB3Experts(saved / "ppo.zip", "ppo")
    name = experts.name
    sent = pickle.loads(pickle.dumps(experts))
    assert sent == experts
    assert sent.name == name


@pytest.mark.parametrize(
    ("file", "algorithm", "keys", "complaint"),
    [
        ("ppo.zip", "dqn", None, "the algorithm is one of a2c, ddpg, ppo, sac, td3, got 'dqn'"),
        ("none.zip", "ppo", None, r"none.zip is no file: name what model.save"),
        ("sac.zip", "td3", None, r"sac.zip is no model of td3 .*: name the algorithm that saved it"),
        ("text.zip", "ppo", None, r"text.zip is no model of ppo"),
        ("ppo.zip", "ppo", ("state",), "reads the dictionary .*: name no parts of a vector"),
        ("sac.zip", "sac", None, r"reads a vector \(4,\): name the parts of .* in their order"),
        ("sac.zip", "sac", ("state", "image"), r"reads a vector \(4,\): name the parts of"),
        ("sac.zip", "sac", ("state",), r"reads \(4,\), but toy/reach shows .*: it was trained elsewhere"),
        ("scaled.zip", "ppo", None, r"acts in Box\(-2.0, 2.0.*, but toy/reach in \[-1. -1.\] to \[1. 1.\]"),
    ],
)
def test_errors_name_the_fix(
    saved: Path, file: str, algorithm: str, keys: tuple[str, ...] | None, complaint: str
) -> None:
    (saved / "text.zip").write_text("no model")
    with pytest.raises(ValueError, match=complaint):
        SB3Experts(saved / file, algorithm, keys)("toy/reach", OPTIONS)


def test_a_model_of_another_environment_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = SB3Experts(saved / "ppo.zip", "ppo")
    wide = ToyReach()
    wide.observation_space = spaces.Dict(
        {"state": spaces.Box(-1, 1, (3,)), "environment": spaces.Box(-1, 1, (2,))}
    )
    monkeypatch.setattr("policies.sb3_experts.make_env", lambda name, options: wide)
    with pytest.raises(ValueError, match="trained elsewhere"):
        experts("toy/reach", OPTIONS)
    wide.observation_space = spaces.Box(-1, 1, (4,))
    with pytest.raises(ValueError, match="no dictionary of observations"):
        experts("toy/reach", OPTIONS)
