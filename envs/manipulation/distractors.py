"""Numbers in the state that mean nothing: what a representation should leave out, and a raw-state target cannot."""

from typing import Any

import numpy as np

from envs.manipulation.protocol import Expert, ManipulationEnv, Observation

PERSISTENCE = 0.9


class Distracted:
    """An environment whose state carries N more numbers, independent noise that drifts: x <- 0.9 x + 0.44 noise.

    Variance 1; a function of the seed of the episode and the step. Its correlation with the present falls to a half
    within 7 steps, and no action changes it.

    Args:
        env: the environment. Its expert acts as before.
        count: N.
    """

    def __init__(self, env: ManipulationEnv, count: int) -> None:
        if count < 1:
            raise ValueError(f"distractors are at least 1, got {count}")
        self.env, self.count = env, count
        self.task, self.action, self.max_steps, self.fps = env.task, env.action, env.max_steps, env.fps

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._source = np.random.default_rng(None if seed is None else (seed, 0xD157))
        self._noise = self._source.standard_normal(self.count)
        return self._with_noise(observation), info

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        fresh = self._source.standard_normal(self.count)
        self._noise = PERSISTENCE * self._noise + (1 - PERSISTENCE**2) ** 0.5 * fresh
        return self._with_noise(observation), reward, terminated, truncated, info

    def render(self) -> np.ndarray:
        return self.env.render()

    def expert(self) -> "_Expert":
        return _Expert(self.env.expert(), self.env)

    def close(self) -> None:
        self.env.close()

    def _with_noise(self, observation: Observation) -> Observation:
        state = np.concatenate([observation["state"], self._noise.astype(np.float32)])
        return {**observation, "state": state}


class _Expert:
    """Acts in the environment itself."""

    def __init__(self, expert: Expert, env: ManipulationEnv) -> None:
        self._expert, self._env = expert, env

    def act(self, env: ManipulationEnv) -> np.ndarray:
        return self._expert.act(self._env)
