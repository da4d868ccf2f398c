"""ALOHA's two simulated arms (gym-aloha), without the three pictures that the library draws in every step."""

from typing import Any

import numpy as np

from envs.episodes import ActionSpec
from envs.goals import clip_action
from envs.gym_base import Env
from envs.manipulation.aloha_expert import HandOver, Insertion, TwoArms
from envs.manipulation.extras import require_manipulation
from envs.manipulation.protocol import ManipulationEnv, Observation
from envs.manipulation.rendering import SceneRenderer, require_mujoco, require_preset
from envs.manipulation.spaces import spaces_of

TASKS = {"transfer-cube": 7, "insertion": 14}  # length of the objects' poses
SCRIPTS: dict[str, type[TwoArms]] = {"transfer-cube": HandOver, "insertion": Insertion}
_SUCCESS = 4  # the highest reward


class Aloha(Env):
    """Hand a cube over, or plug a peg into a socket (`envs.manipulation.ManipulationEnv`).

    Observation: `state` [14] joint angles and gripper openings (0 to 1) of the left and the right arm; `environment`
    [7 or 14] places and quaternions of the objects. An action is the same 14 numbers as targets. A step is 0.02 s.

    Args:
        task: "transfer-cube" or "insertion".
        image_size: of `render` [px].
        preset: of `envs.manipulation.rendering.PRESETS`.
        max_steps: 400 in ACT's data.

    Raises:
        ImportError: if gym-aloha is missing.
        ValueError: on an unknown task or preset, or max_steps below 1.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012 - gymnasium's name and kind
    render_mode = "rgb_array"
    fps = 50.0

    def __init__(
        self,
        task: str = "transfer-cube",
        *,
        image_size: int = 128,
        preset: str = "fast",
        max_steps: int = 400,
    ) -> None:
        if task not in TASKS or max_steps < 1:
            raise ValueError(
                f"a task of {', '.join(TASKS)} and max_steps >= 1 are needed, got {task}, {max_steps}"
            )
        require_preset(preset)
        require_mujoco()
        self.task, self.max_steps, self.image_size, self.preset = (
            f"aloha/{task}",
            max_steps,
            image_size,
            preset,
        )
        library = require_manipulation("gym_aloha.env")
        self._env = library.AlohaEnv(task.replace("-", "_"), obs_type="pixels_agent_pos")
        self._control = self._env._env
        self._control.task.get_observation = self._without_pictures
        self.action = self._action_spec(require_manipulation("gym_aloha.constants").ACTIONS)
        self.observation_space, self.action_space = spaces_of(
            self.action, state=self.action.dim, environment=TASKS[task]
        )
        self._renderer: SceneRenderer | None = None
        self._steps = 0

    def _action_spec(self, names: list[str]) -> ActionSpec:
        """The library bounds all targets by -1 and 1, which the pose that its arms start in exceeds: the model's own
        bounds instead."""
        low, high = (
            np.concatenate([edge[:6], [end], edge[8:14], [end]]).astype(np.float32)
            for edge, end in zip(self._control.physics.model.actuator_ctrlrange.T, (0, 1), strict=True)
        )
        return ActionSpec(names=tuple(names), low=low, high=high)

    def _without_pictures(self, physics: Any) -> dict[str, Any]:
        task = self._control.task
        nothing = {"top": np.zeros(0, np.uint8)}
        return {"qpos": task.get_qpos(physics), "env_state": task.get_env_state(physics), "images": nothing}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        self._env.reset(seed=chosen)
        self._steps = 0
        return self._observe(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        reward = self._control.step(clip_action(self.action, action)).reward
        self._steps += 1
        return (
            self._observe(),
            float(reward),
            False,
            self._steps >= self.max_steps,
            {"success": reward == _SUCCESS},
        )

    def _observe(self) -> Observation:
        found = self._without_pictures(self._control.physics)
        return {
            "state": found["qpos"].astype(np.float32),
            "environment": found["env_state"].astype(np.float32),
        }

    def render(self) -> np.ndarray:
        """Seen by the camera top."""
        physics = self._control.physics
        if self._renderer is None:
            self._renderer = SceneRenderer(
                physics.model.ptr, size=self.image_size, preset=self.preset, camera="top"
            )
        return self._renderer.draw(physics.data.ptr)

    def expert(self) -> "AlohaExpert":
        physics = self._control.physics
        return AlohaExpert(SCRIPTS[self.task.partition("/")[2]](physics.model.ptr, physics.data.ptr))

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


class AlohaExpert:
    """A script of `envs.manipulation.aloha_expert` (`envs.manipulation.Expert`)."""

    def __init__(self, script: TwoArms) -> None:
        self._script = script

    def act(self, env: ManipulationEnv) -> np.ndarray:
        if not isinstance(env, Aloha):
            raise TypeError(f"an expert of ALOHA acts there, not in {type(env).__name__}")
        targets = self._script.targets(env._control.physics.data.ptr)
        return np.clip(targets.astype(np.float32), env.action.low, env.action.high)
