"""Model-predictive path integral control (Williams et al. 2017, arXiv 1707.02342)."""

from dataclasses import dataclass

import torch

from worldmodel.planning.sampling import Fit, SamplingPlanner


def mppi_weights(costs: torch.Tensor, *, temperature: float, normalise: bool = False) -> torch.Tensor:
    """softmax(-costs / temperature) over the candidates: [B, K] to [B, K].

    Args:
        normalise: divide the costs of each row by their standard deviation first, so that the temperature means the
            same for every cost. Infinite costs get no weight and do not count.
    """
    if normalise:
        finite = costs.isfinite()
        count = finite.sum(1, keepdim=True).clamp(min=1)
        centred = costs - torch.where(finite, costs, 0.0).sum(1, keepdim=True) / count
        square = torch.where(finite, centred, 0.0).square().sum(1, keepdim=True) / count
        costs = centred / square.sqrt().clamp(min=torch.finfo(costs.dtype).tiny ** 0.5)
    return torch.softmax(-costs / temperature, dim=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class MPPI(SamplingPlanner):
    """The weighted mean of the candidates becomes the next mean; it is what is executed.

    Attributes:
        temperature: of the weights, in units of the cost (of its standard deviation with `normalise`).
        normalise: divide costs by their standard deviation over the candidates.
        elites: weigh only so many of the best, as TD-MPC2 does; all without.
        adapt_spread: fit the spread too (weighted standard deviation, TD-MPC2); otherwise it stays as it began.
        min_spread: lower bound of a fitted spread.
    """

    iterations: int = 6
    execute_mean: bool = True
    temperature: float = 0.5
    normalise: bool = True
    elites: int | None = None
    adapt_spread: bool = False
    min_spread: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0 or self.min_spread < 0:
            raise ValueError(
                f"the temperature is positive and min_spread not negative, got {self.temperature} and {self.min_spread}"
            )
        if self.elites is not None and not 1 <= self.elites <= self.samples:
            raise ValueError(f"there must be 1 to {self.samples} elites (samples), got {self.elites}")

    @property
    def elite_count(self) -> int:
        return self.elites or self.samples

    def fit(
        self, elites: torch.Tensor, costs: torch.Tensor, *, mean: torch.Tensor, spread: torch.Tensor
    ) -> Fit:
        costs = costs.nan_to_num(nan=torch.inf)
        weights = mppi_weights(costs, temperature=self.temperature, normalise=self.normalise)
        new = _weighted(weights, elites)
        if self.adapt_spread:
            variance = _weighted(weights, (elites - new.unsqueeze(1)).square())
            spread = variance.sqrt().clamp(min=self.min_spread)
        return Fit(mean=new, spread=spread)


def _weighted(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Sum over K of weights [B, K] times values [B, K, H, A]."""
    return torch.bmm(weights.unsqueeze(1).to(values), values.flatten(2))[:, 0].unflatten(-1, values.shape[2:])
