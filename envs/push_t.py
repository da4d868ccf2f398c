"""Push-T: a disc pushes a T-shaped block to a pose, and episodes of it to learn from."""

from typing import Any, Literal

import numpy as np

from envs.episodes import ActionSpec, Episode
from envs.goals import SPLITS, Problem, Split, clip_action, goal_info, problem_of, require_split, split_of
from envs.gym_base import Env, require
from envs.kept_episodes import KeptEpisodes
from envs.push_t_physics import (
    CENTRE_OF_GRAVITY,
    SIDE,
    STATE_DIM,
    coverage,
    sample_agent,
    sample_pose,
    shared_table,
    to_world,
)

MAX_DISPLACEMENT = 100.0
POSITION_ERROR, ANGLE_ERROR = 20.0, np.pi / 9  # stable-worldmodel's predicate
_POSE_SQUARE, _POSE_ANGLE = 8.0, np.pi / 16
_EDGE_ZONE = 140.0


def action_spec(*, relative: bool) -> ActionSpec:
    """Where the agent heads for during 0.1 s: from where it is, or on the table."""
    if relative:
        edge = np.full(2, MAX_DISPLACEMENT, np.float32)
        return ActionSpec(names=("dx [px]", "dy [px]"), low=-edge, high=edge)
    return ActionSpec(
        names=("x [px]", "y [px]"), low=np.zeros(2, np.float32), high=np.full(2, SIDE, np.float32)
    )


def observe(states: np.ndarray) -> np.ndarray:
    """Observations [..., 6] float32 of states [..., 7]: agent x, y and block x, y in [-1, 1], sine and cosine."""
    places = (states[..., [0, 1, 4, 5]] - SIDE / 2) / (SIDE / 2)
    angle = states[..., 6:]
    return np.concatenate([places, np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)


def pose_split(pose: np.ndarray) -> Split:
    """The split of a block's pose (x, y, angle), by its 8 px square and 1/32 of a turn."""
    x, y = np.floor(pose[:2] / _POSE_SQUARE).astype(int)
    return split_of(int(x), int(y), int(np.floor((pose[2] + np.pi) % (2 * np.pi) / _POSE_ANGLE)))


def sample_state(split: Split, *, generator: np.random.Generator) -> np.ndarray:
    """A state [7] at rest with a block's pose of the split."""
    while True:
        pose = sample_pose(generator=generator)
        if pose_split(pose) == split:
            return np.array([*sample_agent(pose, generator=generator), 0.0, 0.0, *pose])


class BlockHugger:
    """The data's behaviour: round the block to a random side, a push across it, and again. It has no goal.

    Weak on purpose: it knows where the block's centre is but not its shape, and a push leads where it leads. Near the
    edge of the table it pushes inwards: the disc is stronger than the edge and would squeeze the block through it.
    """

    def __init__(self, *, generator: np.random.Generator) -> None:
        self._generator = generator
        self._pushes = 0

    def _aim(self, inwards: np.ndarray, *, near_edge: bool) -> None:
        spread = 0.8 if near_edge else np.pi
        ahead = np.arctan2(inwards[1], inwards[0]) + self._generator.uniform(-spread, spread)
        self._ahead = np.array([np.cos(ahead), np.sin(ahead)])
        self._beside = self._generator.uniform(-40, 40)
        self._pushes = self._most = int(self._generator.integers(5, 15))

    def target(self, state: np.ndarray) -> np.ndarray:
        """Where to head for next [2], on the table."""
        agent, centre = state[:2], to_world(CENTRE_OF_GRAVITY[None], state[4:])[0]
        inwards = SIDE / 2 - centre
        near_edge = bool(abs(inwards).max() > SIDE / 2 - _EDGE_ZONE)
        if self._pushes <= 0 or (near_edge and self._ahead @ inwards < 0):
            self._aim(inwards, near_edge=near_edge)
        away, wanted = agent - centre, -self._ahead
        bearing = np.arctan2(away[1], away[0])
        turn = (np.arctan2(wanted[1], wanted[0]) - bearing + np.pi) % (2 * np.pi) - np.pi
        if abs(turn) < 0.35 or self._pushes < self._most:
            self._pushes -= 1
            target = centre + 40 * self._ahead + self._beside * np.array([-self._ahead[1], self._ahead[0]])
        else:
            towards = bearing + np.clip(turn, -0.7, 0.7)
            target = centre + 115 * np.array([np.cos(towards), np.sin(towards)])
        return np.clip(target + self._generator.normal(0, 8, 2), 10, SIDE - 10)

    def action(self, state: np.ndarray, *, relative: bool) -> np.ndarray:
        """The action [2] float32 that heads for the target."""
        target = self.target(state)
        return clip_action(action_spec(relative=relative), target - state[:2] if relative else target).astype(
            np.float32
        )


def behave(
    start: np.ndarray, steps: int, *, relative: bool, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """States [steps + 1, 7] and actions [steps, 2] of the behaviour from a state [7]."""
    hugger = BlockHugger(generator=generator)
    states, actions = np.empty((steps + 1, STATE_DIM)), np.empty((steps, 2), np.float32)
    states[0] = start
    for t in range(steps):
        actions[t] = hugger.action(states[t], relative=relative)
        states[t + 1] = shared_table().advance(
            states[t], actions[t : t + 1].astype(float), relative=relative
        )[0]
    return states, actions


class PushT(Env):
    """Bring agent and block to a goal (`envs.goals.GoalEnv`); see `push_t_physics` for the state.

    Observation [6] (`observe`): without the agent's speed, so one observation is not quite the state. Success, at any
    time: (agent x, y, block x, y) within 20 px of the goal and the angle within pi/9, stable-worldmodel's predicate.
    `info["coverage"]` is the share of the goal's T that is covered, which gym-pusht judges by (0.95 or more there).
    `distance` [px]: places and angle together, the angle counted such that both bounds are 20 px.

    The block's poses at the start belong to different splits (`pose_split`).

    Args:
        goals: "behaviour": where the data's behaviour is `ahead` steps after the start, so it can be reached;
            "random": any pose of the split, and any place of the agent beside it, whether or not it is easily reached.
        ahead: steps of 0.1 s from start to goal.
        relative: actions are displacements of up to 100 px an axis, else places on the table as in gym-pusht.
    """

    observation_shape: tuple[int, ...] = (6,)
    state_dim = STATE_DIM
    success_at: Literal["any time", "end"] = "any time"

    def __init__(
        self,
        *,
        goals: Literal["behaviour", "random"] = "behaviour",
        ahead: int = 25,
        relative: bool = True,
    ) -> None:
        spaces = require("gymnasium").spaces
        if goals not in ("behaviour", "random") or ahead < 1:
            raise ValueError(f'goals must be "behaviour" or "random" and ahead >= 1, got {goals!r}, {ahead}')
        self.goals, self.ahead, self.relative = goals, ahead, relative
        self.spec_action = action_spec(relative=relative)
        self.action_space = spaces.Box(self.spec_action.low, self.spec_action.high, dtype=np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, self.observation_shape, np.float32)

    def problem(self, seed: int, split: Split = "train") -> Problem:
        generator = np.random.default_rng((seed, SPLITS.index(require_split(split)), 0x7057))
        start = sample_state(split, generator=generator)
        if self.goals == "random":
            goal = sample_state(split, generator=generator)
        else:
            goal = behave(start, self.ahead, relative=True, generator=generator)[0][-1]
            goal[2:4] = 0.0
        return Problem(seed=seed, split=split, start=start, goal=goal, layout=np.zeros(0))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        self._problem = problem_of(self, options, seed=chosen)
        self._state = self._problem.start.copy()
        return self._report()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        clipped = clip_action(self.spec_action, action)
        self._state = shared_table().advance(self._state, clipped[None], relative=self.relative)[0]
        observation, info = self._report()
        return observation, float(info["success"]), False, False, info

    def _report(self) -> tuple[np.ndarray, dict[str, Any]]:
        info = goal_info(self, self._problem, self._state, observe(self._problem.goal))
        info["coverage"] = coverage(self._state[4:], self._problem.goal[4:])
        return observe(self._state), info

    def simulate(self, problem: Problem, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Exact, one state after the other."""
        clipped = clip_action(self.spec_action, actions)
        return np.stack(
            [
                shared_table().advance(s, a, relative=self.relative)
                for s, a in zip(states, clipped, strict=True)
            ]
        )

    def render_states(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        return observe(np.asarray(states))

    def distance(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        places, angles = goal_errors(problem, states)
        return np.hypot(places, angles * POSITION_ERROR / ANGLE_ERROR)

    def success(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        places, angles = goal_errors(problem, states)
        return (places < POSITION_ERROR) & (angles < ANGLE_ERROR)


def goal_errors(problem: Problem, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of states [N, 7]: distances [N] of (agent x, y, block x, y) in px, and of the angle in rad."""
    off = states - problem.goal
    turn = abs((off[:, 6] + np.pi) % (2 * np.pi) - np.pi)
    return np.linalg.norm(off[:, [0, 1, 4, 5]], axis=1), turn


class PushTEpisodes:
    """The behaviour `BlockHugger` from random starts (`envs.episodes.EpisodeSource`), made on demand and kept.

    Labels: `state` [T, 7].

    Args:
        split: of the block's pose at the start; "train", "selection" or "test".
        episodes: number of items, each of `length` observations 0.1 s apart; no item depends on it.
        relative: as in `PushT`.
    """

    observation_shape: tuple[int, ...] = (6,)

    def __init__(
        self,
        *,
        split: Split,
        episodes: int = 1000,
        length: int = 201,
        relative: bool = True,
        seed: int = 0,
    ) -> None:
        if episodes < 1 or length < 2:
            raise ValueError(f"episodes >= 1 and length >= 2 are needed, got {episodes} and {length}")
        shared_table()  # a missing package shows here, not in a worker
        self.split, self.episodes, self.relative, self.seed = require_split(split), episodes, relative, seed
        self.action = action_spec(relative=relative)
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
        generator = np.random.default_rng((self.seed, SPLITS.index(self.split), item, 0x7058))
        start = sample_state(self.split, generator=generator)
        states, actions = behave(start, self._kept.length - 1, relative=self.relative, generator=generator)
        return Episode(
            observations=observe(states),
            actions=actions,
            item=item,
            labels={"state": states.astype(np.float32)},
        )
