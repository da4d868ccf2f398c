"""A goal environment of a few lines, and agents that are known to succeed or fail in it."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from envs.episodes import ActionSpec
from envs.goals import SPLITS, GoalEnv, Problem, Split, clip_action, goal_info
from policies.rollouts import Decision, Situation


class Plane:
    """A point that moves by its action, at most 1 in either direction. Success: within 0.5 of the goal.

    Args:
        pit: episodes terminate where x is above this.
        near: share of problems that are solved at their start.
        success_at: as in `GoalEnv`.
    """

    spec_action = ActionSpec(
        names=("dx [m]", "dy [m]"), low=-np.ones(2, np.float32), high=np.ones(2, np.float32)
    )
    observation_shape: tuple[int, ...] = (2,)
    state_dim = 2

    def __init__(
        self, *, pit: float = np.inf, near: float = 0.0, success_at: Literal["any time", "end"] = "any time"
    ) -> None:
        self.pit, self.near, self.success_at = pit, near, success_at

    def problem(self, seed: int, split: Split = "train") -> Problem:
        rng = np.random.default_rng((seed, SPLITS.index(split)))
        start = rng.uniform(-4, 4, 2)
        far = rng.uniform(2, 6) * np.array([np.cos(angle := rng.uniform(0, 6.28)), np.sin(angle)])
        goal = start + (0.1 if rng.random() < self.near else 1.0) * far * (0.1 if self.near == 1 else 1)
        return Problem(seed=seed, split=split, start=start, goal=goal, layout=np.zeros(0))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        assert options is not None
        self.now: Problem = options["problem"]
        self.at = self.now.start.copy()
        return self._report()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.at = self.at + clip_action(self.spec_action, action)
        observation, info = self._report()
        return observation, 0.0, bool(self.at[0] > self.pit), False, info

    def _report(self) -> tuple[np.ndarray, dict[str, Any]]:
        return self.at.astype(np.float32), goal_info(
            self, self.now, self.at, self.now.goal.astype(np.float32)
        )

    def simulate(self, problem: Problem, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return states[:, None] + np.cumsum(clip_action(self.spec_action, actions), axis=1)

    def render_states(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        return np.asarray(states, np.float32)

    def distance(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        return np.linalg.norm(states - problem.goal, axis=1)

    def success(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        return self.distance(problem, states) < 0.5


class Walker:
    """Goes straight to the goal, `speed` a step, and on past it if `stop` is not set."""

    inputs = "state and goal state"

    def __init__(self, *, speed: float = 1.0, chunk: int = 1, stop: bool = True) -> None:
        self.speed, self.chunk, self.stop = speed, chunk, stop
        self.calls = 0

    def start(self, env: GoalEnv, problems: Sequence[Problem]) -> None:
        self.problems = problems
        self.heading = [p.goal - p.start for p in problems]

    def decide(self, situation: Situation) -> Decision:
        self.calls += 1
        if self.stop:
            way = situation.goal_states - situation.states
        else:
            way = np.stack([self.heading[row] for row in situation.rows])
        reach = np.maximum(np.linalg.norm(way, axis=1, keepdims=True), self.speed if self.stop else 1e-9)
        actions = way / reach * self.speed / np.sqrt(2)
        return Decision(actions=np.repeat(actions[:, None], self.chunk, axis=1), predictor_steps=7)
