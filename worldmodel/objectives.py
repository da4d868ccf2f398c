"""Named losses: what a training step returns, and prediction errors averaged over masked positions of all ranks."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from worldmodel.distributed import at_least_fp32, mean_over_ranks


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise and the numbers it was made from.

    Attributes:
        total: scalar with gradient, the same on every rank.
        parts: unweighted parts and diagnostics by name; detached scalars.
    """

    total: torch.Tensor
    parts: dict[str, torch.Tensor] = field(default_factory=dict)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `values` where `mask` is true, in fp32, pooled over the samples of all ranks; 0 where none is.

    Args:
        values: [...] float.
        mask: [...] bool, same shape.
    """
    values = at_least_fp32(values)
    # where() rather than a product: a NaN outside the mask must not reach the sum.
    return mean_over_ranks(torch.where(mask, values, values.new_zeros(())).sum(), mask.sum())


def cosine_distance(*, prediction: torch.Tensor, target: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """1 - cos of two L2-normalised tensors along `dim`, in fp32 (AD-L-JEPA, docs/ad_l_jepa.md, step 6).

    Args:
        prediction, target: [..., D, ...], already normalised along `dim`.
    """
    return 1.0 - (at_least_fp32(prediction) * at_least_fp32(target)).sum(dim)


def unit(features: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """L2-normalise along `dim` in fp32; a zero vector stays zero and has a finite gradient."""
    return F.normalize(at_least_fp32(features), dim=dim, eps=1e-6)
