"""What a `ManipulationEnv` promises, checked."""

import copy
import warnings
from typing import Any

import numpy as np

from envs.gym_base import require
from envs.manipulation.protocol import ManipulationEnv, Observation


def check_manipulation_env(env: ManipulationEnv, *, steps: int = 10, render: bool = True) -> None:
    """Gymnasium's own checks, and those of the protocol.

    Args:
        env: to be checked; its episode is lost.
        steps: of random actions.
        render: whether pictures are checked too, which needs OpenGL in most environments.

    Raises:
        AssertionError: naming what is broken.
    """
    _require(isinstance(env, ManipulationEnv), f"{type(env).__name__} lacks a member of ManipulationEnv")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # unbounded observations, and render modes that need a registered name
        require("gymnasium.utils.env_checker").check_env(env, skip_render_check=True)
    actions = _random_actions(env, steps)
    first = _roll(env, 5, actions)
    _roll(env, 6, actions)
    _require(_equal(first, _roll(env, 5, actions)), "an episode depends on those before it")
    beyond = 10 * np.where(np.isfinite(env.action.high), env.action.high, 1.0) + 1
    clipped = np.clip(beyond, env.action.low, env.action.high)
    _require(_equal(_roll(env, 5, beyond[None]), _roll(env, 5, clipped[None])), "step does not clip actions")
    env.reset(seed=5)
    try:
        env.step(np.full(env.action.dim, np.nan))
    except ValueError:
        pass
    else:
        raise AssertionError("step accepts NaN")
    _check_end(env)
    if render:
        _check_pictures(env, actions)


def _random_actions(env: ManipulationEnv, steps: int) -> np.ndarray:
    low = np.where(np.isfinite(env.action.low), env.action.low, -1.0)
    high = np.where(np.isfinite(env.action.high), env.action.high, 1.0)
    return np.random.default_rng(0).uniform(low, high, (steps, env.action.dim)).astype(np.float32)


def _roll(env: ManipulationEnv, seed: int, actions: np.ndarray) -> list[Observation]:
    observation, info = env.reset(seed=seed)
    _check_report(observation, info)
    found = [observation]
    for action in actions:
        observation, _, terminated, _, info = env.step(action)
        _check_report(observation, info)
        _require(not terminated, "terminated stays False: success is info['success']")
        found.append(copy.deepcopy(observation))
    return found


def _check_report(observation: Observation, info: dict[str, Any]) -> None:
    _require(isinstance(info.get("success"), bool), "info['success'] must be a bool")
    for name, values in observation.items():
        _require(
            isinstance(values, np.ndarray) and values.dtype == np.float32 and values.ndim == 1,
            f"observation {name!r} must be a vector of float32",
        )


def _equal(first: list[Observation], second: list[Observation]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)  # type: ignore[literal-required]
        for a, b in zip(first, second, strict=True)
    )


def _check_end(env: ManipulationEnv) -> None:
    env.reset(seed=5)
    still = np.clip(np.zeros(env.action.dim), env.action.low, env.action.high)
    for step in range(1, env.max_steps + 1):
        *_, truncated, _ = env.step(still)
        _require(
            truncated == (step >= env.max_steps),
            f"truncated is {truncated} in step {step} of {env.max_steps}",
        )


def _check_pictures(env: ManipulationEnv, actions: np.ndarray) -> None:
    env.reset(seed=5)
    before = env.render()
    _require(
        before.ndim == 3 and before.shape[2] == 3 and before.dtype == np.uint8,
        f"render must return [H, W, 3] uint8, got {before.shape} {before.dtype}",
    )
    kept = before.copy()
    unseen = _roll(env, 5, actions)
    env.reset(seed=5)
    seen: list[Observation] = []
    for action in actions:
        env.render()
        seen.append(env.step(action)[0])
    _require(_equal(unseen[1:], seen), "drawing changes what happens")
    _require(np.array_equal(before, kept), "a picture is overwritten by the next one")
    env.reset(seed=5)
    _require(np.array_equal(before, env.render()), "the same state is not drawn the same")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
