"""The protocol's checker and single episodes of experts, on a toy."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from envs.manipulation import EnvOptions, RolloutSettings, demonstrate, env_names, make_env
from envs.manipulation.conformance import check_manipulation_env
from tests.envs.manipulation.toy import ToyExpert, ToyReach


def test_the_toy_conforms() -> None:
    check_manipulation_env(ToyReach())


def broken(**members: Any) -> ToyReach:
    return type("Broken", (ToyReach,), members)()


def never_over(self: ToyReach, action: np.ndarray) -> Any:
    observation, reward, _, _, info = ToyReach.step(self, action)
    return observation, reward, False, False, info


def blind_to_nan(self: ToyReach, action: np.ndarray) -> Any:
    return ToyReach.step(self, np.nan_to_num(action))


def moving(self: ToyReach) -> np.ndarray:
    self.place = self.place + 0.1
    return ToyReach.render(self)


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"step": never_over}, "truncated is False in step 12"),
        ({"step": blind_to_nan}, "accepts NaN"),
        ({"render": moving}, "drawing changes what happens"),
        ({"render": lambda self: np.zeros((4, 4), np.uint8)}, r"\[H, W, 3\]"),
    ],
)
def test_the_checker_finds_what_is_broken(members: dict[str, Any], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_manipulation_env(broken(**members))


def test_rows_are_what_the_expert_saw_before_it_acted() -> None:
    env = ToyReach()
    found = demonstrate(env, seed=1)
    assert found.success
    assert found.environment is not None
    assert np.allclose(found.action, np.clip(found.environment - found.state, -1, 1), atol=1e-6)
    assert np.allclose(found.state[1:], found.state[:-1] + found.action[:-1], atol=1e-6)
    assert found.image is not None
    assert len(found.image) == len(found) < env.max_steps
    assert (found.task, found.seed) == ("toy/reach", 1)


def test_failures_last_until_the_end() -> None:
    found = demonstrate(ToyReach(), seed=3)
    assert not found.success
    assert len(found) == 12


def test_noise_moves_the_arm_and_leaves_the_labels_clean() -> None:
    noisy = demonstrate(ToyReach(), seed=1, noise=0.3)
    again = demonstrate(ToyReach(), seed=1, noise=0.3)
    assert noisy.environment is not None
    assert np.allclose(noisy.action, np.clip(noisy.environment - noisy.state, -1, 1), atol=1e-6)
    moved = np.diff(noisy.state, axis=0)
    assert not np.allclose(moved, noisy.action[:-1], atol=0.05)
    assert np.array_equal(noisy.state, again.state)
    assert not np.array_equal(noisy.state[1], demonstrate(ToyReach(), seed=1).state[1])


def test_pictures_are_drawn_only_when_asked_for() -> None:
    env = ToyReach()
    demonstrate(env, seed=1, image=False)
    assert env.drawn == 0


def test_registry() -> None:
    assert env_names("toy") == ["toy/reach", "toy/reach-too", "toy/never"]
    env = make_env("toy/reach", EnvOptions(image_size=4, max_steps=3))
    env.reset(seed=0)
    assert (env.render().shape, env.max_steps, env.task) == ((4, 4, 3), 3, "toy/reach")


@pytest.mark.parametrize("action", [np.array([2, 0], np.float32), np.array([np.nan, 0]), np.zeros(3)])
def test_an_expert_out_of_bounds_is_an_error(action: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyExpert, "act", lambda self, env: action)
    with pytest.raises(ValueError, match="out of bounds"):
        demonstrate(ToyReach(), seed=1)


def test_errors_name_the_fix() -> None:
    with pytest.raises(ValueError, match="unknown suite 'nowhere'"):
        make_env("nowhere/task")
    with pytest.raises(ValueError, match="noise"):
        RolloutSettings(noise=-0.1)
