"""The loop of all planners that draw candidates from a Gaussian and fit it to the good ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from worldmodel.batches import LatentState
from worldmodel.planning.bounds import ActionBounds, changed_share
from worldmodel.planning.costs import Cost
from worldmodel.planning.noise import CandidateNoise, generators
from worldmodel.planning.plan import Budget, Plan, StoppedBy
from worldmodel.planning.search import Books, Evaluator, cheapest, check_call, start
from worldmodel.protocols import WorldModel


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The next distribution: mean and standard deviation [B, H, A], and candidates [B, E, H, A] to keep, best first."""

    mean: torch.Tensor
    spread: torch.Tensor
    elites: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplingPlanner:
    """Draw, project into the bounds, imagine, judge, fit; a planner defines `fit` alone.

    Attributes:
        bounds: of the actions.
        horizon: H, actions of the world model ahead (blocks, where it takes blocks).
        samples: candidates per environment and iteration.
        iterations: at most.
        spread: initial standard deviation, one number or one per dimension of an environment action; by default half
            the box or max_norm.
        noise_beta: power 1 / f^beta of the candidates' noise over environment steps; 0 is white, 2 red.
        with_mean: the current mean is one of the candidates.
        execute_mean: the plan is the last mean, not the best candidate found.
        chunk: candidates per environment imagined at once, to bound the memory.
        budget: of one decision.
    """

    bounds: ActionBounds
    horizon: int
    samples: int = 300
    iterations: int = 10
    spread: float | Sequence[float] | None = None
    noise_beta: float = 0.0
    with_mean: bool = True
    execute_mean: bool = False
    chunk: int | None = None
    budget: Budget = field(default_factory=Budget)
    _spread: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_spread", self.bounds.initial_spread(self.spread))
        counts = {"horizon": self.horizon, "samples": self.samples, "iterations": self.iterations}
        for name, value in {**counts, "chunk": self.chunk or 1}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def elite_count(self) -> int:
        """How many of the best candidates `fit` is given."""
        return self.samples

    def fit(
        self, elites: torch.Tensor, costs: torch.Tensor, *, mean: torch.Tensor, spread: torch.Tensor
    ) -> Fit:
        """The next distribution from the best candidates [B, E, H, A], best first, with their costs [B, E].

        A cost of NaN is an infinite one.
        """
        raise NotImplementedError

    def population(self, iteration: int) -> int:
        """Candidates to draw in an iteration."""
        return self.samples

    def kept(self, iteration: int, earlier: Fit | None, warm: Plan | None) -> torch.Tensor | None:
        """Candidates [B, E, H, A] of before to judge again beside the new ones."""
        return None

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
        """See `Planner.plan`."""
        bounds = self.bounds.to(state.latents.device)
        check_call(model, state, seeds, warm, (self.horizon, bounds.dim))
        evaluator = Evaluator(model, state, cost, chunk=self.chunk)
        books = Books(budget=self.budget, evaluator=evaluator, horizon=self.horizon)
        with torch.inference_mode():
            mean, spread = start(bounds, state, horizon=self.horizon, spread=self._spread, warm=warm)
            counts = [self.population(i) for i in range(self.iterations)]
            draw = CandidateNoise(
                generators(seeds, step, mean.device),
                counts=counts,
                like=mean,
                block=bounds.block,
                beta=self.noise_beta,
                first_is_zero=self.with_mean,
            )
            fitted: Fit | None = None
            stopped_by: StoppedBy = "iterations"
            for iteration in range(self.iterations):
                kept = self.kept(iteration, fitted, warm)
                wanted = counts[iteration] + (0 if kept is None else kept.shape[1])
                allowed, stopped_by = books.affordable(wanted)
                if allowed < 1:
                    break
                noise = draw()
                drawn = torch.addcmul(mean.unsqueeze(1), noise, spread.unsqueeze(1), out=noise)
                candidates = bounds.project(drawn)
                clipped = changed_share(drawn, candidates)
                if kept is not None:
                    candidates = torch.cat([candidates, kept.to(candidates)], dim=1)
                if allowed < wanted:
                    candidates = candidates[:, :allowed]
                elites, costs = cheapest(candidates, evaluator(candidates), self.elite_count)
                books.note(elites[:, 0], costs[:, 0], clipped)
                fitted = self.fit(elites, costs, mean=mean, spread=spread)
                mean, spread = fitted.mean, fitted.spread
                del (
                    candidates
                )  # its memory serves the next iteration; fresh pages cost more than the arithmetic
        return books.close(
            mean=mean,
            spread=spread,
            stopped_by=stopped_by,
            execute_mean=self.execute_mean,
            elites=None if fitted is None else fitted.elites,
        )
