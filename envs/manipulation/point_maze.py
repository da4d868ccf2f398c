"""The point maze as an environment for policies that imitate; the expert goes from cell to cell."""

from typing import Any

import numpy as np

from envs.gym_base import Env
from envs.manipulation.protocol import ManipulationEnv, Observation
from envs.manipulation.spaces import spaces_of
from envs.point_maze import RADIUS, PointMaze, action_spec

MAX_STEPS = {"UMaze": 300, "Medium": 600, "Large": 800}  # as in gymnasium-robotics
_WALL, _FLOOR, _GOAL, _BALL = (90, 90, 90), (235, 235, 235), (60, 160, 75), (200, 60, 50)
_BALL_RADIUS = 0.1


class PointMazeReach(Env):
    """Roll the ball to a goal (`envs.manipulation.ManipulationEnv`), on the training problems of `PointMaze`.

    Observation: `state` [4] x, y in m and their speeds in m/s; `environment` [2] the goal's x, y. Success: within 0.45
    m of it. A step is 0.01 s.

    Args:
        maze: "UMaze", "Medium" or "Large".
        image_size: of `render` [px].
        max_steps: gymnasium-robotics' own number if None.

    Raises:
        ImportError: if mujoco or gymnasium-robotics is missing.
        ValueError: on an unknown maze, or an image size or max_steps below 1.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 100}  # noqa: RUF012 - gymnasium's name and kind
    render_mode = "rgb_array"
    fps = 100.0
    action = action_spec()

    def __init__(self, maze: str = "UMaze", *, image_size: int = 64, max_steps: int | None = None) -> None:
        self.env = PointMaze(maze)
        self.task, self.image_size = f"point_maze/{maze}", image_size
        self.max_steps = MAX_STEPS[maze] if max_steps is None else max_steps
        if self.max_steps < 1 or image_size < 1:
            raise ValueError(f"max_steps and image size must be positive, got {max_steps} and {image_size}")
        self.observation_space, self.action_space = spaces_of(self.action, state=4, environment=2)
        self._background = self._draw_walls()
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        self.problem = self.env.problem(chosen)
        _, self.info = self.env.reset(options={"problem": self.problem})
        self._steps = 0
        return self._observe(), {"success": bool(self.info["success"])}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        _, reward, _, _, self.info = self.env.step(action)
        self._steps += 1
        success = bool(self.info["success"])
        return self._observe(), reward, False, self._steps >= self.max_steps, {"success": success}

    def _observe(self) -> Observation:
        return {
            "state": self.info["state"].astype(np.float32),
            "environment": self.problem.goal[:2].astype(np.float32),
        }

    def render(self) -> np.ndarray:
        """Seen from above, north up: a green disc of the radius of success, and the ball."""
        image = self._background.copy()
        image[self._disc(self.problem.goal[:2], RADIUS)] = _GOAL
        # At least a pixel and a half wide.
        image[self._disc(self.info["state"][:2], max(_BALL_RADIUS, 0.75 * self._pixel))] = _BALL
        return image

    def _draw_walls(self) -> np.ndarray:
        walls = self.env.maze.walls
        rows, columns = walls.shape
        self._pixel = max(rows, columns) / self.image_size  # m
        place = (np.arange(self.image_size) + 0.5) * self._pixel
        row, column = np.meshgrid(place, place, indexing="ij")
        inside = (row < rows) & (column < columns)
        solid = np.ones((self.image_size, self.image_size), bool)
        solid[inside] = walls[row[inside].astype(int), column[inside].astype(int)]
        corner = self.env.maze.centre(np.zeros(2)) + np.array([-0.5, 0.5])
        self._places = np.stack([corner[0] + column, corner[1] - row], axis=-1)
        return np.where(solid[..., None], np.array(_WALL, np.uint8), np.array(_FLOOR, np.uint8))

    def _disc(self, centre: np.ndarray, radius: float) -> np.ndarray:
        return np.linalg.norm(self._places - centre, axis=-1) <= radius

    def expert(self) -> "PointMazeExpert":
        return PointMazeExpert()


class PointMazeExpert:
    """Breadth-first search over the cells and a PD controller (`envs.manipulation.Expert`)."""

    def act(self, env: ManipulationEnv) -> np.ndarray:
        if not isinstance(env, PointMazeReach):
            raise TypeError(f"an expert of the point maze acts there, not in {type(env).__name__}")
        return env.env.expert(env.problem, env.info["state"]).astype(np.float32)
