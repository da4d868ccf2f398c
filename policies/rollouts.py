"""Closed-loop episodes of one agent on given problems, several at a time in lockstep.

Which problems are run together is fixed before the first step, and every one of them is run to its end: nothing is
counted by who finishes first, which would favour short episodes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from envs.goals import GoalEnv, Problem


class AgentError(RuntimeError):
    """An agent does not fit the environment, or returned actions that cannot be executed."""


@dataclass(frozen=True, kw_only=True)
class EpisodeBudget:
    """What an episode may use.

    Attributes:
        env_steps: steps of the environment.
        seconds: of deciding, or None. Decisions are made for a batch at once; each of its B episodes is charged a B-th
            of the time. An episode whose time is up ends there. Results then depend on the machine.
    """

    env_steps: int
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.env_steps < 1 or (self.seconds is not None and not self.seconds > 0):
            raise ValueError(f"a budget is at least one step and more than 0 s, got {self}")


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What B agents see at a decision. An agent says in `inputs` which of it is read.

    Attributes:
        rows: [B] which of the episodes given to `Agent.start` these are.
        step: environment steps since the start.
        observations, goal_observations: [B, ...].
        states, goal_states: [B, S], the simulator's own.
    """

    rows: np.ndarray
    step: int
    observations: np.ndarray
    goal_observations: np.ndarray
    states: np.ndarray
    goal_states: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What B agents do next.

    Attributes:
        actions: [B, K, A], executed one after another before the agent is asked again.
        planned: whether this was a decision, not what was left of an earlier one.
        predictor_steps: applications of the world model, per episode.
        clipped: share of candidate actions that the bounds changed, if there are any.
        costs: [iterations, B], lowest cost found by the end of each iteration of a search.
    """

    actions: np.ndarray
    planned: bool = True
    predictor_steps: float = 0.0
    clipped: float | None = None
    costs: np.ndarray | None = None


@runtime_checkable
class Agent(Protocol):
    """Acts in several episodes at once, the same whatever runs beside. Random draws depend on (seed, problem, step).

    Attributes:
        inputs: what it reads, for the report: "pixels", "true state and simulator".
    """

    inputs: str

    def start(self, env: GoalEnv, problems: Sequence[Problem]) -> None:
        """Episodes of these problems begin. Only an oracle may look at more than their number and seeds."""
        ...

    def decide(self, situation: Situation) -> Decision: ...


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One finished episode.

    Attributes:
        seed: of the problem.
        first_success: environment steps until the success predicate first held, or None.
        at_end: whether it held after the last step; None if the episode was ended at its first success.
        steps: executed.
        failed: the environment terminated the episode before its success; that is a failure, whatever came later.
        out_of_time: the budget of seconds ended it.
        start_distance, end_distance: true distance to the goal.
        decisions, predictor_steps, seconds: spent on deciding.
        clipped: mean share of candidate actions that the bounds changed.
        costs: mean over the searches of the lowest cost after each iteration.
        path: states [steps + 1, S].
    """

    seed: int
    first_success: int | None
    at_end: bool | None
    steps: int
    failed: bool
    out_of_time: bool
    start_distance: float
    end_distance: float
    decisions: int
    predictor_steps: float
    seconds: float
    clipped: float | None
    costs: tuple[float, ...]
    path: tuple[tuple[float, ...], ...] = field(repr=False)

    @property
    def any_time(self) -> bool:
        return self.first_success is not None

    def json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Episode":
        lists = {"costs": tuple(content["costs"]), "path": tuple(tuple(state) for state in content["path"])}
        return cls(**{**content, **lists})


class _Running:
    """One episode on its way."""

    def __init__(self, env: GoalEnv, problem: Problem) -> None:
        self.env, self.problem = env, problem
        self.observation, self.info = env.reset(options={"problem": problem})
        self.start_distance = float(self.info["distance"])
        self.path = [np.array(self.info["state"], dtype=np.float64)]
        self.first_success: int | None = 0 if self.info["success"] else None
        self.steps = self.decisions = 0
        self.predictor_steps = self.seconds = 0.0
        self.clipped: list[float] = []
        self.costs: list[np.ndarray] = []
        self.over = self.failed = self.out_of_time = False

    def step(self, action: np.ndarray, *, budget: EpisodeBudget, play_on: bool) -> None:
        self.observation, _, terminated, truncated, self.info = self.env.step(action)
        self.steps += 1
        self.path.append(np.array(self.info["state"], dtype=np.float64))
        if self.info["success"] and self.first_success is None:
            self.first_success = self.steps
        if terminated and self.first_success is None:
            self.failed = True
        ended = terminated or truncated or self.steps >= budget.env_steps
        self.over = ended or (self.first_success is not None and not play_on)

    def account(self, decision: Decision, row: int, *, seconds: float, budget: EpisodeBudget) -> None:
        self.decisions += decision.planned
        self.seconds += seconds
        self.predictor_steps += decision.predictor_steps
        if decision.clipped is not None:
            self.clipped.append(decision.clipped)
        if decision.costs is not None:
            self.costs.append(decision.costs[:, row])
        if budget.seconds is not None and self.seconds > budget.seconds:
            self.over = self.out_of_time = True

    def _mean_costs(self) -> tuple[float, ...]:
        """Searches that a time limit ended early are shorter: as many iterations as all of them had."""
        shortest = min((len(c) for c in self.costs), default=0)
        return tuple(float(np.mean([c[i] for c in self.costs])) for i in range(shortest))

    def episode(self, *, play_on: bool) -> Episode:
        return Episode(
            seed=self.problem.seed,
            first_success=self.first_success,
            at_end=bool(self.info["success"]) if play_on or self.first_success is None else None,
            steps=self.steps,
            failed=self.failed,
            out_of_time=self.out_of_time,
            start_distance=self.start_distance,
            end_distance=float(self.info["distance"]),
            decisions=self.decisions,
            predictor_steps=self.predictor_steps,
            seconds=self.seconds,
            clipped=float(np.mean(self.clipped)) if self.clipped else None,
            costs=self._mean_costs(),
            path=tuple(tuple(round(float(x), 5) for x in state) for state in self.path),
        )


def rollout(
    agent: Agent,
    *,
    envs: Sequence[GoalEnv],
    problems: Sequence[Problem],
    budget: EpisodeBudget,
    play_on: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> tuple[Episode, ...]:
    """Run one episode per problem, all in lockstep.

    Args:
        envs: one per problem.
        play_on: go on after the first success to the end of the budget, so that success at the end is known too.
        on_step: called with the number of episodes that stepped, for progress.

    Raises:
        AgentError: naming the problem, if an action is NaN or of a wrong shape.
    """
    if len(envs) != len(problems):
        raise ValueError(f"{len(problems)} problems need as many environments, got {len(envs)}")
    running = [_Running(env, problem) for env, problem in zip(envs, problems, strict=True)]
    agent.start(envs[0], problems)
    step = 0
    while rows := [i for i, episode in enumerate(running) if not episode.over]:
        active = [running[i] for i in rows]
        began = time.perf_counter()
        decision = agent.decide(_situation(active, np.array(rows), step))
        seconds = (time.perf_counter() - began) / len(active)
        actions = _checked(decision.actions, agent, active)
        for row, episode in enumerate(active):
            episode.account(decision, row, seconds=seconds, budget=budget)
        for k in range(actions.shape[1]):
            stepped = [(e, row) for e, row in zip(active, actions, strict=True) if not e.over]
            for episode, row in stepped:
                episode.step(row[k], budget=budget, play_on=play_on)
            if on_step is not None:
                on_step(len(stepped))
        step += actions.shape[1]
    return tuple(episode.episode(play_on=play_on) for episode in running)


def batches(count: int, size: int) -> Iterator[range]:
    """Indices of the problems that are run together: fixed by these two numbers alone."""
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


def _situation(active: Sequence[_Running], rows: np.ndarray, step: int) -> Situation:
    return Situation(
        rows=rows,
        step=step,
        observations=np.stack([e.observation for e in active]),
        goal_observations=np.stack([e.info["goal_observation"] for e in active]),
        states=np.stack([e.info["state"] for e in active]),
        goal_states=np.stack([e.info["goal_state"] for e in active]),
    )


def _checked(actions: np.ndarray, agent: Agent, active: Sequence[_Running]) -> np.ndarray:
    spec, name = active[0].env.spec_action, type(agent).__name__
    if actions.ndim != 3 or actions.shape[0] != len(active) or actions.shape[2] != spec.dim:
        raise AgentError(
            f"{name} returned actions {actions.shape}, expected [{len(active)}, K, {spec.dim}] for "
            f"{', '.join(spec.names)}: the agent was made for another environment"
        )
    if actions.shape[1] < 1:
        raise AgentError(f"{name} decided on no action at all: a decision holds at least one")
    bad = ~np.isfinite(actions)
    if bad.any():
        row, k, dim = (int(i) for i in np.argwhere(bad)[0])
        problem, at = active[row].problem, active[row].steps + k
        raise AgentError(
            f"{name} returned {actions[row, k, dim]} for {spec.names[dim]!r} at step {at} of problem {problem.seed} "
            f"({problem.split}): look at the costs its planner saw there"
        )
    return actions
