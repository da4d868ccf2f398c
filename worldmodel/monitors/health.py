"""Label-free health of a representation in one call: rank, spread, dead dimensions, correlation, Gaussianity.

Statistics are streamed as float64 sums and summed over ranks, so they are exact for any batching and any number of
processes.
"""

import math
from dataclasses import dataclass

import torch

from worldmodel.monitors.lda import LDARank
from worldmodel.monitors.moments import Moments, MomentSums, float64_rows, summed
from worldmodel.monitors.rankme import summarise
from worldmodel.monitors.sampling import RowSample
from worldmodel.monitors.spectrum import FP32_NOISE
from worldmodel.regularizers import SIGReg

SIGREG_ROWS = 512
SIGREG_SLICES = 128


@dataclass(frozen=True, kw_only=True)
class EmbeddingHealth:
    """Summary of N feature vectors of dimension D.

    Attributes:
        count: N, over all ranks.
        rankme: exp of the entropy of the normalised singular values, raw features (Garrido et al. 2023, eq. 1).
        rankme_centered: the same after subtracting the mean: tells drift of the mean from collapse.
        rankme_over_k: rankme / D.
        rankme_over_ceiling: rankme over that of isotropic noise with as many samples.
        participation_ratio, stable_rank, alpha_req: of the covariance; see worldmodel.monitors.spectrum.
        std: mean over dimensions of the standard deviation.
        std_min, std_median: smallest and median one.
        dead: share of dimensions whose standard deviation is below a tenth of `gamma`.
        mean_cosine: mean cosine over all pairs of distinct vectors (of L2-normalised copies); 0 with a zero vector.
        correlation: mean over pairs of dimensions of the absolute correlation; constant dimensions have none and are
            left out, without two others it is 0.
        sigreg_standardised: SIGReg statistic of 512 vectors (fewer if there are fewer), each dimension standardised,
            over that of Gaussian samples: 1 for uncorrelated Gaussian features. Mean and scale, which a SIGReg loss
            sees, are taken out: features that were not trained with it have any.
        warning: what to do if there are too few vectors to read a rank from, else empty.

    Numbers but `count` are NaN if a feature was not finite; `alpha_req` also where no power law can be fitted.
    """

    count: int
    rankme: float
    rankme_centered: float
    rankme_over_k: float
    rankme_over_ceiling: float
    participation_ratio: float
    stable_rank: float
    alpha_req: float
    std: float
    std_min: float
    std_median: float
    dead: float
    mean_cosine: float
    correlation: float
    sigreg_standardised: float
    warning: str = ""

    def as_dict(self) -> dict[str, float]:
        """What a task's `monitors()` returns, by the names that logs and reports use."""
        return {
            "count": float(self.count),
            "rankme": self.rankme,
            "rankme_centered": self.rankme_centered,
            "rankme_over_k": self.rankme_over_k,
            "rankme_over_ceiling": self.rankme_over_ceiling,
            "participation_ratio": self.participation_ratio,
            "stable_rank": self.stable_rank,
            "alpha_req": self.alpha_req,
            "std": self.std,
            "std_min": self.std_min,
            "std_median": self.std_median,
            "dead_dimensions": self.dead,
            "mean_cosine": self.mean_cosine,
            "correlation": self.correlation,
            "sigreg_standardised": self.sigreg_standardised,
        }


class EmbeddingMonitor:
    """Accumulates features and summarises them.

    Args:
        dim: D.
        gamma: reference standard deviation for `dead`; 1/sqrt(D) for unit vectors.
        seed: of the random rows and directions of the SIGReg statistic.
    """

    def __init__(self, dim: int, *, gamma: float | None = None, seed: int = 0) -> None:
        self.dim = dim
        self.gamma = dim**-0.5 if gamma is None else gamma
        self._moments = Moments(dim)
        self._sample = RowSample(SIGREG_ROWS, seed=seed)
        self._sigreg = SIGReg(num_slices=SIGREG_SLICES, seed=seed)
        self._unit_sum = torch.zeros(dim, dtype=torch.float64)
        self._unit_energy = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def update(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Add features [N, D]; rows where mask [N] is false (padded or empty cells) never enter."""
        for rows in float64_rows(features, dim=self.dim, mask=mask):
            self._moments.add(rows)
            self._sample.add(rows)
            units = torch.nn.functional.normalize(rows, dim=1)
            self._unit_sum = self._unit_sum.to(units.device) + units.sum(0)
            self._unit_energy = self._unit_energy.to(units.device) + units.square().sum()

    def compute(self) -> EmbeddingHealth:
        """Summary over everything seen on all ranks; every rank must call.

        Raises:
            ValueError: if fewer than two vectors were seen.
        """
        sums = self._moments.reduce()
        unit_sum, unit_energy = summed([self._unit_sum, self._unit_energy])
        n = sums.count
        if n < 2:
            raise ValueError(f"an embedding monitor needs at least 2 vectors, got {n}")
        rank = summarise(sums)
        std = (sums.scatter.diagonal().clamp_min(0) / (n - 1)).sqrt()
        finite = sums.finite
        return EmbeddingHealth(
            count=n,
            rankme=rank.rankme,
            rankme_centered=rank.rankme_centered,
            rankme_over_k=rank.rankme_over_k,
            rankme_over_ceiling=rank.rankme_over_ceiling,
            participation_ratio=rank.participation_ratio,
            stable_rank=rank.stable_rank,
            alpha_req=rank.alpha_req,
            std=float(std.mean()),
            std_min=float(std.min()),
            std_median=float(std.quantile(0.5)),
            dead=float((std < 0.1 * self.gamma).double().mean()) if finite else math.nan,
            mean_cosine=float((unit_sum.square().sum() - unit_energy) / (n * (n - 1))),
            correlation=_correlation(sums) if finite else math.nan,
            sigreg_standardised=self._gaussianity(sums, std) if finite else math.nan,
            warning=rank.warning,
        )

    @torch.no_grad()
    def _gaussianity(self, sums: MomentSums, std: torch.Tensor) -> float:
        rows = self._sample.here(self.dim)
        mean, scale, varies = (v.to(rows.device) for v in (sums.first / sums.count, std, _varies(sums)))
        standardised = torch.where(varies, (rows - mean) / scale, 0.0)
        return float(self._sigreg(standardised, step=0)) / self._sigreg.floor


def _varies(sums: MomentSums) -> torch.Tensor:
    """Dimensions [K] whose variance is more than fp32 rounding."""
    return sums.scatter.diagonal() > FP32_NOISE * sums.energy


def _correlation(sums: MomentSums) -> float:
    live = _varies(sums)
    k = int(live.sum())
    if k < 2:
        return 0.0
    scatter = sums.scatter[live][:, live]
    scale = scatter.diagonal().sqrt()
    correlation = (scatter / torch.outer(scale, scale)).fill_diagonal_(0.0)
    return float(correlation.abs().sum() / (k * (k - 1)))


def representation_health(
    features: torch.Tensor, groups: torch.Tensor | None = None, *, mask: torch.Tensor | None = None
) -> dict[str, float]:
    """The label-free monitors of a representation, as a task's `monitors()` returns them; every rank must call.

    Args:
        features: [N, D], of this rank.
        groups: [N, Q, D], Q views of each of N samples: adds `lda_rank` and `lda_signal`.
        mask: [N] bool, features that count.
    """
    monitor = EmbeddingMonitor(features.shape[-1])
    monitor.update(features, mask)
    values = monitor.compute().as_dict()
    if groups is None:
        return values
    lda = LDARank(groups.shape[-1])
    lda.update(groups)
    summary = lda.compute()
    return {**values, "lda_rank": summary.rank, "lda_signal": summary.signal}
