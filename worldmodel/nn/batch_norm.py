"""Batch normalisation over all ranks, and recalibration of its running statistics.

torch.nn.SyncBatchNorm refuses CPU tensors and assumes NCCL; this one runs on any backend, with unequal row counts
per rank, and is an ordinary BatchNorm (same names, same numbers) in one process.
"""

import copy
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from worldmodel.distributed import at_least_fp32, is_distributed, sum_over_ranks

T = TypeVar("T")


class _SyncedBatchNorm(_BatchNorm):
    """Normalises with the mean and biased variance over the rows of all ranks; running variance is unbiased."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check_input_dim(x)
        rows_here = x.numel() // x.shape[1]
        if not (self.training and is_distributed()):
            if self.training and rows_here < 2 and self.running_mean is not None:
                return self._few_rows(x)
            return super().forward(x)
        axes = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        rows = at_least_fp32(x)
        total = sum_over_ranks(torch.cat([rows.sum(axes), rows.new_tensor([float(rows_here)])]))
        count = total[-1].detach()
        mean = total[:-1] / count.clamp_min(1)
        if self.running_mean is not None:
            mean = torch.where(count < 2, self.running_mean, mean)
        centred = rows - mean.view(shape)
        # Two passes: the variance from centred values keeps fp32 precision where the mean is large.
        variance = sum_over_ranks(centred.square().sum(axes)) / count.clamp_min(1)
        if self.running_var is not None:
            variance = torch.where(count < 2, self.running_var, variance)
        self._update_running(mean.detach(), variance.detach(), count)
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)

    def _few_rows(self, x: torch.Tensor) -> torch.Tensor:
        """Fewer than two rows carry no batch statistics: use the running ones and leave them as they are."""
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    @torch.no_grad()
    def _update_running(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        enough = count >= 2
        self.num_batches_tracked.add_(enough)
        dtype = self.running_mean.dtype
        seen = self.num_batches_tracked.clamp_min(1).to(dtype)
        share = enough.to(dtype) * (1.0 / seen if self.momentum is None else self.momentum)
        unbiased = variance * count / (count - 1).clamp_min(1)
        self.running_mean.lerp_(mean.to(dtype), share)
        self.running_var.lerp_(unbiased.to(dtype), share)


class SyncedBatchNorm1d(_SyncedBatchNorm):
    """Input [N, C]: one row per active voxel. An empty or one-row batch passes with the running statistics."""

    def _check_input_dim(self, x: torch.Tensor) -> None:
        if x.ndim != 2:
            raise ValueError(f"expected rows of shape [N, C], got {tuple(x.shape)}")


class SyncedBatchNorm2d(_SyncedBatchNorm):
    """Input [B, C, H, W]."""

    def _check_input_dim(self, x: torch.Tensor) -> None:
        if x.ndim != 4:
            raise ValueError(f"expected a map of shape [B, C, H, W], got {tuple(x.shape)}")


@torch.no_grad()
def recalibrated(module: nn.Module, inputs: Iterable[T], run: Callable[[nn.Module, T], object]) -> nn.Module:
    """A frozen copy of `module` in eval mode whose BatchNorm statistics are those of `inputs`; `module` is untouched.

    Running statistics gathered on half-masked clouds do not fit full clouds (docs/ad_l_jepa.md): measure them
    again on the data the copy will see. The statistics are the plain average over the inputs.

    Args:
        module: any module with BatchNorm layers.
        inputs: batches to average over; an empty iterable only freezes the copy.
        run: called as run(copy, batch) for each.
    """
    frozen = copy.deepcopy(module)
    norms = [m for m in frozen.modules() if isinstance(m, _BatchNorm)]
    batches = list(inputs)
    momenta = [n.momentum for n in norms]
    if batches:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        frozen.train()
        for batch in batches:
            run(frozen, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    frozen.eval()
    return frozen.requires_grad_(False)
