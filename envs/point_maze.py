"""A force-driven ball in a maze (gymnasium-robotics' PointMaze-v3) with goals, and episodes of it to learn from."""

import functools
from typing import Any, Literal

import numpy as np

from envs.episodes import ActionSpec, Episode
from envs.goals import SPLITS, Problem, Split, clip_action, goal_info, problem_of, require_split, split_of
from envs.gym_base import Env, require
from envs.kept_episodes import KeptEpisodes
from envs.shortest_paths import FreeSpace

MAZES = ("UMaze", "Medium", "Large")
RADIUS = 0.45  # of success, as in gymnasium-robotics
MAX_SPEED = 5.0
_PLACE_NOISE = 0.25  # of starts and goals around the centres of cells, as in gymnasium-robotics
_SQUARES_PER_CELL = 16
_WALL_MARGIN = 0.05  # the ball's radius is 0.1, but contacts are soft


def action_spec() -> ActionSpec:
    """A force for one step of 0.01 s."""
    edge = np.ones(2, np.float32)
    return ActionSpec(names=("force x [100 N]", "force y [100 N]"), low=-edge, high=edge)


class Maze:
    """The ball's dynamics and the cells of one maze.

    Args:
        name: "UMaze", "Medium" or "Large".

    Raises:
        ImportError: if mujoco or gymnasium-robotics is missing.
        ValueError: on an unknown name.
    """

    def __init__(self, name: str = "UMaze") -> None:
        if name not in MAZES:
            raise ValueError(f"maze must be one of {', '.join(MAZES)}, got {name!r}")
        self._mujoco = require("mujoco")
        gymnasium, robotics = require("gymnasium"), require("gymnasium_robotics")
        gymnasium.register_envs(robotics)
        official = gymnasium.make(f"PointMaze_{name}-v3").unwrapped
        self._model = official.point_env.model
        self._data = self._mujoco.MjData(self._model)
        grid = np.array(official.maze.maze_map)
        self.walls = grid == 1
        self._origin = np.array([-official.maze.x_map_center, official.maze.y_map_center])
        official.close()
        self.cells = np.argwhere(~self.walls)

    def centre(self, cell: np.ndarray) -> np.ndarray:
        """(x, y) [..., 2] of cells (row, column) [..., 2]; a cell is 1 m wide."""
        return self._origin + (cell[..., ::-1] + 0.5) * np.array([1.0, -1.0])

    def cell(self, position: np.ndarray) -> tuple[int, int]:
        """(row, column) of the cell of (x, y)."""
        column, row = np.floor((position - self._origin) * np.array([1.0, -1.0])).astype(int)
        return int(row), int(column)

    def advance(self, state: np.ndarray, forces: np.ndarray) -> np.ndarray:
        """States [H, 4] after each of the forces [H, 2] from a state [4] (x, y, vx, vy).

        The official step, but that the contact solver starts cold every time: a state is all there is. The two agree to
        1e-8 over 3,000 steps.
        """
        data, path = self._data, np.empty((len(forces), 4))
        data.qpos[:], data.qvel[:] = state[:2], state[2:]
        for t, force in enumerate(forces):
            np.clip(data.qvel, -MAX_SPEED, MAX_SPEED, out=data.qvel)
            data.ctrl[:] = force
            data.qacc_warmstart[:] = 0
            self._mujoco.mj_step(self._model, data)
            path[t, :2], path[t, 2:] = data.qpos, data.qvel
        return path

    @functools.cached_property
    def free_space(self) -> FreeSpace:
        """Where the ball's centre can be."""
        reach = 0.5 + _WALL_MARGIN
        centres = self.centre(np.argwhere(self.walls))
        boxes = np.stack([centres - reach, centres + reach], axis=1)
        return FreeSpace(low=centres.min(axis=0), high=centres.max(axis=0), boxes=boxes)

    @functools.cached_property
    def _steps_between(self) -> np.ndarray:
        """Fewest steps between cells [rows, columns, rows, columns], infinite where there is no way."""
        steps = np.full(self.walls.shape * 2, np.inf)
        for goal in self.cells:
            front, count = {tuple(goal)}, 0
            while front:
                for cell in front:
                    steps[(*cell, *goal)] = count
                near = {(r + dr, c + dc) for r, c in front for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0))}
                front = {n for n in near if not self.walls[n] and np.isinf(steps[(*n, *goal)])}
                count += 1
        return steps

    def waypoint(self, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Where to head for (x, y): the goal in its own cell, else the centre of the next cell on the way to it."""
        here, there = self.cell(position), self.cell(goal)
        if here == there:
            return goal
        row, column = here
        nearest = min(
            ((row + dr, column + dc) for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0))),
            key=lambda cell: self._steps_between[(*cell, *there)],
        )
        return self.centre(np.array(nearest))

    def sample_place(self, split: Split, *, generator: np.random.Generator) -> np.ndarray:
        """A start or goal (x, y) in a square of 1/16 cell that belongs to the split."""
        while True:
            cell = self.cells[generator.integers(len(self.cells))]
            place = self.centre(cell) + generator.uniform(-_PLACE_NOISE, _PLACE_NOISE, 2)
            if place_split(place) == split:
                return place


def place_split(place: np.ndarray) -> Split:
    """The split of a start or a goal (x, y)."""
    column, row = np.floor(np.asarray(place) * _SQUARES_PER_CELL).astype(int)
    return split_of(int(column), int(row))


def pd_force(state: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The force [2] of a nearly critically damped controller (24 m/s2 per unit of force) that heads for a target."""
    return np.clip(3.0 * (target - state[:2]) - 0.7 * state[2:], -1.0, 1.0)


class PointMaze(Env):
    """Roll the ball to a goal (`envs.goals.GoalEnv`).

    State and observation [4]: x, y in m, vx, vy in m/s (float32 in observations). The goal is a place at rest;
    success, at any time: within 0.45 m of it, at whatever speed. `distance` is the length of the shortest path between
    the walls.

    Starts and goals of the splits lie in different squares of 1/16 m. A step is 0.01 s: plan in blocks of actions.
    """

    spec_action = action_spec()
    observation_shape: tuple[int, ...] = (4,)
    state_dim = 4
    success_at: Literal["any time", "end"] = "any time"

    def __init__(self, maze: str = "UMaze") -> None:
        spaces = require("gymnasium").spaces
        self.maze = Maze(maze)
        self.action_space = spaces.Box(self.spec_action.low, self.spec_action.high, dtype=np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, self.observation_shape, np.float32)

    def problem(self, seed: int, split: Split = "train") -> Problem:
        generator = np.random.default_rng((seed, SPLITS.index(require_split(split)), 0x4A2E))
        goal = self.maze.sample_place(split, generator=generator)
        while True:
            start = self.maze.sample_place(split, generator=generator)
            # gymnasium-robotics' rule: not the goal's own cell.
            if np.linalg.norm(self.maze.centre(np.array(self.maze.cell(start))) - goal) > 0.5:
                break
        at_rest = np.zeros(2)
        return Problem(
            seed=seed,
            split=split,
            start=np.concatenate([start, at_rest]),
            goal=np.concatenate([goal, at_rest]),
            layout=np.zeros(0),
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        self._problem = problem_of(self, options, seed=chosen)
        self._state = self._problem.start.copy()
        return self._report()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        force = clip_action(self.spec_action, action)
        self._state = self.maze.advance(self._state, force[None])[0]
        observation, info = self._report()
        return observation, float(info["success"]), False, False, info

    def _report(self) -> tuple[np.ndarray, dict[str, Any]]:
        goal = self._problem.goal.astype(np.float32)
        return self._state.astype(np.float32), goal_info(self, self._problem, self._state, goal)

    def simulate(self, problem: Problem, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Exact, one state after the other."""
        forces = clip_action(self.spec_action, actions)
        return np.stack([self.maze.advance(s, f) for s, f in zip(states, forces, strict=True)])

    def render_states(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        return np.asarray(states).astype(np.float32)

    def distance(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        return self.maze.free_space.path_lengths(states[:, :2], problem.goal[:2])

    def success(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        return np.linalg.norm(states[:, :2] - problem.goal[:2], axis=1) <= RADIUS

    def expert(self, problem: Problem, state: np.ndarray) -> np.ndarray:
        """The action [2] of the data's behaviour without its noise: breadth-first search and a PD controller."""
        return pd_force(state, self.maze.waypoint(state[:2], problem.goal[:2]))


class PointMazeEpisodes:
    """The ball on its way to one random goal after the other (`envs.episodes.EpisodeSource`).

    Behaviour: the way from cell to cell by breadth-first search, a PD controller, and a normal force of std `noise`
    that is drawn anew every 10 steps. Goals that are reached within 0.2 m are replaced. Starts and goals are of the
    split; on the way the ball passes anywhere. Episodes are made when they are asked for, and kept.

    Labels: `state` [T, 4] x, y, vx, vy; `goal` [T, 2] the place headed for.

    Args:
        split: "train", "selection" or "test".
        maze: "UMaze", "Medium" or "Large".
        episodes: number of items, each of `length` observations; no item depends on it.
    """

    action = action_spec()
    observation_shape: tuple[int, ...] = (4,)

    def __init__(
        self,
        *,
        split: Split,
        maze: str = "UMaze",
        episodes: int = 2000,
        length: int = 401,
        noise: float = 0.5,
        seed: int = 0,
    ) -> None:
        if episodes < 1 or length < 2 or noise < 0:
            raise ValueError(
                f"episodes >= 1, length >= 2 and noise >= 0 are needed, got {episodes}, {length}, {noise}"
            )
        self.split, self.maze = require_split(split), Maze(maze)
        self.episodes, self.length, self.noise, self.seed = episodes, length, noise, seed
        self._kept = KeptEpisodes(self.whole, length=length)

    def __len__(self) -> int:
        return self.episodes

    def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Episode:
        """A random stretch of `steps` observations.

        Raises:
            ValueError: if the episodes are shorter.
        """
        return self._kept.cut(item, steps=steps, generator=generator)

    def whole(self, item: int) -> Episode:
        """The episode of `length` observations that stretches of an item are cut from."""
        generator = np.random.default_rng((self.seed, SPLITS.index(self.split), item, 0x4A2F))
        maze, place = self.maze, functools.partial(self.maze.sample_place, self.split, generator=generator)
        states, goals = np.empty((self.length, 4)), np.empty((self.length, 2))
        actions = np.empty((self.length - 1, 2), np.float32)
        states[0], goal, push = [*place(), 0.0, 0.0], place(), np.zeros(2)
        for t in range(self.length - 1):
            state, goals[t] = states[t], goal
            if t % 10 == 0:
                push = self.noise * generator.standard_normal(2)
            actions[t] = np.clip(pd_force(state, maze.waypoint(state[:2], goal)) + push, -1, 1)
            states[t + 1] = maze.advance(state, actions[t : t + 1])[0]
            if np.linalg.norm(states[t + 1, :2] - goal) < 0.2:
                goal = place()
        goals[-1] = goal
        seen = states.astype(np.float32)
        labels = {"state": seen, "goal": goals.astype(np.float32)}
        return Episode(observations=seen, actions=actions, item=item, labels=labels)
