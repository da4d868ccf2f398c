"""Label-free health of a representation: RankMe, spread per dimension, dead dimensions, mean cosine.

Statistics are streamed as float64 sums and summed over ranks, so they are exact for any batching and any number of
processes.
"""

from dataclasses import dataclass

import torch

from worldmodel.distributed import sum_over_ranks

# What is left after subtracting the mean of nearly equal fp32 vectors is rounding noise, and white: it would read as a
# high rank. Variance below 1e-12 of the energy (amplitude 1e-6, some fp32 roundings) is none.
_FP32_NOISE = 1e-12


@dataclass(frozen=True, kw_only=True)
class EmbeddingHealth:
    """Summary of N feature vectors of dimension D.

    Attributes:
        count: N, over all ranks.
        rankme: exp of the entropy of the normalised singular values, raw features (Garrido et al. 2023, eq. 1).
        rankme_centered: the same after subtracting the mean: tells drift of the mean from collapse.
        std: mean over dimensions of the standard deviation.
        dead: share of dimensions whose standard deviation is below a tenth of `gamma`.
        mean_cosine: mean cosine over all pairs of distinct vectors (of L2-normalised copies); 0 with a zero vector.

    All but `count` are NaN if a feature was not finite.
    """

    count: int
    rankme: float
    rankme_centered: float
    std: float
    dead: float
    mean_cosine: float


class EmbeddingMonitor:
    """Accumulates features and summarises them.

    Args:
        dim: D.
        gamma: reference standard deviation for `dead`; 1/sqrt(D) for unit vectors.
    """

    def __init__(self, dim: int, *, gamma: float | None = None) -> None:
        self.dim = dim
        self.gamma = dim**-0.5 if gamma is None else gamma
        self._gram = torch.zeros(dim, dim, dtype=torch.float64)
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._unit_sum = torch.zeros(dim, dtype=torch.float64)
        self._unit_energy = torch.zeros((), dtype=torch.float64)
        self._count = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def update(self, features: torch.Tensor) -> None:
        """Add features [N, D]; never padded or empty cells."""
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"expected features of shape [N, {self.dim}], got {tuple(features.shape)}")
        z = features.detach().double().cpu()
        self._gram += z.T @ z
        self._sum += z.sum(0)
        units = torch.nn.functional.normalize(z, dim=1)
        self._unit_sum += units.sum(0)
        self._unit_energy += units.square().sum()
        self._count += len(z)

    def compute(self) -> EmbeddingHealth:
        """Summary over everything seen on all ranks.

        Raises:
            ValueError: if fewer than two vectors were seen.
        """
        scalars = torch.stack([self._unit_energy, self._count])
        total = sum_over_ranks(torch.cat([self._gram.flatten(), self._sum, self._unit_sum, scalars]))
        d = self.dim
        flat, first, units, (unit_energy, count) = total.split([d * d, d, d, 2])
        gram, n = flat.view(d, d), float(count)
        if n < 2:
            raise ValueError(f"an embedding monitor needs at least 2 vectors, got {int(n)}")
        if not bool(total.isfinite().all()):
            nan = float("nan")
            return EmbeddingHealth(
                count=int(n), rankme=nan, rankme_centered=nan, std=nan, dead=nan, mean_cosine=nan
            )
        covariance = gram - torch.outer(first, first) / n
        std = (covariance.diagonal().clamp_min(0) / (n - 1)).sqrt()
        return EmbeddingHealth(
            count=int(n),
            rankme=effective_rank(torch.linalg.eigvalsh(gram)),
            rankme_centered=effective_rank(
                torch.linalg.eigvalsh(covariance), negligible=_FP32_NOISE * float(gram.trace())
            ),
            std=float(std.mean()),
            dead=float((std < 0.1 * self.gamma).double().mean()),
            mean_cosine=float((units.square().sum() - unit_energy) / (n * (n - 1))),
        )


def effective_rank(eigenvalues: torch.Tensor, *, negligible: float | None = None) -> float:
    """RankMe from the eigenvalues of Z^T Z: exp of the entropy of the normalised singular values.

    Zero singular values are dropped (x log x -> 0) instead of being padded with an epsilon, which inflates ranks.
    A constant embedding has rank 1, and its centred version, 0/0, is defined as 1 too.

    Args:
        eigenvalues: [K], any order; tiny negative ones are rounding.
        negligible: eigenvalues up to this count as zero; by default 1e-14 of their sum, float64 rounding.
    """
    values = eigenvalues.double()
    if not bool(values.isfinite().all()):
        return float("nan")
    values = values.clamp_min(0)
    cut = float(values.sum()) * 1e-14 if negligible is None else negligible
    singular = torch.where(values > cut, values, 0.0).sqrt()
    if float(singular.sum()) == 0.0:
        return 1.0
    return float(torch.special.entr(singular / singular.sum()).sum().exp())


def rankme(features: torch.Tensor) -> float:
    """RankMe of features [N, D] in one call (Garrido et al. 2023, eq. 1, without the epsilon)."""
    z = features.detach().double()
    gram = z.T @ z
    return effective_rank(torch.linalg.eigvalsh(gram)) if bool(gram.isfinite().all()) else float("nan")
