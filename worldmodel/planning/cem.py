"""The cross-entropy method (Rubinstein 1999), and predictive sampling as one iteration of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worldmodel.planning.bounds import ActionBounds
from worldmodel.planning.sampling import Fit, SamplingPlanner


@dataclass(frozen=True, kw_only=True, eq=False)
class CEM(SamplingPlanner):
    """Mean and standard deviation of the elites become the next distribution.

    Attributes:
        elites: candidates the distribution is fitted to.
        momentum: m of mean <- m mean + (1 - m) mean of the elites, and the same for the standard deviation: 0 forgets
            the last distribution, 1 never leaves it.
        min_spread: lower bound of the standard deviation.
    """

    elites: int = 30
    momentum: float = 0.0
    min_spread: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.elites <= self.samples:
            raise ValueError(f"there must be 1 to {self.samples} elites (samples), got {self.elites}")
        if not 0.0 <= self.momentum <= 1.0 or self.min_spread < 0:
            raise ValueError(
                f"momentum lies in [0, 1] and min_spread is not negative, got {self.momentum} and {self.min_spread}"
            )

    @property
    def elite_count(self) -> int:
        return self.elites

    def fit(
        self, elites: torch.Tensor, costs: torch.Tensor, *, mean: torch.Tensor, spread: torch.Tensor
    ) -> Fit:
        # The maximum-likelihood fit: one elite has spread 0, not NaN.
        spread_new, mean_new = torch.std_mean(elites, dim=1, correction=0)
        if self.momentum:
            mean_new, spread_new = mean_new.lerp(mean, self.momentum), spread_new.lerp(spread, self.momentum)
        if self.min_spread:
            spread_new = spread_new.clamp(min=self.min_spread)
        return Fit(mean=mean_new, spread=spread_new, elites=elites)


def predictive_sampling(
    *,
    bounds: ActionBounds,
    horizon: int,
    samples: int,
    spread: float | Sequence[float] | None = None,
    **options: Any,
) -> CEM:
    """The best of one draw around the warm start (Howell et al. 2022, arXiv 2212.00541): CEM of one iteration."""
    return CEM(
        bounds=bounds, horizon=horizon, samples=samples, spread=spread, iterations=1, elites=1, **options
    )
