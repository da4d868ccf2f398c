"""Label-free health of a representation: RankMe, spread per dimension, dead dimensions, mean cosine.

Statistics are streamed as float64 sums and summed over ranks, so they are exact for any batching and any number of
processes.
"""

from dataclasses import dataclass

import torch

from worldmodel.distributed import sum_over_ranks


@dataclass(frozen=True, kw_only=True)
class EmbeddingHealth:
    """Summary of N feature vectors of dimension D.

    Attributes:
        count: N, over all ranks.
        rankme: exp of the entropy of the normalised singular values, raw features (Garrido et al. 2023, eq. 1).
        rankme_centered: the same after subtracting the mean: tells drift of the mean from collapse.
        std: mean over dimensions of the standard deviation.
        dead: share of dimensions whose standard deviation is below a tenth of `gamma`.
        mean_cosine: mean cosine over all pairs of distinct vectors (of L2-normalised copies).
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
        self._count = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def update(self, features: torch.Tensor) -> None:
        """Add features [N, D]; never padded or empty cells."""
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"expected features of shape [N, {self.dim}], got {tuple(features.shape)}")
        z = features.detach().double().cpu()
        self._gram += z.T @ z
        self._sum += z.sum(0)
        self._unit_sum += torch.nn.functional.normalize(z, dim=1).sum(0)
        self._count += len(z)

    def compute(self) -> EmbeddingHealth:
        """Summary over everything seen on all ranks.

        Raises:
            ValueError: if fewer than two vectors were seen.
        """
        packed = torch.cat([self._gram.flatten(), self._sum, self._unit_sum, self._count.view(1)])
        total = sum_over_ranks(packed)
        d = self.dim
        gram, first = total[: d * d].view(d, d), total[d * d : d * d + d]
        units, n = total[d * d + d : d * d + 2 * d], float(total[-1])
        if n < 2:
            raise ValueError(f"an embedding monitor needs at least 2 vectors, got {int(n)}")
        covariance = gram - torch.outer(first, first) / n
        std = (covariance.diagonal().clamp_min(0) / (n - 1)).sqrt()
        return EmbeddingHealth(
            count=int(n),
            rankme=effective_rank(torch.linalg.eigvalsh(gram)),
            rankme_centered=effective_rank(torch.linalg.eigvalsh(covariance), scale=float(gram.trace())),
            std=float(std.mean()),
            dead=float((std < 0.1 * self.gamma).double().mean()),
            mean_cosine=float((units.square().sum() - n) / (n * (n - 1))),
        )


def effective_rank(eigenvalues: torch.Tensor, *, scale: float | None = None) -> float:
    """RankMe from the eigenvalues of Z^T Z: exp of the entropy of the normalised singular values.

    Zero singular values are dropped (x log x -> 0) instead of being padded with an epsilon, which inflates ranks.
    A constant embedding has rank 1, and its centred version, 0/0, is defined as 1 too.

    Args:
        eigenvalues: [K], any order; tiny negative ones are rounding.
        scale: energy against which rounding is judged; the sum of the eigenvalues by default.
    """
    values = eigenvalues.double().clamp_min(0)
    energy = float(values.sum()) if scale is None else scale
    values = torch.where(values > energy * 1e-14, values, 0.0)
    singular = values.sqrt()
    if float(singular.sum()) == 0.0:
        return 1.0
    return float(torch.special.entr(singular / singular.sum()).sum().exp())


def rankme(features: torch.Tensor) -> float:
    """RankMe of features [N, D] in one call (Garrido et al. 2023, eq. 1, without the epsilon)."""
    z = features.detach().double()
    return effective_rank(torch.linalg.eigvalsh(z.T @ z))
