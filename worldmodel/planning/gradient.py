"""Gradient descent on the actions, through differentiable rollouts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from worldmodel.batches import LatentState
from worldmodel.planning.bounds import ActionBounds, changed_share
from worldmodel.planning.costs import Cost
from worldmodel.planning.noise import draw_normal, generators
from worldmodel.planning.plan import Budget, Plan, StoppedBy
from worldmodel.planning.search import Books, Evaluator, cheapest, check_call, start
from worldmodel.protocols import WorldModel


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientPlanner:
    """Adam or plain descent from several starting points, projected into the bounds after every step.

    The first starting point is the warm start or zero, the others are drawn around it. Steps are taken in units of the
    spread, so that one learning rate suits actions of different ranges. The gradient of the model's parameters is left
    alone.

    Attributes:
        bounds: of the actions.
        horizon: H, actions of the world model ahead.
        restarts: starting points per environment.
        iterations: evaluations of the cost; after the last one no step is taken.
        optimiser: "adam" or "sgd".
        lr: learning rate in units of the spread.
        spread: of the starting points, one number or one per dimension; by default half the box or max_norm.
        budget: of one decision; predictor steps count rollouts, whose gradient costs about twice as much again.
    """

    bounds: ActionBounds
    horizon: int
    restarts: int = 8
    iterations: int = 30
    optimiser: Literal["adam", "sgd"] = "adam"
    lr: float = 0.1
    spread: float | Sequence[float] | None = None
    budget: Budget = field(default_factory=Budget)
    _spread: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_spread", self.bounds.initial_spread(self.spread))
        if min(self.horizon, self.restarts, self.iterations) < 1 or not self.lr > 0:
            raise ValueError(
                f"horizon, restarts and iterations are at least 1 and lr positive, got {self.horizon}, "
                f"{self.restarts}, {self.iterations} and {self.lr}"
            )
        if self.optimiser not in ("adam", "sgd"):
            raise ValueError(f"the optimiser is adam or sgd, got {self.optimiser!r}")

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
        """See `Planner.plan`. Must not be called in inference mode."""
        bounds = self.bounds.to(state.latents.device)
        check_call(model, state, seeds, warm, (self.horizon, bounds.dim))
        evaluator = Evaluator(model, state, cost, chunk=None)
        books = Books(budget=self.budget, evaluator=evaluator, horizon=self.horizon)
        mean, spread = start(bounds, state, horizon=self.horizon, spread=self._spread, warm=warm)
        scale = spread.unsqueeze(1)
        noise = mean.new_empty(len(state), self.restarts, *mean.shape[1:])
        noise = draw_normal(noise, generators(seeds, step, mean.device))
        noise[:, 0] = 0
        drawn = torch.addcmul(mean.unsqueeze(1), noise, scale)
        actions = bounds.project(drawn)
        clipped = changed_share(drawn, actions)
        stopped_by: StoppedBy = "iterations"
        units: torch.Tensor | None = None
        for _ in range(self.iterations):
            allowed, stopped_by = books.affordable(self.restarts)
            if allowed < 1:
                break
            if units is None:
                units = (actions[:, :allowed] / scale).detach().requires_grad_()
                descent = _Adam(units) if self.optimiser == "adam" else None
            with torch.enable_grad():
                actions = units * scale
                costs = evaluator(actions)
                judged = torch.where(costs.isfinite(), costs, 0.0).sum()
                (slope,) = torch.autograd.grad(judged, [units])
            actions = actions.detach()
            best, lowest = cheapest(bounds.project(actions), costs.detach(), 1)
            books.note(best[:, 0], lowest[:, 0], clipped)
            slope = slope.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            if descent is not None:
                slope = descent.direction(slope)
            moved = (units.detach() - self.lr * slope) * scale
            within = bounds.project(moved)
            clipped = changed_share(moved, within)
            units = (within / scale).requires_grad_()
        spread = actions.std(dim=1, correction=0)
        return books.close(mean=None, spread=spread, stopped_by=stopped_by)


class _Adam:
    """Direction of Adam (Kingma and Ba 2015, algorithm 1).

    Not torch.optim's: its first use in a process imports the compiler, which takes seconds of a decision's budget.
    """

    def __init__(
        self, like: torch.Tensor, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.mean, self.square = torch.zeros_like(like), torch.zeros_like(like)
        self.betas, self.eps, self.steps = betas, eps, 0

    def direction(self, slope: torch.Tensor) -> torch.Tensor:
        """What to subtract, over the learning rate."""
        self.steps += 1
        b1, b2 = self.betas
        self.mean = self.mean.lerp(slope, 1 - b1)
        self.square = self.square.lerp(slope.square(), 1 - b2)
        root = (self.square / (1 - b2**self.steps)).sqrt() + self.eps
        return self.mean / (1 - b1**self.steps) / root
