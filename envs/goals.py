"""Problems with a start and a goal, and what an environment must offer to plan in it and to be judged by it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np

from envs.episodes import ActionSpec

Split = Literal["train", "selection", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SHARES = {"train": 0.8, "selection": 0.1, "test": 0.1}


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """One thing to do: get from a start state to a goal state in a layout. All random choices are made.

    Attributes:
        seed: the seed it was drawn with.
        split: the split it belongs to.
        start, goal: states [S] float64.
        layout: [L] float64, what is fixed during an episode (where the walls are); may be empty.
    """

    seed: int
    split: Split
    start: np.ndarray
    goal: np.ndarray
    layout: np.ndarray

    def __post_init__(self) -> None:
        if self.start.ndim != 1 or self.start.shape != self.goal.shape or self.layout.ndim != 1:
            raise ValueError(
                f"a problem has a start [S], a goal [S] and a layout [L], got {self.start.shape}, "
                f"{self.goal.shape} and {self.layout.shape}"
            )


@runtime_checkable
class GoalEnv(Protocol):
    """A gymnasium.Env that poses problems, and its dynamics as plain functions of the state.

    `step` clips the action (`clip_action`) and keeps `terminated` False: success is `info["success"]`, nothing else.
    Every `info` of `reset` and `step` holds

        state             [S] float64
        goal_state        [S] float64
        goal_observation  as the goal looks from the goal state, like an observation
        success           bool, the predicate at this moment; `success_at` says what it means for an episode
        distance          float, true distance to the goal

    Attributes:
        spec_action: of a single step.
        observation_shape: of one observation.
        state_dim: S, the length of a state. A state is all that the dynamics depend on besides the layout.
        success_at: "any time" if an episode succeeds once the predicate held, "end" if it must hold in the end.
    """

    spec_action: ActionSpec
    observation_shape: tuple[int, ...]
    state_dim: int
    success_at: Literal["any time", "end"]

    def problem(self, seed: int, split: Split = "train") -> Problem:
        """A pure function of its arguments. No problem is in two splits."""
        ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts `options["problem"]`, or the training problem of `seed`."""
        ...

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]: ...

    def simulate(self, problem: Problem, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """States [N, H, S] after each of the actions [N, H, A] from states [N, S]; leaves the episode alone."""
        ...

    def render_states(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        """Observations [N, ...] of states [N, S]."""
        ...

    def distance(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        """True distances [N] of states [N, S] to the goal."""
        ...

    def success(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        """The success predicate [N] bool for states [N, S]."""
        ...


def split_of(*key: int) -> Split:
    """The split of whatever the integers name: 80 % train, 10 % selection, 10 % test, by a hash of them alone.

    Nothing is drawn, so that a problem made today and an episode made next year agree about it.
    """
    digest = hashlib.blake2b(np.asarray(key, dtype="<i8").tobytes(), digest_size=8, person=b"split").digest()
    place = int.from_bytes(digest, "little") / 2**64
    if place < SHARES["train"]:
        return "train"
    return "selection" if place < SHARES["train"] + SHARES["selection"] else "test"


def require_split(split: str) -> Split:
    """The argument, if it names a split.

    Raises:
        ValueError: if it does not.
    """
    for known in SPLITS:
        if split == known:
            return known
    raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def clip_action(spec: ActionSpec, actions: np.ndarray) -> np.ndarray:
    """Actions [..., A] float64 in the bounds, then shortened to `max_norm` where they are longer.

    Raises:
        ValueError: on a wrong last dimension, or on NaN: an environment that moves on NaN hides a broken planner.
    """
    actions = np.asarray(actions, dtype=np.float64)
    if actions.shape[-1:] != (spec.dim,):
        raise ValueError(f"actions are [..., {spec.dim}] ({', '.join(spec.names)}), got {actions.shape}")
    if np.isnan(actions).any():
        raise ValueError("an action is NaN: look at the planner's costs")
    clipped = np.clip(actions, spec.low, spec.high)
    if spec.max_norm is None:
        return clipped
    norm = np.linalg.norm(clipped, axis=-1, keepdims=True)
    return clipped * np.minimum(1.0, spec.max_norm / np.maximum(norm, 1e-12))


def goal_info(
    env: GoalEnv, problem: Problem, state: np.ndarray, goal_observation: np.ndarray
) -> dict[str, Any]:
    """What `reset` and `step` report about a state [S]."""
    return {
        "state": np.array(state, dtype=np.float64),
        "goal_state": problem.goal.copy(),
        "goal_observation": goal_observation.copy(),
        "success": bool(env.success(problem, state[None])[0]),
        "distance": float(env.distance(problem, state[None])[0]),
    }


def problem_of(env: GoalEnv, options: Mapping[str, Any] | None, *, seed: int) -> Problem:
    """The problem `reset` is to start: that of the options, or the training problem of the seed.

    Raises:
        ValueError: if the options hold something else, or a state of another environment.
    """
    options = options or {}
    problem = options.get("problem")
    if problem is None:
        return env.problem(seed)
    if not isinstance(problem, Problem) or problem.start.shape != (env.state_dim,):
        raise ValueError(
            f'options["problem"] must be a Problem with states [{env.state_dim}], as env.problem makes it'
        )
    return problem


def trivially_solved(env: GoalEnv, problem: Problem) -> bool:
    """Whether doing nothing solves it: the start already satisfies the success predicate.

    Such problems belong in no success rate (they inflate it); report their share.
    """
    return bool(env.success(problem, problem.start[None])[0])


def check_goal_env(env: GoalEnv, *, seeds: int = 8, steps: int = 6, atol: float = 1e-6) -> None:
    """Conformance of an environment with `GoalEnv`.

    Args:
        seeds: problems per split that are looked at.
        steps: length of the episode that is compared with `simulate`.
        atol: largest difference of a state between `step` and `simulate`.

    Raises:
        ValueError: naming what is wrong.
    """
    problems = {split: [env.problem(seed, split) for seed in range(seeds)] for split in SPLITS}
    _check_problems(env, problems)
    rng = np.random.default_rng(0)
    spec = env.spec_action
    scale = np.where(np.isfinite(spec.high - spec.low), spec.high - spec.low, 2.0)
    for split in SPLITS:
        problem = problems[split][0]
        # Twice the range, so that clipping is looked at too.
        actions = (spec.low + spec.high) / 2 + scale * rng.uniform(-1, 1, (steps, spec.dim))
        first, again = (_episode(env, problem, actions) for _ in range(2))
        clipped = _episode(env, problem, clip_action(spec, actions))
        _require(np.array_equal(first, again), "the same actions led to different states")
        _require(
            np.allclose(first, clipped, rtol=0, atol=atol), "step does not clip actions as clip_action does"
        )
        imagined = env.simulate(problem, problem.start[None], actions[None])
        _require(
            imagined.shape == (1, steps, env.state_dim),
            f"simulate returned {imagined.shape}, expected {(1, steps, env.state_dim)}",
        )
        worst = float(np.abs(imagined[0] - first[1:]).max())
        _require(worst <= atol, f"simulate and step differ by {worst:.3g}, more than {atol:.3g}")


def _check_problems(env: GoalEnv, problems: Mapping[Split, list[Problem]]) -> None:
    keys = {
        split: {p.layout.tobytes() + p.start.tobytes() + p.goal.tobytes() for p in problems[split]}
        for split in SPLITS
    }
    for split, other in (("train", "selection"), ("train", "test"), ("selection", "test")):
        _require(not keys[split] & keys[other], f"{split} and {other} share a problem")  # type: ignore[index]
    for split in SPLITS:
        for problem in problems[split]:
            same = env.problem(problem.seed, split)
            _require(problem.split == split, f"a problem of {split} says it is of {problem.split}")
            _require(
                np.array_equal(problem.start, same.start)
                and np.array_equal(problem.goal, same.goal)
                and np.array_equal(problem.layout, same.layout),
                f"problem({problem.seed}, {split!r}) is not the same twice",
            )
            at_goal = env.success(problem, problem.goal[None])
            _require(at_goal.shape == (1,) and bool(at_goal[0]), "the goal state is no success")
            _require(abs(float(env.distance(problem, problem.goal[None])[0])) < 1e-9, "goal at a distance")


def _episode(env: GoalEnv, problem: Problem, actions: np.ndarray) -> np.ndarray:
    """States [T, S] of an episode, checked."""
    observation, info = env.reset(seed=0, options={"problem": problem})
    states = []
    for action in [*actions, None]:
        _require(observation.shape == env.observation_shape, f"an observation is {observation.shape}")
        state, goal = info["state"], info["goal_state"]
        seen = env.render_states(problem, np.stack([state, goal]))
        _require(np.array_equal(seen[0], observation), "render_states(state) is not the observation")
        _require(
            np.array_equal(seen[1], info["goal_observation"]), "goal_observation is not the rendered goal"
        )
        _require(
            info["success"] == bool(env.success(problem, state[None])[0]), "info: success is not success()"
        )
        states.append(state)
        if action is not None:
            observation, _, terminated, _, info = env.step(action)
            _require(not terminated, "terminated is not how success or failure is reported here")
    return np.stack(states)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
