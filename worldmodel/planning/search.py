"""What all planners share: starting point, evaluation of candidates, and the books of one decision."""

import time
from collections.abc import Sequence

import torch
from torch import nn

from worldmodel.batches import LatentState
from worldmodel.nn.dynamics import Workspace
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
    bounds: ActionBounds, state: LatentState, *, horizon: int, spread: torch.Tensor, warm: Plan | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [B, H, block * A] that a search begins with.

    The mean is the warm start or zero, within the bounds.

    Args:
        spread: [block * A].
    """
    shape = (len(state), horizon, bounds.dim)
    mean = state.actions.new_zeros(shape) if warm is None else warm.mean.to(state.actions)
    return bounds.project(mean), spread.to(mean).expand(shape)


class Evaluator:
    """Costs of candidates, and how many imagined steps they took.

    Args:
        chunk: candidates per environment imagined at once; all without. Bounds the memory.
    """

    def __init__(self, model: WorldModel, state: LatentState, cost: Cost, *, chunk: int | None) -> None:
        self.model, self.state, self.cost, self.chunk = model, state, cost, chunk
        self.predictor_steps = 0
        self._workspace = Workspace()
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
        together = getattr(self.model, "rollout_candidates", None)
        if together is not None and not (torch.is_grad_enabled() and candidates.requires_grad):
            imagined = together(self.state, candidates, self._workspace)
        else:
            if count not in self._repeated:
                self._repeated[count] = self.state.repeat(count)
            flat = candidates.reshape(batch * count, *candidates.shape[2:])
            imagined = self.model.rollout(self._repeated[count], flat).unflatten(0, (batch, count))
        costs = self.cost(imagined, candidates)
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
        self._clipped: list[float] = []

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

    def note(self, best: torch.Tensor, lowest: torch.Tensor, clipped_share: float) -> None:
        """Enter an iteration: its best candidate [B, H, A] and the cost of it [B]."""
        self._best.append(best)
        self._lowest.append(lowest)
        self._clipped.append(clipped_share)

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Best candidate of all iterations [B, H, A] and the lowest cost by the end of each [iterations, B].

        Raises:
            ValueError: if an environment has none of finite cost.
        """
        trace, found_in = torch.stack(self._lowest).nan_to_num(nan=torch.inf).cummin(dim=0)
        if not bool(trace[-1].isfinite().all()):
            bad = (~trace[-1].isfinite()).nonzero().flatten().tolist()
            raise ValueError(
                f"no candidate of environments {bad} has a finite cost: check model and observations"
            )
        best = [self._best[i][row] for row, i in enumerate(found_in[-1].tolist())]
        return torch.stack(best), trace

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
            clipped_share=sum(self._clipped) / len(self._clipped),
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
