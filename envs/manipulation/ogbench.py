"""OGBench's cubes: pick one up and put it where a transparent cube shows, with the oracles that made its data."""

from typing import Any

import numpy as np

from envs.episodes import ActionSpec
from envs.goals import clip_action
from envs.gym_base import Env
from envs.manipulation.extras import require_manipulation
from envs.manipulation.protocol import ManipulationEnv, Observation
from envs.manipulation.rendering import SceneRenderer, require_mujoco, require_preset
from envs.manipulation.spaces import spaces_of

# Cubes on the table by task, and steps of an episode as OGBench has them.
CUBES = {"cube-single": (1, 200), "cube-double": (2, 500), "cube-triple": (3, 1000)}
STATE_DIM, CUBE_DIM = 19, 9
_CENTRE, _SCALE = np.array([0.425, 0.0, 0.0]), 10.0  # of the places in OGBench's observations


class OGBenchCube(Env):
    """One cube is to be moved (`envs.manipulation.ManipulationEnv`); this is how OGBench's data were collected.

    Observation: `state` [19] joint angles and speeds, place and turn of the gripper, its opening and contact;
    `environment` [9 K + K + 5] places and turns of the K cubes, which of them is to be moved (one of K), the place and
    turn of the goal; all scaled as in OGBench. Success: the cube within 4 cm of the goal. A step is 0.05 s.

    Args:
        task: one of `CUBES`.
        image_size: of `render` [px].
        preset: of `envs.manipulation.rendering.PRESETS`.
        max_steps: OGBench's own number if None.

    Raises:
        ImportError: if OGBench is missing.
        ValueError: on an unknown task or preset, or max_steps below 1.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - gymnasium's name and kind
    render_mode = "rgb_array"
    fps = 20.0

    def __init__(
        self,
        task: str = "cube-single",
        *,
        image_size: int = 128,
        preset: str = "fast",
        max_steps: int | None = None,
    ) -> None:
        if task not in CUBES:
            raise ValueError(f"OGBench has no task {task!r} here; there are {', '.join(CUBES)}")
        require_preset(preset)
        self.cubes, usual_steps = CUBES[task]
        self.task, self.image_size, self.preset = f"ogbench/{task}", image_size, preset
        self.max_steps = usual_steps if max_steps is None else max_steps
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be positive, got {max_steps}")
        edge = np.ones(5, np.float32)
        names = ("dx [5 cm]", "dy [5 cm]", "dz [5 cm]", "yaw [0.3 rad]", "gripper closing")
        self.action = ActionSpec(names=names, low=-edge, high=edge)
        self.observation_space, self.action_space = spaces_of(
            self.action, state=STATE_DIM, environment=(CUBE_DIM + 1) * self.cubes + 5
        )
        require_mujoco()
        module = require_manipulation("ogbench.manipspace.envs.cube_env")
        # Goals are drawn anew in every episode only in this mode; in the other they are five.
        self.env = module.CubeEnv(
            env_type=task.removeprefix("cube-"), mode="data_collection", terminate_at_goal=False
        )
        self._renderer: SceneRenderer | None = None
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        self.observed, self.info = self.env.reset(seed=chosen)
        while self._distance() <= 0.08:  # m; there has to be something to do
            self.observed, self.info = self.env.set_new_target()
        self._steps = 0
        return self._observe(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        chosen = clip_action(self.action, action)
        self.observed, reward, _, _, self.info = self.env.step(chosen)
        self._steps += 1
        report = {"success": bool(self.info["success"])}
        return self._observe(), float(reward), False, self._steps >= self.max_steps, report

    def _distance(self) -> float:
        block = self.info[f"privileged/block_{self.info['privileged/target_block']}_pos"]
        return float(np.linalg.norm(block - self.info["privileged/target_block_pos"]))

    def _observe(self) -> Observation:
        wanted = np.eye(self.cubes)[self.info["privileged/target_block"]]
        place = (self.info["privileged/target_block_pos"] - _CENTRE) * _SCALE
        yaw = self.info["privileged/target_block_yaw"]
        environment = np.concatenate([self.observed[STATE_DIM:], wanted, place, np.cos(yaw), np.sin(yaw)])
        return {
            "state": self.observed[:STATE_DIM].astype(np.float32),
            "environment": environment.astype(np.float32),
        }

    def render(self) -> np.ndarray:
        """Seen by OGBench's camera front_pixels."""
        if self._renderer is None:
            self._renderer = SceneRenderer(
                self.env.model, size=self.image_size, preset=self.preset, camera="front_pixels"
            )
        return self._renderer.draw(self.env.data)

    def expert(self) -> "OGBenchExpert":
        oracle = require_manipulation("ogbench.manipspace.oracles.markov.cube_markov")
        return OGBenchExpert(oracle.CubeMarkovOracle(env=self.env))

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


class OGBenchExpert:
    """OGBench's Markovian oracle (`envs.manipulation.Expert`)."""

    def __init__(self, oracle: Any) -> None:
        self._oracle = oracle
        # Where the arm goes after its work: the oracle draws it from numpy's global state when it is reset.
        oracle._step, oracle._done = 0, False
        oracle._final_pos, oracle._final_yaw = oracle._env._arm_sampling_bounds.mean(axis=0), 0.0

    def act(self, env: ManipulationEnv) -> np.ndarray:
        if not isinstance(env, OGBenchCube):
            raise TypeError(f"an expert of OGBench acts in OGBench, not in {type(env).__name__}")
        action = self._oracle.select_action(env.observed, env.info)
        return np.clip(action, env.action.low, env.action.high).astype(np.float32)
