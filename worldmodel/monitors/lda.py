"""LDA-rank ("LiDAR", Thilak et al. 2023; renamed, since the sensor has that name here): rank of what views agree on."""

import math
from dataclasses import dataclass

import torch

from worldmodel.distributed import on_this_rank_only
from worldmodel.monitors.moments import Moments, MomentSums, float64_rows
from worldmodel.monitors.spectrum import FP32_NOISE, entropy_rank


@dataclass(frozen=True, kw_only=True)
class LDASummary:
    """Linear discriminant analysis of n samples (the classes) with q views each.

    The rank alone is no collapse detector: pure view noise has a full one. Read it beside the signal, which noise
    leaves at about D / q.

    Attributes:
        count: n, over all ranks.
        rank: exp of the entropy of the normalised eigenvalues of S_w^-1/2 S_b S_w^-1/2; 1 if all are zero.
        signal: sum of these eigenvalues, how far samples lie apart in units of the spread of their views.
        warning: what to do if n <= D, where the rank is that of the sample, else empty.
    """

    count: int
    rank: float
    signal: float
    warning: str = ""


class LDARank:
    """Streaming LDA-rank, exact for any batching and any number of ranks.

    S_b is the covariance of the n class means (n - 1), S_w the pooled covariance within classes plus delta I. The views
    of a sample must come together; samples may have different numbers of views in different updates.

    Args:
        dim: D; None takes it from the first features.
        delta: ridge on S_w, absolute: it is the view noise below which differences between views do not count.
    """

    def __init__(self, dim: int | None = None, *, delta: float = 1e-4) -> None:
        if delta <= 0:
            raise ValueError(f"delta must be positive, got {delta}: with it zero, equal views divide by zero")
        self.delta = delta
        self._means, self._deviations = Moments(dim), Moments(dim)

    def update(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Add groups [N, Q, D] of Q >= 2 views; groups whose mask [N] is false never enter."""
        if features.ndim != 3 or features.shape[1] < 2:
            raise ValueError(
                f"expected groups of shape [N, Q, D] with Q >= 2 views, got {tuple(features.shape)}"
            )
        views, dim = features.shape[1:]
        if self._means.dim not in (None, dim):
            raise ValueError(f"expected views of dimension {self._means.dim}, got {dim}")
        for rows in float64_rows(features.flatten(1), dim=views * dim, mask=mask):
            groups = rows.view(-1, views, dim)
            means = groups.mean(dim=1)
            self._means.add(means)
            self._deviations.add((groups - means.unsqueeze(1)).flatten(0, 1))

    def compute(self) -> LDASummary:
        """Rank and signal of everything seen on all ranks; every rank must call.

        Raises:
            ValueError: if fewer than two groups were seen.
        """
        return _discriminant(self._means.reduce(), self._deviations.reduce(), delta=self.delta)


def _discriminant(means: MomentSums, deviations: MomentSums, *, delta: float) -> LDASummary:
    n = means.count
    if n < 2:
        raise ValueError(f"LDA-rank needs at least 2 groups, got {n}")
    warning = ""
    if n <= means.dim:
        warning = f"{n} groups of {means.dim} dimensions: LDA-rank reads low, use more groups than dimensions"
    if not (means.finite and deviations.finite):
        return LDASummary(count=n, rank=math.nan, signal=math.nan, warning=warning)
    within, axes = torch.linalg.eigh(deviations.gram / (deviations.count - n))
    within = within.clamp_min(0) + delta
    whitening = axes / within.sqrt()
    eigenvalues = torch.linalg.eigvalsh(whitening.T @ (means.scatter / (n - 1)) @ whitening)
    # Rounding of the features, seen through the whitening.
    noise = FP32_NOISE * means.energy / n / float(within[0])
    eigenvalues = torch.where(eigenvalues <= noise, 0.0, eigenvalues)
    return LDASummary(
        count=n, rank=entropy_rank(eigenvalues), signal=float(eigenvalues.sum()), warning=warning
    )


def lda_rank(features: torch.Tensor, *, delta: float = 1e-4) -> float:
    """LDA-rank of features [N, Q, D], Q views of each of N samples, of this process in one call.

    N should be about 1000 and above D, Q at least 10 (Thilak et al. recommend 50).
    """
    monitor = LDARank(delta=delta)
    monitor.update(features)
    with on_this_rank_only():
        return monitor.compute().rank
