"""What all planners share: starting point, evaluation of candidates, and the books of one decision."""

import time
from collections.abc import Sequence

import torch
from torch import nn

from worldmodel.batches import LatentState
from worldmodel.planning.bounds import ActionBounds
from worldmodel.planning.costs import Cost
from worldmodel.planning.plan import Budget, Plan, PlanAccounting, StoppedBy
from worldmodel.protocols import WorldModel


def check_call(
    model: WorldModel, state: LatentState, seeds: Sequence[int], warm: Plan | None, shape: tuple[int, int]
) -> None:
    """Raise ValueError where the arguments of `Planner.plan` disagree; shape is (horizon, action dim)."""
    if isinstance(model, nn.Module) and model.training:
        raise ValueError(
            "the world model is in training mode, where rows can depend on each other: model.eval()"
        )
    if len(seeds) != len(state):
        raise ValueError(f"{len(state)} environments need as many seeds, got {len(seeds)}")
    if state.actions.shape[-1] != shape[1]:
        raise ValueError(
            f"the state holds actions of width {state.actions.shape[-1]}, the bounds of width {shape[1]} (block x A)"
        )
    if warm is not None and warm.mean.shape != (len(state), *shape):
        raise ValueError(f"the warm start must be {(len(state), *shape)}, got {tuple(warm.mean.shape)}")


def start(
    bounds: ActionBounds,
    state: LatentState,
    *,
    horizon: int,
    spread: float | Sequence[float] | None,
    warm: Plan | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [B, H, block * A] that a search begins with.

    The mean is the warm start or zero, within the bounds.
    """
    shape = (len(state), horizon, bounds.dim)
    mean = state.actions.new_zeros(shape) if warm is None else warm.mean.to(state.actions)
    each = bounds.default_spread() if spread is None else torch.as_tensor(spread, dtype=torch.float32)
    each = each.expand(len(bounds.low)) if each.ndim == 0 else each
    if each.shape != bounds.low.shape or not bool((each > 0).all()):
        raise ValueError(f"the spread is positive, one number or one per action dimension, got {spread}")
    return bounds.project(mean), each.repeat(bounds.block).to(mean).expand(shape).contiguous()


class Evaluator:
    """Costs of candidates, and how many imagined steps they took.

    Args:
        chunk: candidates per environment imagined at once; all without. Bounds the memory.
    """

    def __init__(self, model: WorldModel, state: LatentState, cost: Cost, *, chunk: int | None) -> None:
        self.model, self.state, self.cost, self.chunk = model, state, cost, chunk
        self.predictor_steps = 0
        self._repeated: dict[int, LatentState] = {}

    def __call__(self, candidates: torch.Tensor) -> torch.Tensor:
        """Costs [B, K] of candidates [B, K, H, A]."""
        count, horizon = candidates.shape[1:3]
        parts = [self._part(part) for part in candidates.split(self.chunk or count, dim=1)]
        self.predictor_steps += count * horizon
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _part(self, candidates: torch.Tensor) -> torch.Tensor:
        batch, count = candidates.shape[:2]
        if count not in self._repeated:
            self._repeated[count] = self.state.repeat(count)
        imagined = self.model.rollout(self._repeated[count], candidates.flatten(0, 1))
        costs = self.cost(imagined.unflatten(0, (batch, count)), candidates)
        if costs.shape != (batch, count):
            raise ValueError(
                f"a cost must be [B, K] = {(batch, count)}, got {tuple(costs.shape)}: reduce over the horizon"
            )
        return costs


class Books:
    """Best candidate so far, cost trace and budget of one decision."""

    def __init__(self, *, budget: Budget, evaluator: Evaluator, horizon: int) -> None:
        self._began = self._last = time.perf_counter()
        self._longest = 0.0
        self._budget, self._evaluator, self._horizon = budget, evaluator, horizon
        self._trace: list[torch.Tensor] = []
        self._clipped: list[float] = []
        self._best: tuple[torch.Tensor, torch.Tensor] | None = None

    def affordable(self, candidates: int) -> tuple[int, StoppedBy]:
        """How many of the candidates the next iteration may imagine, and the reason if it is none.

        Only the first iteration is cut to what the budget allows; a later one that does not fit is not begun.
        """
        limit, first = self._budget, not self._trace
        if limit.predictor_steps is not None:
            left = (limit.predictor_steps - self._evaluator.predictor_steps) // self._horizon
            if left < candidates:
                if first and left < 1:
                    raise ValueError(
                        f"a budget of {limit.predictor_steps} predictor steps is less than the horizon {self._horizon}"
                    )
                return (left if first else 0), "predictor_steps"
        if limit.seconds is not None and not first:
            now = time.perf_counter()
            self._longest, self._last = max(self._longest, now - self._last), now
            if now - self._began + self._longest > limit.seconds:
                return 0, "seconds"
        return candidates, "iterations"

    def note(self, candidates: torch.Tensor, costs: torch.Tensor, clipped_share: float) -> None:
        """Enter an iteration: candidates [B, K, H, A] with their costs [B, K]."""
        lowest, index = costs.min(dim=1)
        found = candidates[torch.arange(len(costs), device=costs.device), index]
        if self._best is not None:
            better = lowest < self._best[1]
            found = torch.where(better[:, None, None], found, self._best[0])
            lowest = torch.where(better, lowest, self._best[1])
        elif not bool(lowest.isfinite().all()):
            bad = (~lowest.isfinite()).nonzero().flatten().tolist()
            raise ValueError(
                f"no candidate of environments {bad} has a finite cost: check model and observations"
            )
        self._best = (found, lowest)
        self._trace.append(lowest)
        self._clipped.append(clipped_share)

    @property
    def best(self) -> torch.Tensor:
        """Best candidate so far, [B, H, A]."""
        assert self._best is not None
        return self._best[0]

    def close(
        self,
        *,
        mean: torch.Tensor,
        spread: torch.Tensor,
        stopped_by: StoppedBy,
        execute_mean: bool,
        elites: torch.Tensor | None = None,
    ) -> Plan:
        """The plan. Tensors are copies: what was made in inference mode cannot take part in autograd."""
        assert self._best is not None
        best, lowest = self._best
        accounting = PlanAccounting(
            predictor_steps=self._evaluator.predictor_steps,
            seconds=time.perf_counter() - self._began,
            clipped_share=sum(self._clipped) / len(self._clipped),
            cost_trace=torch.stack(self._trace).clone(),
            stopped_by=stopped_by,
        )
        return Plan(
            actions=(mean if execute_mean else best).clone(),
            mean=mean.clone(),
            spread=spread.clone(),
            cost=lowest.clone(),
            accounting=accounting,
            elites=None if elites is None else elites.clone(),
        )
