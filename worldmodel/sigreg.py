"""SIGReg, the regulariser of LeJEPA: pulls embeddings towards an isotropic Gaussian. Import it from regularizers."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from worldmodel.distributed import at_least_fp32, sum_over_ranks

# Complex numbers handled at a time. On a CPU about what its second-level cache holds; a GPU wants few, large kernels.
_BLOCK = {"cpu": 2**17, "cuda": 2**23}


class SIGReg(nn.Module):
    """Sketched isotropic Gaussian regulariser (LeJEPA, arXiv 2511.08544, Algorithm 1).

    The Epps-Pulley distance between N(0, 1) and the embedding, averaged over random directions:

        N * integral over t of |mean_n exp(i t z_n.a) - exp(-t^2/2)|^2 exp(-t^2/2)

    The quadrature runs over the half line [0, t_max], doubled, as in the released code: the printed two-sided form is
    periodic in each projection with period 10 and pulls outliers the wrong way. Nothing is standardised: mean and
    scale are part of what is enforced.

    Besides the input and its gradient it holds tests x directions x nodes numbers, whatever N is.

    Args:
        num_slices: random directions, drawn anew each step from (seed, step), equal on all ranks.
        num_points: quadrature nodes on [0, t_max], trapezoid.
        t_max: end of the half line.
        scale_by_n: multiply by the number of samples over all ranks, as in the paper; the statistic of Gaussian
            samples is then about 1.05 whatever their number (`floor`).
        sample_axis: axis of the samples; the features are the last axis, every other axis counts independent tests.
            -2 by default, [..., N, D]; never the last.
        reduction: of the tests: their mean, their sum, or "none", one value each.
        seed: run seed of the directions.
        block: complex numbers handled at a time (samples x directions); None suits the device.
    """

    def __init__(
        self,
        *,
        num_slices: int = 1024,
        num_points: int = 17,
        t_max: float = 3.0,
        scale_by_n: bool = True,
        sample_axis: int = -2,
        reduction: Literal["mean", "sum", "none"] = "mean",
        seed: int = 0,
        block: int | None = None,
    ) -> None:
        super().__init__()
        if num_slices < 1 or num_points < 2 or (block is not None and block < 1) or t_max <= 0:
            raise ValueError("SIGReg needs num_slices >= 1, num_points >= 2, block >= 1 and t_max > 0")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"SIGReg's reduction is mean, sum or none, got {reduction!r}")
        if sample_axis == -1:
            raise ValueError(
                "the last axis holds the features: sample_axis is another one, -2 for [..., N, D]"
            )
        self.num_slices, self.scale_by_n, self.seed, self.block = num_slices, scale_by_n, seed, block
        self.sample_axis, self.reduction = sample_axis, reduction
        self._spacing = t_max / (num_points - 1)
        nodes = torch.linspace(0.0, t_max, num_points, dtype=torch.float64)
        weights = torch.full((num_points,), 2.0 * self._spacing, dtype=torch.float64)
        weights[0] = weights[-1] = self._spacing
        gaussian = torch.exp(-nodes.square() / 2)
        # At t = 0 both characteristic functions are 1: the node carries nothing.
        self._gaussian, self._weights = gaussian[1:], (weights * gaussian)[1:]

    @property
    def floor(self) -> float:
        """Expected statistic, with scale_by_n, of N(0, I) samples under this quadrature; 1.0525 by default."""
        return float((self._weights * (1 - self._gaussian.square())).sum())

    @property
    def period(self) -> float:
        """The statistic is periodic in each projection, 33.5 by default: a projection beyond half of this is pulled
        outwards. Behind a BatchNorm over N rows a coordinate is at most sqrt(N), a projection sqrt(N D)."""
        return 2 * torch.pi / self._spacing

    def directions(self, dim: int, *, step: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Unit columns [D, num_slices], a function of (seed, step) alone."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % (2**63))
        a = torch.randn(dim, self.num_slices, generator=generator).to(
            device, torch.promote_types(dtype, torch.float32)
        )
        return (a / a.norm(dim=0)).to(dtype)

    def distance(self, z: torch.Tensor, *, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The statistic of each test without the factor N [...], and N over all ranks (a scalar)."""
        if z.ndim < 2 or z.shape[-1] == 0 or not -z.ndim <= self.sample_axis < z.ndim - 1:
            raise ValueError(
                f"SIGReg takes samples of shape [..., N, D] (sample_axis {self.sample_axis}), got {tuple(z.shape)}"
            )
        if not z.is_floating_point():
            raise ValueError(f"SIGReg takes floating-point samples, got {z.dtype}")
        with torch.autocast(device_type=z.device.type, enabled=False):
            z = at_least_fp32(z).movedim(self.sample_axis, -2)
            gaussian, weights = (t.to(z.device, z.dtype) for t in (self._gaussian, self._weights))
            a = self.directions(z.shape[-1], step=step, device=z.device, dtype=z.dtype)
            block = self.block or _BLOCK.get(z.device.type, _BLOCK["cuda"])
            tests = z.reshape(math.prod(z.shape[:-2]), *z.shape[-2:])
            if not len(tests):
                raise ValueError(f"no test among the leading axes of {tuple(z.shape)}: one of them is empty")
            sums = _CharacteristicSums.apply(tests, a, self._spacing, len(weights), block)
            # A rank without samples takes part in the reductions; without any on all ranks the statistic is 0.
            count = sum_over_ranks(z.new_tensor(float(z.shape[-2])))
            mean = sum_over_ranks(sums) / count.clamp_min(1)
            square = (mean[0] - gaussian.view(-1, 1, 1)).square() + mean[1].square()
            statistic = (weights.view(-1, 1, 1) * square).sum(0).mean(-1)
            return (statistic * count.clamp_max(1)).view(z.shape[:-2]), count

    def forward(self, z: torch.Tensor, *, step: int) -> torch.Tensor:
        """Statistic of samples z [..., N, D]; a scalar unless reduction is "none".

        N may differ between ranks. Correlated samples (views, time steps) belong on a leading axis, not in N.
        """
        return self.reduce(*self.distance(z, step=step))

    def reduce(self, statistic: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """What `distance` returned, scaled and reduced as this SIGReg was told to."""
        if self.scale_by_n:
            statistic = statistic * count
        if self.reduction == "none":
            return statistic
        return statistic.mean() if self.reduction == "mean" else statistic.sum()


class _CharacteristicSums(torch.autograd.Function):
    """sum_n of cos and sin of k * spacing * z_n.a for k = 1..points: [2, points, tests, slices].

    The nodes are equally spaced, so exp(i k theta) are powers of one complex exponential: 1 sine and cosine instead of
    `points`. Neither pass keeps a table of samples x slices x points: the backward pass computes the powers again,
    as a polynomial by Horner's rule.
    """

    @staticmethod
    def forward(
        ctx: Any, z: torch.Tensor, a: torch.Tensor, spacing: float, points: int, block: int
    ) -> torch.Tensor:
        ctx.save_for_backward(z, a)
        ctx.spacing, ctx.block = spacing, block
        sums = z.new_zeros(points, len(z), a.shape[1], dtype=z.dtype.to_complex())
        for tests, rows in _blocks(z, a.shape[1], block):
            turn = _turn(z[tests, rows], a, spacing)
            power = turn.clone()
            for k in range(points):
                if k:
                    power.mul_(turn)
                sums[k, tests] += power.sum(1)
        return torch.view_as_real(sums).movedim(-1, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        z, a = ctx.saved_tensors
        by_cos, by_sin = grad_outputs[0]  # [points, tests, slices]
        k = torch.arange(1, len(by_cos) + 1, dtype=z.dtype, device=z.device).view(-1, 1, 1)
        # d/dp of g_cos cos(t p) + g_sin sin(t p) is the real part of t (g_sin + i g_cos) exp(i t p).
        coefficients = torch.complex(by_sin, by_cos) * (k * ctx.spacing)
        gradient = torch.empty_like(z)
        with torch.autocast(device_type=z.device.type, enabled=False):
            for tests, rows in _blocks(z, a.shape[1], ctx.block):
                turn = _turn(z[tests, rows], a, ctx.spacing)
                *lower, highest = coefficients[:, tests].unsqueeze(2)
                polynomial = turn * highest
                for coefficient in reversed(lower):
                    polynomial.add_(coefficient).mul_(turn)
                gradient[tests, rows] = polynomial.real @ a.T
        return gradient, None, None, None, None


def _turn(z: torch.Tensor, a: torch.Tensor, spacing: float) -> torch.Tensor:
    """exp(i spacing z.a), [tests, rows, slices]."""
    angle = (z @ a).mul_(spacing)
    return torch.polar(torch.ones_like(angle), angle)


def _blocks(z: torch.Tensor, slices: int, block: int) -> Iterator[tuple[slice, slice]]:
    """Tests and samples of z [tests, N, D] to handle together: about `block` projections."""
    tests, count, _ = z.shape
    together = max(1, block // (slices * max(1, count)))
    rows = max(1, block // slices)
    for test in range(0, tests, together):
        for row in range(0, count, rows):
            yield slice(test, test + together), slice(row, row + rows)
