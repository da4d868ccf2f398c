"""Terms that keep embeddings from collapsing: the variance hinge and SIGReg. Computed in fp32, exact over ranks."""

import torch
from torch import nn

from worldmodel.distributed import at_least_fp32, mean_over_ranks, sum_over_ranks


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


class SIGReg(nn.Module):
    """Sketched isotropic Gaussian regulariser (LeJEPA, arXiv 2511.08544, Algorithm 1).

    The Epps-Pulley distance between N(0, 1) and the embedding, averaged over random directions. The quadrature runs
    over the half line [0, t_max], doubled: the printed two-sided form is periodic in each projection with period 10
    and pulls outliers the wrong way. Nothing is standardised: mean and scale are part of what is enforced.

    Args:
        num_slices: random directions, drawn anew each step from (seed, step), equal on all ranks.
        num_points: quadrature nodes on [0, t_max], trapezoid.
        t_max: end of the half line.
        scale_by_n: multiply by the number of samples over all ranks, as in the paper; the statistic of Gaussian
            samples is then about 1.05 whatever their number (`floor`).
        seed: run seed of the directions.
        chunk: directions handled at a time; a chunk needs N x chunk x num_points numbers for its backward.
    """

    def __init__(
        self,
        *,
        num_slices: int = 1024,
        num_points: int = 17,
        t_max: float = 3.0,
        scale_by_n: bool = True,
        seed: int = 0,
        chunk: int = 128,
    ) -> None:
        super().__init__()
        if num_slices < 1 or num_points < 2 or chunk < 1 or t_max <= 0:
            raise ValueError("SIGReg needs num_slices >= 1, num_points >= 2, chunk >= 1 and t_max > 0")
        self.num_slices, self.scale_by_n, self.seed, self.chunk = num_slices, scale_by_n, seed, chunk
        nodes = torch.linspace(0.0, t_max, num_points, dtype=torch.float64)
        step = t_max / (num_points - 1)
        weights = torch.full((num_points,), 2.0 * step, dtype=torch.float64)
        weights[0] = weights[-1] = step
        gaussian = torch.exp(-nodes.square() / 2)
        self._nodes, self._gaussian, self._weights = nodes, gaussian, weights * gaussian

    @property
    def floor(self) -> float:
        """Expected statistic of N(0, I) samples under this quadrature, with scale_by_n."""
        return float((self._weights * (1 - torch.exp(-self._nodes.square()))).sum())

    def directions(self, dim: int, *, step: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Unit columns [D, num_slices], a function of (seed, step) alone."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % (2**63))
        a = torch.randn(dim, self.num_slices, generator=generator, dtype=torch.float64)
        return (a / a.norm(dim=0)).to(device=device, dtype=dtype)

    def forward(self, z: torch.Tensor, *, step: int) -> torch.Tensor:
        """Statistic of samples z [..., N, D]: the sample axis is -2, leading axes are independent tests, averaged.

        N may differ between ranks. Correlated samples (views, time steps) belong on a leading axis, not in N.
        """
        if z.ndim < 2:
            raise ValueError(f"SIGReg takes samples of shape [..., N, D], got {tuple(z.shape)}")
        with torch.autocast(device_type=z.device.type, enabled=False):
            z = at_least_fp32(z)
            nodes, gaussian, weights = (
                t.to(z.device, z.dtype) for t in (self._nodes, self._gaussian, self._weights)
            )
            a = self.directions(z.shape[-1], step=step, device=z.device, dtype=z.dtype)
            # A rank without samples takes part in the reductions; without any on all ranks the statistic is 0.
            count = sum_over_ranks(z.new_tensor(float(z.shape[-2])))
            statistic = z.new_zeros(())
            for part in a.split(self.chunk, dim=1):
                angles = (z @ part).unsqueeze(0) * nodes.view(-1, *[1] * z.ndim)
                sums = torch.stack([angles.cos().sum(-2), angles.sin().sum(-2)])  # [2, T, ..., slices]
                real, imaginary = sum_over_ranks(sums) / count.clamp_min(1)
                shape = (-1, *[1] * (real.ndim - 1))
                distance = (real - gaussian.view(shape)).square() + imaginary.square()
                statistic = statistic + (weights.view(shape) * distance).sum(dim=(0, -1)).mean()
            statistic = statistic / self.num_slices
            return statistic * count if self.scale_by_n else statistic
