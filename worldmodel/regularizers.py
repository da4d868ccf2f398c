"""Terms that keep embeddings from collapsing: variance and covariance here, SIGReg from its own file.

Computed in fp32, exact over ranks: the same loss and gradient on any number of processes. docs/objectives.md tells
which one when.
"""

import torch

from worldmodel.distributed import at_least_fp32, mean_over_ranks, sum_over_ranks
from worldmodel.sigreg import SIGReg

__all__ = ["SIGReg", "covariance_term", "variance_hinge", "variance_term"]


def variance_hinge(
    features: torch.Tensor, mask: torch.Tensor, *, gamma: float, eps: float = 1e-4
) -> torch.Tensor:
    """Hinge on the standard deviation of every dimension over the masked cells of each sample (AD-L-JEPA).

    mean over samples, then d, of max(0, gamma - sqrt(Var_cells(Z_d) + eps)), with the unbiased variance. Samples with
    fewer than two masked cells have no variance and are left out of the mean.

    Args:
        features: [B, D, H, W], L2-normalised over D.
        mask: [B, H, W] bool.
        gamma: target standard deviation; 1/sqrt(D) for unit vectors.

    Returns:
        Scalar; gamma - sqrt(eps) at total collapse.
    """
    z = at_least_fp32(features)
    weights = mask.unsqueeze(1)
    count = weights.sum(dim=(2, 3)).to(z.dtype)
    zero = z.new_zeros(())
    mean = torch.where(weights, z, zero).sum(dim=(2, 3)) / count.clamp_min(1)
    centred = torch.where(weights, z - mean[:, :, None, None], zero)
    variance = centred.square().sum(dim=(2, 3)) / (count - 1).clamp_min(1)
    per_sample = torch.relu(gamma - torch.sqrt(variance + eps)).mean(dim=1)
    usable = count[:, 0] >= 2
    return mean_over_ranks(torch.where(usable, per_sample, zero).sum(), usable.sum())


def variance_term(
    z: torch.Tensor, *, mask: torch.Tensor | None = None, gamma: float = 1.0, eps: float = 1e-4
) -> torch.Tensor:
    """Variance term of VICReg (arXiv 2105.04906, eq. 1): mean over d of max(0, gamma - sqrt(Var(z_d) + eps)).

    The variance, unbiased, is over the samples of all ranks; leading axes are independent tests, averaged.

    Args:
        z: [..., N, D]; N may differ between ranks.
        mask: [..., N] bool, the samples that count; all without it.
        gamma: target standard deviation.

    Returns:
        Scalar; gamma - sqrt(eps) at total collapse. Tests with fewer than two samples are left out of the mean.
    """
    centred, count = _centred(z, mask)
    variance = sum_over_ranks(centred.square().sum(-2)) / (count - 1).clamp_min(1)
    return _mean_of_tests(torch.relu(gamma - torch.sqrt(variance + eps)).mean(-1), count.squeeze(-1))


def covariance_term(z: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Covariance term of VICReg (arXiv 2105.04906, eq. 3 and 4): sum of squared off-diagonal covariances over D.

    Arguments and tests as in `variance_term`. Needs D x D numbers per test.
    """
    centred, count = _centred(z, mask)
    with torch.autocast(device_type=z.device.type, enabled=False):
        gram = sum_over_ranks(centred.transpose(-1, -2) @ centred)
    covariance = gram / (count - 1).clamp_min(1).unsqueeze(-1)
    # The diagonal goes before the squares: subtracted after them it would swallow what is small beside it.
    off_diagonal = covariance - torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
    return _mean_of_tests(off_diagonal.square().sum((-2, -1)) / z.shape[-1], count.squeeze(-1))


def _centred(z: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """z minus its mean over the counted samples of all ranks, zero elsewhere [..., N, D], and their number [..., 1]."""
    if z.ndim < 2 or (mask is not None and mask.shape != z.shape[:-1]):
        shape = None if mask is None else tuple(mask.shape)
        raise ValueError(f"expected z [..., N, D] and mask [..., N], got {tuple(z.shape)} and {shape}")
    z = at_least_fp32(z)
    if mask is None:
        mask = torch.ones(z.shape[:-1], dtype=torch.bool, device=z.device)
    counted, zero = mask.unsqueeze(-1), z.new_zeros(())
    count = sum_over_ranks(counted.sum(-2).to(z.dtype))
    mean = sum_over_ranks(torch.where(counted, z, zero).sum(-2)) / count.clamp_min(1)
    return torch.where(counted, z - mean.unsqueeze(-2), zero), count


def _mean_of_tests(values: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Mean of values [...] over tests with at least two samples; 0 if there is none."""
    usable = count >= 2
    return torch.where(usable, values, values.new_zeros(())).sum() / usable.sum().clamp_min(1)
