"""Push-T as gym-pusht has it, for policies that imitate: no expert, since none is known that is written down."""

from typing import Any

import numpy as np

from envs.episodes import ActionSpec
from envs.goals import clip_action
from envs.gym_base import Env, require
from envs.manipulation.protocol import Expert, NoExpertError, Observation
from envs.manipulation.spaces import spaces_of
from envs.push_t import action_spec


class PushTKeypoints(Env):
    """Push the T onto its outline (`envs.manipulation.ManipulationEnv`).

    Observation: `state` [2] the agent's x, y; `environment` [16] eight corners of the T; all in px of the 512 px table.
    Success: the T covers the share `threshold` of its outline. A step is 0.1 s.

    Args:
        image_size: of `render` [px].
        max_steps: 300 in gym-pusht.
        threshold: 0.95 in gym-pusht; 0.9 in the evaluation of ACT-JEPA.

    Raises:
        ImportError: if gym-pusht is missing.
        ValueError: on max_steps below 1 or a threshold outside (0, 1].
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - gymnasium's name and kind
    render_mode = "rgb_array"
    fps = 10.0
    task = "push_t/keypoints"
    action: ActionSpec = action_spec(relative=False)

    def __init__(self, *, image_size: int = 96, max_steps: int = 300, threshold: float = 0.95) -> None:
        if max_steps < 1 or not 0 < threshold <= 1:
            raise ValueError(
                f"max_steps >= 1 and a threshold in (0, 1] are needed, got {max_steps}, {threshold}"
            )
        self.max_steps = max_steps
        self.observation_space, self.action_space = spaces_of(self.action, state=2, environment=16)
        self._env = require("gym_pusht.envs.pusht").PushTEnv(
            obs_type="environment_state_agent_pos",
            observation_width=image_size,
            observation_height=image_size,
        )
        self._env.success_threshold = threshold
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        observed, _ = self._env.reset(seed=chosen)
        self._steps = 0
        return self._observe(observed), {"success": False}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        observed, reward, _, _, info = self._env.step(clip_action(self.action, action))
        self._steps += 1
        success = {"success": bool(info["is_success"])}
        return self._observe(observed), float(reward), False, self._steps >= self.max_steps, success

    def _observe(self, observed: dict[str, np.ndarray]) -> Observation:
        return {
            "state": observed["agent_pos"].astype(np.float32),
            "environment": observed["environment_state"].astype(np.float32),
        }

    def render(self) -> np.ndarray:
        """As in the pictures of the Push-T data sets: without the cross that marks the last action."""
        return self._env._render()

    def expert(self) -> Expert:
        raise NoExpertError("Push-T has no scripted expert; load demonstrations of people instead")

    def close(self) -> None:
        self._env.close()
