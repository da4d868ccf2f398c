"""Numbers of a spectrum: RankMe, participation ratio, stable rank, alpha-ReQ, and what isotropic noise would read.

Every function takes the eigenvalues of a second-moment matrix (Gram or covariance, any scale) in any order, counts
values up to `negligible` as zero, and gives NaN for a spectrum that is not finite. A spectrum of zeros, 0/0, is
defined as rank 1.
"""

import math

import numpy as np
import torch

# What is left after subtracting the mean of nearly equal fp32 vectors is rounding noise, and white: it would read as a
# high rank. Variance below 1e-12 of the energy (amplitude 1e-6, some fp32 roundings) is none.
FP32_NOISE = 1e-12


def significant(eigenvalues: torch.Tensor, *, negligible: float | None = None) -> torch.Tensor:
    """Eigenvalues [K] in float64 and descending order, those that are only rounding set to zero.

    Args:
        eigenvalues: [K], any order; tiny negative ones are rounding.
        negligible: eigenvalues up to this count as zero; by default 1e-14 of their sum, float64 rounding.
    """
    if not bool(eigenvalues.isfinite().all()):
        return torch.full_like(eigenvalues, math.nan, dtype=torch.float64)
    values = eigenvalues.double().clamp_min(0).sort(descending=True).values
    cut = float(values.sum()) * 1e-14 if negligible is None else negligible
    return torch.where(values <= cut, 0.0, values)


def effective_rank(eigenvalues: torch.Tensor, *, negligible: float | None = None) -> float:
    """RankMe from the eigenvalues of Z^T Z: exp of the entropy of the normalised singular values.

    Zero singular values are dropped (x log x -> 0) instead of being padded with an epsilon, which inflates ranks.
    A constant embedding has rank 1, and its centred version, 0/0, is defined as 1 too.

    Args:
        eigenvalues: [K].
        negligible: see `significant`.
    """
    return entropy_rank(significant(eigenvalues, negligible=negligible).sqrt())


def entropy_rank(weights: torch.Tensor) -> float:
    """exp of the entropy of non-negative weights [K] that are normalised to sum 1; 1 if all are zero."""
    if not bool(weights.isfinite().all()):
        return math.nan
    total = weights.sum()
    if float(total) == 0.0:
        return 1.0
    return float(torch.special.entr(weights / total).sum().exp())


def participation_ratio(eigenvalues: torch.Tensor, *, negligible: float | None = None) -> float:
    """(sum lambda)^2 / sum lambda^2: K for K equal eigenvalues, 1 for a single one."""
    values = significant(eigenvalues, negligible=negligible)
    if not bool(values.isfinite().all()):
        return math.nan
    scaled = values / values.max().clamp_min(torch.finfo(torch.float64).tiny)
    return float(scaled.sum().square() / scaled.square().sum()) if float(values.sum()) else 1.0


def stable_rank(eigenvalues: torch.Tensor, *, negligible: float | None = None) -> float:
    """sum lambda / max lambda; of a covariance it is also NESum (He & Ozay 2022)."""
    values = significant(eigenvalues, negligible=negligible)
    if not bool(values.isfinite().all()):
        return math.nan
    return float(values.sum() / values.max()) if float(values.sum()) else 1.0


def alpha_req(
    eigenvalues: torch.Tensor, *, first: int = 4, last: int = 100, negligible: float | None = None
) -> float:
    """Exponent alpha of lambda_i ~ i^-alpha (alpha-ReQ, Agrawal et al. 2022); near 1 is said to be good.

    Least squares of log lambda_i on log i with weights 1/i over i = first .. min(last, K), counted from 1 at the
    largest. The paper gives no range; this one is that of its authors' code.

    Returns:
        NaN where no power law can be fitted: an eigenvalue in the range is zero, or the range holds fewer than two.
    """
    values = significant(eigenvalues, negligible=negligible)[first - 1 : last]
    if len(values) < 2 or not bool(values.isfinite().all()) or float(values[-1]) == 0.0:
        return math.nan
    index = torch.arange(first, first + len(values), dtype=torch.float64)
    x, y, weight = index.log(), values.cpu().log(), 1 / index / (1 / index).sum()
    x, y = x - weight @ x, y - weight @ y
    return -float((weight * x) @ y / ((weight * x) @ x))


def marchenko_pastur_rankme(ratio: float) -> float:
    """RankMe / K of isotropic noise: the most that N samples of K dimensions can show, as K, N -> infinity.

    With y = K/N the eigenvalues x of Z^T Z / N have the density sqrt((b - x)(x - a)) / (2 pi y x) on
    a, b = (1 -+ sqrt y)^2. With s = sqrt x and m = E[s] it is m exp(-E[s log s] / m). With K > N the K - N missing
    singular values are zero and the rest are those of the transpose.

    Args:
        ratio: K/N, positive. (N = 10 K gives 0.987, N = K 0.805, N = K/2 0.463.)
    """
    if not ratio > 0:
        raise ValueError(f"ratio is K/N, a positive number, got {ratio}")
    if ratio > 1:
        return marchenko_pastur_rankme(1 / ratio) / ratio
    nodes, weights = np.polynomial.legendre.leggauss(400)
    # x = 1 + y + 2 sqrt(y) cos(angle) takes the roots at the edges away.
    angle = (nodes + 1) * math.pi / 2
    x = 1 + ratio + 2 * math.sqrt(ratio) * np.cos(angle)
    density = weights * math.pi / 2 * 2 * np.sin(angle) ** 2 / (math.pi * x)
    s = np.sqrt(x)
    mean = float(density @ s)
    return mean * math.exp(-float(density @ (s * np.log(s))) / mean)
