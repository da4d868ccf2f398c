"""What a planner returns, what it may spend, and its contract."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch

from worldmodel.batches import LatentState
from worldmodel.planning.costs import Cost
from worldmodel.protocols import WorldModel

StoppedBy = Literal["iterations", "predictor_steps", "seconds"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of one decision; None is no limit.

    Attributes:
        predictor_steps: imagined steps per environment: candidates x horizon, summed over the iterations. Never
            exceeded.
        seconds: wall time of the call for all environments together. No iteration is begun that would end later if it
            took as long as the longest so far; the first one is always run.
    """

    predictor_steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.predictor_steps is not None and self.predictor_steps < 1:
            raise ValueError(f"a budget of predictor steps is at least 1, got {self.predictor_steps}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"a budget of seconds is positive, got {self.seconds}")


@dataclass(frozen=True, kw_only=True)
class PlanAccounting:
    """What a decision cost.

    Attributes:
        predictor_steps: imagined steps per environment.
        seconds: wall time of the call.
        clipped_share: share of the numbers drawn, or arrived at by a step of descent, that the projection into the
            bounds changed; mean over the iterations.
        cost_trace: [iterations, B], lowest cost found by the end of each iteration.
        stopped_by: what ended the search.
    """

    predictor_steps: int
    seconds: float
    clipped_share: float
    cost_trace: torch.Tensor
    stopped_by: StoppedBy

    @property
    def iterations(self) -> int:
        return len(self.cost_trace)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan for each of B environments, and the distribution it came from.

    Attributes:
        actions: [B, H, A], to execute; within the bounds.
        mean: [B, H, A] of the last distribution; within the bounds.
        spread: [B, H, A], its standard deviation.
        cost: [B], lowest cost of a candidate.
        accounting: of the decision; None for a proposal.
        elites: [B, E, H, A], the best candidates, where the planner keeps them for the next decision.
    """

    actions: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor
    cost: torch.Tensor
    accounting: PlanAccounting | None = None
    elites: torch.Tensor | None = None

    @classmethod
    def proposal(cls, mean: torch.Tensor) -> "Plan":
        """A guess [B, H, A] to start a search from, in the place of an earlier plan."""
        cost = mean.new_full((len(mean),), torch.inf)
        return cls(actions=mean, mean=mean, spread=torch.zeros_like(mean), cost=cost)

    def shifted(self, steps: int) -> "Plan":
        """The plan after `steps` of it were executed: what is left, then zeros. The warm start of the next decision."""
        if steps < 0:
            raise ValueError(f"a plan is shifted forwards, got {steps}")
        return replace(
            self,
            actions=_shifted(self.actions, steps),
            mean=_shifted(self.mean, steps),
            spread=_shifted(self.spread, steps),
            elites=None if self.elites is None else _shifted(self.elites, steps),
        )

    def rows(self, index: torch.Tensor) -> "Plan":
        """The plans of some of the environments, without the accounting, which is of all."""
        return Plan(
            actions=self.actions[index],
            mean=self.mean[index],
            spread=self.spread[index],
            cost=self.cost[index],
            elites=None if self.elites is None else self.elites[index],
        )


def _shifted(actions: torch.Tensor, steps: int) -> torch.Tensor:
    left = actions[..., steps:, :]
    empty = actions.new_zeros(*actions.shape[:-2], actions.shape[-2] - left.shape[-2], actions.shape[-1])
    return torch.cat([left, empty], dim=-2)


class Planner(Protocol):
    """Searches for actions of low cost in the imagination of a world model.

    Sees nothing of the model but `rollout`. Random numbers are functions of an environment's seed, the step and the
    iteration: a plan does not depend on which other environments are planned for, and no global generator is used.
    """

    @property
    def horizon(self) -> int: ...

    def plan(
        self,
        model: WorldModel,
        state: LatentState,
        cost: Cost,
        *,
        seeds: Sequence[int],
        step: int,
        warm: Plan | None = None,
    ) -> Plan:
        """A plan from the state of each of B environments.

        Args:
            state: B rows.
            cost: of B rows.
            seeds: one per environment.
            step: number of the decision in the episode.
            warm: earlier plan to start from, already shifted by what was executed of it.

        Raises:
            ValueError: if seeds, state and warm start disagree, the model is in training mode, or every candidate of an
                environment has a cost that is not finite.
        """
        ...
