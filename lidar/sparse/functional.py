"""Sparse convolution in plain torch: gather, matrix product, sum by gathering again.

Forward and backward are the same three steps over runs of rows (see `lidar.sparse.runs`). `embedding_bag` does the
sums: it reads the products of a row in a fixed order, so every number of threads gives the same bits.
"""

from functools import cache
from typing import Any

import torch
from torch.nn import functional as F

from lidar.sparse.runs import Block, RunReader
from lidar.sparse.tables import PairTable


def sparse_conv(
    features: torch.Tensor, weight: torch.Tensor, table: PairTable, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Sparse convolution over the pairs of a table.

    Under autocast the operands are rounded to the autocast type, as torch's own convolutions do. Where the
    processor has no products of that type (a CPU without AVX512 bf16: torch is 30 times slower there than in
    float32) the rounded operands are multiplied in float32.

    Args:
        features: [N_in, C_in].
        weight: [C_out, kz, ky, kx, C_in], the layout of spconv 2.
        table: the pairs.
        bias: [C_out] or None.

    Returns:
        [N_out, C_out], in the type of the operands (the autocast type under autocast).

    Raises:
        ValueError: if features, weight and table do not fit together.
    """
    if features.shape != (len(table.source), weight.shape[-1]):
        raise ValueError(
            f"features are {list(features.shape)}; the table has {len(table.source)} input rows and the "
            f"weight {weight.shape[-1]} input channels"
        )
    if tuple(weight.shape[1:4]) != table.kernel:
        raise ValueError(f"the weight's kernel is {tuple(weight.shape[1:4])}, the table's {table.kernel}")
    device, dtype = features.device.type, features.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        features, weight = features.to(dtype), weight.to(dtype)
        if device == "cpu" and not _cpu_multiplies(dtype):
            features, weight = features.float(), weight.float()
    with torch.autocast(device, enabled=False):
        out = _SparseConv.apply(features, weight.flatten(1, 3), table).to(dtype)
    return out if bias is None else out + bias.to(out.dtype)


@cache
def _cpu_multiplies(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies matrices of the autocast type at a useful speed."""
    bfloat16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.bfloat16 and bfloat16


class _SparseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, weight: torch.Tensor, table: PairTable) -> torch.Tensor:
        """features [N_in, C_in], weight [C_out, K, C_in] -> [N_out, C_out]."""
        ctx.save_for_backward(features, weight)
        ctx.table = table
        kernel = _Kernel(weight.permute(1, 2, 0))
        reader = RunReader(features)
        sums = []
        for block in table.forward:
            products = features.new_empty(sum(block.sizes), weight.shape[0])
            parts = products.split(block.sizes) if block.sizes else ()
            for (taps, first, _), part in zip(block.groups(), parts, strict=True):
                torch.mm(reader.read(first, len(taps)), kernel.rows(taps), out=part)
            sums.append(_sum(products, block))
        return _stack(sums, features, weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        """The same pass over the gradient, with the taps in reverse; each gathered run serves both gradients."""
        features, weight = ctx.saved_tensors
        need_features, need_weight, _ = ctx.needs_input_grad
        out_channels, taps_total, in_channels = weight.shape
        kernel = _Kernel(weight.permute(1, 0, 2).flip(0))
        grad_kernel = _KernelGradient(in_channels, taps_total, out_channels, like=weight)
        reader = RunReader(grad)
        sums = []
        with torch.autocast(grad.device.type, enabled=False):
            for block in ctx.table.backward:
                products = grad.new_empty(sum(block.sizes) if need_features else 0, in_channels)
                parts = products.split(block.sizes) if len(products) else [products] * len(block.sizes)
                for (taps, first, centres), part in zip(block.groups(), parts, strict=True):
                    run = reader.read(first, len(taps))
                    if need_features:
                        torch.mm(run, kernel.rows(taps), out=part)
                    if need_weight:
                        grad_kernel.add(taps, features.index_select(0, centres), run)
                if need_features:
                    sums.append(_sum(products, block))
        grad_features = _stack(sums, grad, in_channels) if need_features else None
        grad_weight = grad_kernel.total.flip(1).permute(2, 1, 0).to(weight.dtype) if need_weight else None
        return grad_features, grad_weight, None


class _Kernel:
    """A kernel [K, C, C'] that hands out the matrices of some taps, one under the other."""

    def __init__(self, kernel: torch.Tensor) -> None:
        self._kernel = kernel.contiguous()
        self._rows: dict[tuple[int, ...], torch.Tensor] = {}

    def rows(self, taps: tuple[int, ...]) -> torch.Tensor:
        """[len(taps) * C, C']."""
        rows = self._rows.get(taps)
        if rows is None:
            low, high = taps[0], taps[-1] + 1
            if high - low == len(taps):
                rows = self._kernel[low:high].flatten(0, 1)
            else:
                rows = torch.cat([self._kernel[tap] for tap in taps])
            self._rows[taps] = rows
        return rows


class _KernelGradient:
    """Sum of x^T y over the pairs of each tap: [C_in, K, C_out].

    A sum over many rows: it is kept in float32 also where the products are bfloat16.
    """

    def __init__(self, in_channels: int, taps: int, out_channels: int, *, like: torch.Tensor) -> None:
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.total = like.new_zeros(in_channels, taps, out_channels, dtype=dtype)
        self._in_place = like.dtype == dtype
        self._columns: dict[tuple[int, ...], torch.Tensor] = {}

    def add(self, taps: tuple[int, ...], rows: torch.Tensor, runs: torch.Tensor) -> None:
        """Add rows [I, C_in] against runs [I, len(taps) * C_out]."""
        columns = self._columns.get(taps)
        if columns is not None:
            columns.addmm_(rows.t(), runs)
        elif self._in_place and taps[-1] - taps[0] + 1 == len(taps):
            columns = self._columns[taps] = self.total[:, taps[0] : taps[-1] + 1].view(len(self.total), -1)
            columns.addmm_(rows.t(), runs)
        else:
            product = rows.t().mm(runs).unflatten(1, (len(taps), -1))
            for place, tap in enumerate(taps):
                self.total[:, tap].add_(product[:, place])


def _sum(products: torch.Tensor, block: Block) -> torch.Tensor:
    """Sum the products [I, C] of each centre: [count, C]."""
    if len(products) == 0:
        return products.new_zeros(block.count, products.shape[1])
    return F.embedding_bag(block.pairs, products, block.offsets, mode="sum", include_last_offset=True)


def _stack(parts: list[torch.Tensor], like: torch.Tensor, channels: int) -> torch.Tensor:
    if not parts:
        return like.new_zeros(0, channels)
    return parts[0] if len(parts) == 1 else torch.cat(parts)
