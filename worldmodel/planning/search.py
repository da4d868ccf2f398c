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
        self.predictor_steps += count * horizon
        if self.chunk is None or self.chunk >= count:
            return self._part(candidates)
        return torch.cat([self._part(part) for part in candidates.split(self.chunk, dim=1)], dim=1)

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


def cheapest(candidates: torch.Tensor, costs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` candidates [B, E, H, A] of lowest cost out of [B, K, H, A], best first, and their costs [B, E].

    A cost of NaN counts as infinite.
    """
    batch, total = costs.shape
    values, index = costs.topk(min(count, total), dim=1, largest=False)  # puts NaN last
    if batch == 1:
        return candidates[0].index_select(0, index[0]).unsqueeze(0), values
    rows = index + torch.arange(0, batch * total, total, device=costs.device).unsqueeze(1)
    return candidates.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, index.shape), values


class Books:
    """Best candidates, cost trace and budget of one decision. Nothing is computed before it is asked for."""

    def __init__(self, *, budget: Budget, evaluator: Evaluator, horizon: int) -> None:
        self._began = self._last = time.perf_counter()
        self._longest = 0.0
        self._budget, self._evaluator, self._horizon = budget, evaluator, horizon
        self._best: list[torch.Tensor] = []
        self._lowest: list[torch.Tensor] = []
        self._clipped: list[torch.Tensor] = []

    def affordable(self, candidates: int) -> tuple[int, StoppedBy]:
        """How many of the candidates the next iteration may imagine, and the reason if it is none.

        Only the first iteration is cut to what the budget allows; a later one that does not fit is not begun.
        """
        limit, first = self._budget, not self._best
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

    def note(self, best: torch.Tensor, lowest: torch.Tensor, clipped_share: torch.Tensor) -> None:
        """Enter an iteration: its best candidate [B, H, A] and the cost of it [B]."""
        self._best.append(best)
        self._lowest.append(lowest)
        self._clipped.append(clipped_share)

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Best candidate of all iterations [B, H, A] and the lowest cost by the end of each [iterations, B].

        Raises:
            ValueError: if an environment has none of finite cost.
        """
        costs = torch.stack(self._lowest).nan_to_num(nan=torch.inf)
        lowest, iteration = costs.min(dim=0)
        if not bool(lowest.isfinite().all()):
            bad = (~lowest.isfinite()).nonzero().flatten().tolist()
            raise ValueError(
                f"no candidate of environments {bad} has a finite cost: check model and observations"
            )
        rows = torch.arange(len(iteration), device=costs.device)
        return torch.stack(self._best)[iteration, rows], costs.cummin(dim=0).values

    def close(
        self,
        *,
        mean: torch.Tensor | None,
        spread: torch.Tensor,
        stopped_by: StoppedBy,
        execute_mean: bool = False,
        elites: torch.Tensor | None = None,
    ) -> Plan:
        """The plan; without a mean, that is the best candidate.

        Tensors are copies: what was made in inference mode cannot take part in autograd.
        """
        best, trace = self.best()
        mean = best if mean is None else mean
        accounting = PlanAccounting(
            predictor_steps=self._evaluator.predictor_steps,
            seconds=time.perf_counter() - self._began,
            clipped_share=float(torch.stack(self._clipped).mean()),
            cost_trace=trace.clone(),
            stopped_by=stopped_by,
        )
        return Plan(
            actions=(mean if execute_mean else best).clone(),
            mean=mean.clone(),
            spread=spread.clone(),
            cost=trace[-1].clone(),
            accounting=accounting,
            elites=None if elites is None else elites.clone(),
        )
