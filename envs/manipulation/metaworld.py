"""Meta-World v3: 50 tasks of one arm, with the scripted experts the library ships.

The library ignores the seed of `reset` and hides the goal from the observation its experts need; here the seed decides
everything, and the goal is seen.
"""

import functools
import warnings
from typing import Any

import numpy as np

from envs.episodes import ActionSpec
from envs.goals import clip_action
from envs.gym_base import Env
from envs.manipulation.extras import require_manipulation
from envs.manipulation.protocol import ManipulationEnv, Observation
from envs.manipulation.rendering import SceneRenderer, require_mujoco, require_preset
from envs.manipulation.spaces import spaces_of

STATE_DIM, ENVIRONMENT_DIM = 4, 35
LIBRARY_MAX_STEPS = 500  # its step() raises after that
_VERSION = "-v3"


@functools.cache
def task_names() -> tuple[str, ...]:
    """The 50 tasks, "assembly" to "window-close".

    Raises:
        ImportError: naming the extra that brings Meta-World.
    """
    return tuple(sorted(name.removesuffix(_VERSION) for name in _library().ALL_V3_ENVIRONMENTS))


def _library() -> Any:
    require_mujoco()
    return require_manipulation("metaworld.env_dict")


class MetaWorld(Env):
    """One task (`envs.manipulation.ManipulationEnv`).

    Observation: `state` [4] hand x, y, z in m and the gripper's opening (0 to 1); `environment` [35] two objects (place
    in m and quaternion each, zeros where there is one), the hand and the objects one step ago, and the goal. The hand
    starts where the library has it; objects and goal are drawn. A step is 0.0125 s.

    Args:
        task: one of `task_names()`.
        image_size: of `render` [px].
        preset: of `envs.manipulation.rendering.PRESETS`.
        max_steps: at most 500.

    Raises:
        ImportError: if Meta-World is missing.
        ValueError: on an unknown task or preset, or max_steps outside 1 to 500.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012 - gymnasium's name and kind
    render_mode = "rgb_array"
    fps = 80.0

    def __init__(
        self, task: str = "drawer-open", *, image_size: int = 128, preset: str = "fast", max_steps: int = 200
    ) -> None:
        if task not in task_names():
            raise ValueError(f"Meta-World has no task {task!r}; it has {', '.join(task_names())}")
        if not 1 <= max_steps <= LIBRARY_MAX_STEPS:
            raise ValueError(f"max_steps must lie in 1 to {LIBRARY_MAX_STEPS}, got {max_steps}")
        require_preset(preset)
        self.task, self.max_steps, self.image_size, self.preset = (
            f"metaworld/{task}",
            max_steps,
            image_size,
            preset,
        )
        edge = np.ones(4, np.float32)
        self.action = ActionSpec(
            names=("hand dx [cm]", "hand dy [cm]", "hand dz [cm]", "gripper effort"), low=-edge, high=edge
        )
        self.observation_space, self.action_space = spaces_of(
            self.action, state=STATE_DIM, environment=ENVIRONMENT_DIM
        )
        self._library_name = task + _VERSION
        self._env = _library().ALL_V3_ENVIRONMENTS[self._library_name]()
        # The goal belongs to the observation: the experts read it there. The space is cached from before.
        self._env._partially_observable = False
        vars(self._env).pop("sawyer_observation_space", None)
        # Draw objects and goal from the generator that seed() sets, not from a task set beforehand.
        self._env._freeze_rand_vec = False
        self._env._set_task_called = True
        self._env.seeded_rand_vec = True
        self._mujoco = require_mujoco()
        self._renderer: SceneRenderer | None = None
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        self._env.seed(chosen)
        self.full_observation, _ = self._env.reset()
        # The library moves the goal's marker in the model only: without this the first picture has it elsewhere.
        self._mujoco.mj_kinematics(self._env.model, self._env.data)
        self._steps = 0
        return self._observe(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        chosen = clip_action(self.action, action)
        self.full_observation, reward, _, _, info = self._env.step(chosen)
        self._steps += 1
        success = bool(info["success"])
        return self._observe(), float(reward), False, self._steps >= self.max_steps, {"success": success}

    def _observe(self) -> Observation:
        whole = self.full_observation.astype(np.float32)
        return {"state": whole[:STATE_DIM], "environment": whole[STATE_DIM:]}

    def render(self) -> np.ndarray:
        """Seen by the camera corner2, upright."""
        if self._renderer is None:
            self._renderer = SceneRenderer(
                self._env.model, size=self.image_size, preset=self.preset, camera="corner2", flip=True
            )
        return self._renderer.draw(self._env.data)

    def expert(self) -> "MetaWorldExpert":
        policies = require_manipulation("metaworld.policies")
        return MetaWorldExpert(policies.ENV_POLICY_MAP[self._library_name]())

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


class MetaWorldExpert:
    """A scripted policy of the library, its actions clipped to the bounds (`envs.manipulation.Expert`)."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    def act(self, env: ManipulationEnv) -> np.ndarray:
        if not isinstance(env, MetaWorld):
            raise TypeError(f"an expert of Meta-World acts in Meta-World, not in {type(env).__name__}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Constant")  # actions beyond the bounds: clipped below
            action = self._policy.get_action(env.full_observation)
        return np.clip(action, env.action.low, env.action.high).astype(np.float32)
