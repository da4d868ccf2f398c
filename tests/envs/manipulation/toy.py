"""A point that heads for a goal: an environment of milliseconds behind the protocol of manipulation."""

from typing import Any

import numpy as np
from gymnasium import Env, spaces

from envs.episodes import ActionSpec
from envs.goals import clip_action
from envs.manipulation.protocol import ManipulationEnv, Observation
from envs.manipulation.registry import SUITES, EnvOptions, Suite


class ToyReach(Env):
    """The expert fails on seeds that 3 divides; on the task "never" always."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    render_mode = "rgb_array"
    fps = 10.0

    def __init__(self, task: str = "reach", options: EnvOptions | None = None) -> None:
        options = options or EnvOptions(image_size=8)
        self.task, self.size, self.max_steps = f"toy/{task}", options.image_size, options.max_steps or 12
        self.never, self.drawn = task == "never", 0
        edge = np.ones(2, np.float32)
        self.action = ActionSpec(names=("dx", "dy"), low=-edge, high=edge)
        self.action_space = spaces.Box(-edge, edge)
        box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = spaces.Dict({"state": box, "environment": box})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.hard = self.never or (seed is not None and seed % 3 == 0)
        self.place, self.goal = self.np_random.uniform(-3, 3, (2, 2))
        self.steps = 0
        return self._observe(), {"success": False}

    def _observe(self) -> Observation:
        return {"state": self.place.astype(np.float32), "environment": self.goal.astype(np.float32)}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.place = self.place + clip_action(self.action, action)
        self.steps += 1
        success = bool(np.linalg.norm(self.place - self.goal) < 0.3) and not self.hard
        return self._observe(), 0.0, False, self.steps >= self.max_steps, {"success": success}

    def render(self) -> np.ndarray:
        self.drawn += 1
        grey = np.linspace(0, 255, self.size * self.size * 3).reshape(self.size, self.size, 3)
        return (grey * abs(np.sin(self.place.sum()))).astype(np.uint8)

    def expert(self) -> "ToyExpert":
        return ToyExpert()


class ToyExpert:
    def act(self, env: ManipulationEnv) -> np.ndarray:
        assert isinstance(env, ToyReach)
        return np.clip(env.goal - env.place, -1, 1).astype(np.float32)


SUITES["toy"] = Suite(tasks=lambda: ("reach", "reach-too", "never"), make=ToyReach)
