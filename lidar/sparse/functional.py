"""Sparse convolution in plain torch: gather, one matrix product per tap, sum by gathering again.

Forward and backward are the same three steps. `embedding_bag` does the sums: it reads the products of a row
in a fixed order, so nothing is scattered and every number of threads gives the same bits.
"""

from typing import Any

import torch
from torch.nn import functional as F

from lidar.sparse.tables import Bags, PairTable


def sparse_conv(
    features: torch.Tensor, weight: torch.Tensor, table: PairTable, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Sparse convolution over the pairs of a table.

    Under autocast the products are taken in the autocast type, as torch's own convolutions do.

    Args:
        features: [N_in, C_in].
        weight: [C_out, kz, ky, kx, C_in], the layout of spconv 2.
        table: the pairs.
        bias: [C_out] or None.

    Returns:
        [N_out, C_out], in the type of the products.

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
    device = features.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        features, weight = features.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):
        out = _SparseConv.apply(features, weight.flatten(1, 3), table)
    return out if bias is None else out + bias.to(out.dtype)


class _SparseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, weight: torch.Tensor, table: PairTable) -> torch.Tensor:
        ctx.save_for_backward(features, weight)
        ctx.table = table
        rows = _gather(features, table.inputs)
        products = features.new_empty(len(rows), weight.shape[0])
        for tap, start, stop in table.taps:
            torch.mm(rows[start:stop], weight[:, tap].t(), out=products[start:stop])
        return _sum(products, table.by_output, len(table.target))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        features, weight = ctx.saved_tensors
        table: PairTable = ctx.table
        grad_rows = _gather(grad.contiguous(), table.outputs)
        grad_features = grad_weight = None
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.needs_input_grad[1]:
                rows = _gather(features, table.inputs)
                grad_weight = torch.zeros_like(weight)
                for tap, start, stop in table.taps:
                    torch.mm(grad_rows[start:stop].t(), rows[start:stop], out=grad_weight[:, tap])
            if ctx.needs_input_grad[0]:
                products = features.new_empty(len(grad_rows), features.shape[1])
                for tap, start, stop in table.taps:
                    torch.mm(grad_rows[start:stop], weight[:, tap], out=products[start:stop])
                grad_features = _sum(products, table.by_input, len(features))
        return grad_features, grad_weight, None


def _gather(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return rows.index_select(0, index)


def _sum(products: torch.Tensor, bags: Bags, count: int) -> torch.Tensor:
    """Sum of the products [P, C] in each bag: [count, C]."""
    if len(products) == 0:
        return products.new_zeros(count, products.shape[1])
    return F.embedding_bag(bags.pairs, products, bags.offsets, mode="sum", include_last_offset=True)
