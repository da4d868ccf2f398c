"""RankMe and the spectrum of a representation, streamed, exact for any batching and any number of processes."""

import math
from dataclasses import dataclass, field

import torch

from worldmodel.distributed import on_this_rank_only
from worldmodel.monitors.moments import Moments, MomentSums, float64_rows
from worldmodel.monitors.spectrum import (
    FP32_NOISE,
    alpha_req,
    effective_rank,
    marchenko_pastur_rankme,
    participation_ratio,
    significant,
    stable_rank,
)

# Below ten samples per dimension the spectrum of even isotropic data is visibly uneven (Marchenko-Pastur).
SAMPLES_PER_DIMENSION = 10


@dataclass(frozen=True, kw_only=True)
class RankSummary:
    """The spectrum of N feature vectors of dimension K in numbers; NaN if a feature was not finite.

    Attributes:
        count: N, over all ranks.
        dim: K.
        rankme: of the raw features (Garrido et al. 2023, eq. 1, without the epsilon).
        rankme_centered: the same after subtracting the mean: tells drift of the mean from collapse.
        rankme_over_k: rankme / K.
        rankme_over_ceiling: rankme over that of isotropic noise with as many samples, K mp(K/N).
        participation_ratio, stable_rank, alpha_req: of the covariance; see worldmodel.monitors.spectrum.
        eigenvalues: [K] of Z^T Z / N, descending, float64.
        eigenvalues_centered: [K] of the covariance (N - 1), descending, those that are fp32 rounding set to 0.
        warning: what to do if N < 10 K, else empty.
    """

    count: int
    dim: int
    rankme: float
    rankme_centered: float
    rankme_over_k: float
    rankme_over_ceiling: float
    participation_ratio: float
    stable_rank: float
    alpha_req: float
    eigenvalues: torch.Tensor = field(repr=False, compare=False)
    eigenvalues_centered: torch.Tensor = field(repr=False, compare=False)
    warning: str = ""

    def as_dict(self) -> dict[str, float]:
        """The scalars by name, without count and dim."""
        names = (
            "rankme", "rankme_centered", "rankme_over_k", "rankme_over_ceiling",
            "participation_ratio", "stable_rank", "alpha_req",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


def summarise(sums: MomentSums) -> RankSummary:
    """The summary from count, sum and Gram matrix."""
    n, k = sums.count, sums.dim
    if n < 1:
        raise ValueError("RankMe needs at least 1 vector, got 0")
    needed = SAMPLES_PER_DIMENSION * k
    warning = ""
    if n < needed:
        warning = f"{n} samples of {k} dimensions: ranks read low, use at least {needed} samples"
    if sums.finite:
        raw = significant(torch.linalg.eigvalsh(sums.gram)) / n
        centred = significant(torch.linalg.eigvalsh(sums.scatter), negligible=FP32_NOISE * sums.energy)
        centred = centred / max(1, n - 1)
    else:
        raw = centred = torch.full((k,), math.nan, dtype=torch.float64)
    rank = effective_rank(raw)
    return RankSummary(
        count=n,
        dim=k,
        rankme=rank,
        rankme_centered=effective_rank(centred),
        rankme_over_k=rank / k,
        rankme_over_ceiling=rank / (k * marchenko_pastur_rankme(k / n)),
        participation_ratio=participation_ratio(centred),
        stable_rank=stable_rank(centred),
        alpha_req=alpha_req(centred),
        eigenvalues=raw,
        eigenvalues_centered=centred,
        warning=warning,
    )


class RankMe:
    """Streaming RankMe: float64 Gram matrix, K^2 memory, summed over ranks when it is read.

    Args:
        dim: K; None takes it from the first features, and on a rank that saw none from the other ranks.
    """

    def __init__(self, dim: int | None = None) -> None:
        self.moments = Moments(dim)

    def update(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Add features [N, K], any floating type; rows where mask [N] is false never enter."""
        for rows in float64_rows(features, dim=self.moments.dim, mask=mask):
            self.moments.add(rows)

    def compute(self) -> float:
        """RankMe of everything seen on all ranks; every rank must call.

        Raises:
            ValueError: if no rank saw a vector.
        """
        sums = self.moments.reduce()
        if sums.count < 1:
            raise ValueError("RankMe needs at least 1 vector, got 0")
        return effective_rank(torch.linalg.eigvalsh(sums.gram)) if sums.finite else math.nan

    def summary(self) -> RankSummary:
        """RankMe, its relatives and the spectra; as `compute`."""
        return summarise(self.moments.reduce())


def rankme(features: torch.Tensor) -> float:
    """RankMe of features [N, K] of this process in one call (Garrido et al. 2023, eq. 1, without the epsilon)."""
    monitor = RankMe()
    monitor.update(features)
    with on_this_rank_only():
        return monitor.compute()
