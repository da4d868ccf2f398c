"""Splits, clipping and the conformance check, on a line with a dot; shortest paths against a grid."""

from typing import Any, Literal

import numpy as np
import pytest

from envs.episodes import ActionSpec
from envs.goals import (
    GoalEnv,
    Problem,
    Split,
    check_goal_env,
    clip_action,
    goal_info,
    problem_of,
    require_split,
    split_of,
    trivially_solved,
)
from envs.shortest_paths import FreeSpace


class Line:
    """A dot on a line, as small as a goal environment gets."""

    spec_action = ActionSpec(names=("dx",), low=-np.ones(1, np.float32), high=np.ones(1, np.float32))
    observation_shape: tuple[int, ...] = (1,)
    state_dim = 1
    success_at: Literal["any time", "end"] = "any time"
    radius = 0.5
    stretch = 1.0
    terminates = False
    clips = True

    def problem(self, seed: int, split: Split = "train") -> Problem:
        rng = np.random.default_rng((seed, ["train", "selection", "test"].index(split)))
        start, goal = rng.normal(size=(2, 1))
        return Problem(seed=seed, split=split, start=start, goal=goal, layout=np.zeros(0))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self._problem = problem_of(self, options, seed=seed or 0)
        self._state = self._problem.start
        return self._report()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._state = self._state + (clip_action(self.spec_action, action) if self.clips else action)
        observation, info = self._report()
        return observation, 0.0, self.terminates, False, info

    def _report(self) -> tuple[np.ndarray, dict[str, Any]]:
        goal = self._problem.goal.astype(np.float32)
        return self._state.astype(np.float32), goal_info(self, self._problem, self._state, goal)

    def simulate(self, problem: Problem, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        moves = clip_action(self.spec_action, actions)
        return states[:, None] + self.stretch * np.cumsum(moves, axis=1)

    def render_states(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        return states.astype(np.float32)

    def distance(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        return abs(states[:, 0] - problem.goal[0])

    def success(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        return self.distance(problem, states) < self.radius


def test_a_correct_environment_conforms() -> None:
    assert isinstance(Line(), GoalEnv)
    check_goal_env(Line())


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("stretch", 1.1, "simulate and step differ"),
        ("clips", False, "does not clip"),
        ("terminates", True, "terminated is not"),
        ("radius", 0.0, "the goal state is no success"),
    ],
)
def test_the_check_names_what_is_wrong(attribute: str, value: Any, message: str) -> None:
    env = Line()
    setattr(env, attribute, value)
    with pytest.raises(ValueError, match=message):
        check_goal_env(env)


def test_the_check_sees_a_problem_in_two_splits() -> None:
    class Leaking(Line):
        def problem(self, seed: int, split: Split = "train") -> Problem:
            same = super().problem(seed, "train")
            return Problem(seed=seed, split=split, start=same.start, goal=same.goal, layout=same.layout)

    with pytest.raises(ValueError, match="share a problem"):
        check_goal_env(Leaking())


def test_the_check_sees_a_goal_picture_of_another_state() -> None:
    class Wrong(Line):
        def _report(self) -> tuple[np.ndarray, dict[str, Any]]:
            observation, info = super()._report()
            return observation, {**info, "goal_observation": observation}

    with pytest.raises(ValueError, match="goal_observation"):
        check_goal_env(Wrong())


def test_trivial_problems_are_flagged() -> None:
    env = Line()
    near = Problem(seed=0, split="test", start=np.array([0.0]), goal=np.array([0.4]), layout=np.zeros(0))
    far = Problem(seed=0, split="test", start=np.array([0.0]), goal=np.array([0.6]), layout=np.zeros(0))
    assert trivially_solved(env, near)
    assert not trivially_solved(env, far)


def test_split_is_a_function_of_the_key_with_the_stated_shares() -> None:
    splits = [split_of(i, j) for i in range(100) for j in range(100)]
    assert splits == [split_of(i, j) for i in range(100) for j in range(100)]
    for split, share in (("train", 0.8), ("selection", 0.1), ("test", 0.1)):
        assert abs(np.mean([s == split for s in splits]) - share) < 0.012  # 3 standard errors
    assert split_of(3, 5) == split_of(*np.array([3, 5], np.int32).tolist())


def test_actions_are_clipped_to_bounds_and_norm() -> None:
    edge = np.full(2, 2.0, np.float32)
    spec = ActionSpec(names=("x", "y"), low=-edge, high=edge, max_norm=1.5)
    clipped = clip_action(spec, np.array([[3.0, 0.0], [1.0, 1.0], [-5.0, 5.0]]))
    assert np.allclose(clipped, [[1.5, 0.0], [1.0, 1.0], [-1.5 / 2**0.5, 1.5 / 2**0.5]])
    with pytest.raises(ValueError, match="NaN"):
        clip_action(spec, np.array([np.nan, 0.0]))
    with pytest.raises(ValueError, match=r"actions are \[..., 2\]"):
        clip_action(spec, np.zeros(3))


def test_errors_name_the_fix() -> None:
    with pytest.raises(ValueError, match="split must be one of"):
        require_split("val")
    with pytest.raises(ValueError, match="must be a Problem"):
        problem_of(Line(), {"problem": 3}, seed=0)
    with pytest.raises(ValueError, match=r"a start \[S\], a goal \[S\]"):
        Problem(seed=0, split="test", start=np.zeros(2), goal=np.zeros(3), layout=np.zeros(0))


def test_shortest_paths() -> None:
    boxes = np.array([[(2.0, -9.0), (3.0, 6.0)], [(5.0, 4.0), (6.0, 19.0)], [(5.0, 14.0), (19.0, 15.0)]])
    space = FreeSpace(low=np.zeros(2), high=np.full(2, 10.0), boxes=boxes)
    assert len(space.corners()) == 4
    starts = np.array([[1.0, 1.0], [2.0, 5.0], [7.0, 9.0], [8.0, 9.5]])
    lengths = space.path_lengths(starts, np.array([8.0, 9.0]))
    first = np.hypot(1, 5) + 1 + np.hypot(2, 2) + 1 + np.hypot(2, 5)
    assert lengths == pytest.approx([first, first - np.hypot(1, 5) + 1, 1.0, 0.5])
    walled = FreeSpace(low=np.zeros(2), high=np.full(2, 10.0), boxes=np.array([[(2.0, -1.0), (3.0, 11.0)]]))
    assert walled.path_lengths(np.array([[1.0, 1.0], [4.0, 1.0]]), np.array([8.0, 1.0])).tolist() == [
        np.inf,
        4.0,
    ]


def test_a_start_that_sinks_into_a_box_counts_from_its_face() -> None:
    space = FreeSpace(low=np.zeros(2), high=np.full(2, 10.0), boxes=np.array([[(2.0, -1.0), (3.0, 11.0)]]))
    starts = np.array([[2.9, 1.0], [3.0, 1.0]])
    assert space.path_lengths(starts, np.array([8.0, 1.0])).tolist() == [5.0, 5.0]
    assert starts[0, 0] == 2.9
