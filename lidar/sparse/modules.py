"""Sparse convolution layers. One set of parameters, two backends chosen at run time."""

from math import prod, sqrt
from typing import Literal

import torch
from torch import nn

from lidar.sparse import spconv_backend
from lidar.sparse.functional import sparse_conv
from lidar.sparse.sites import Shape
from lidar.sparse.tables import PairTable, strided_table, submanifold_table
from lidar.sparse.tensor import SparseTensor

Backend = Literal["auto", "torch", "spconv"]


class _SparseConvolution(nn.Module):
    """What both layer kinds share: parameters, the choice of backend, the table cache."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Shape,
        *,
        stride: int | Shape,
        padding: int | Shape,
        index_key: str,
        bias: bool,
        backend: Backend,
    ) -> None:
        super().__init__()
        if in_channels < 1 or out_channels < 1:
            raise ValueError(f"channels must be positive, got {in_channels} and {out_channels}")
        if backend not in ("auto", "torch", "spconv"):
            raise ValueError(f"backend must be auto, torch or spconv, got {backend!r}")
        self.kernel_size = _per_axis("kernel_size", kernel_size, 1)
        self.stride = _per_axis("stride", stride, 1)
        self.padding = _per_axis("padding", padding, 0)
        self.index_key = index_key
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(out_channels, *self.kernel_size, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(fan_in), torch's and spconv's default."""
        bound = 1 / sqrt(prod(self.weight.shape[1:]))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        out_channels, *_, in_channels = self.weight.shape
        return (
            f"{in_channels}, {out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, index_key={self.index_key!r}, backend={self.backend!r}"
        )

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """Convolve.

        Raises:
            ValueError: if the grid shrinks to nothing, the channels do not fit, or the cached table of this
                index key was built on other sites.
        """
        if spconv_backend.chosen(self.backend, tensor.features):
            return spconv_backend.convolve(self, tensor)
        table = self._table(tensor)
        features = sparse_conv(tensor.features, self.weight, table, self.bias)
        return SparseTensor(features=features, sites=table.target, tables=tensor.tables)

    def _table(self, tensor: SparseTensor) -> PairTable:
        table = tensor.tables.get(self.index_key)
        if table is None:
            table = tensor.tables[self.index_key] = self.build_table(tensor)
        elif not (table.source.same_as(tensor.sites) and table.kernel == self.kernel_size):
            raise ValueError(
                f"the table {self.index_key!r} was built for other sites or another kernel: use another "
                f"index_key, or an empty table cache for a new set of voxels"
            )
        return table

    def build_table(self, tensor: SparseTensor) -> PairTable:
        """The pair table of this layer on the tensor's sites, not cached."""
        raise NotImplementedError


class SubMConv3d(_SparseConvolution):
    """Submanifold convolution: stride 1, and the active sites stay as they are.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: odd, one number or one per axis (z, y, x).
        index_key: layers with the same key on the same sites share one table.
        bias: add a bias.
        backend: "torch", "spconv", or "auto": spconv on CUDA where it is installed, else torch.

    The weight is [C_out, kz, ky, kx, C_in] (spconv 2) with either backend.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Shape = 3,
        *,
        index_key: str,
        bias: bool = False,
        backend: Backend = "auto",
    ) -> None:
        kernel = _per_axis("kernel_size", kernel_size, 1)
        padding: Shape = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        super().__init__(
            in_channels, out_channels, kernel,
            stride=1, padding=padding, index_key=index_key, bias=bias, backend=backend,
        )  # fmt: skip

    def build_table(self, tensor: SparseTensor) -> PairTable:
        """The pair table of this layer on the tensor's sites, not cached."""
        return submanifold_table(tensor.sites, self.kernel_size)


class SparseConv3d(_SparseConvolution):
    """Regular sparse convolution: an output site is active where its window meets an input site.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: one number or one per axis (z, y, x).
        stride: likewise.
        padding: likewise.
        index_key: name of this layer's table; a second layer with the same geometry may share it.
        bias: add a bias.
        backend: "torch", "spconv", or "auto": spconv on CUDA where it is installed, else torch.

    The weight is [C_out, kz, ky, kx, C_in] (spconv 2) with either backend.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Shape = 3,
        *,
        stride: int | Shape = 1,
        padding: int | Shape = 0,
        index_key: str,
        bias: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size,
            stride=stride, padding=padding, index_key=index_key, bias=bias, backend=backend,
        )  # fmt: skip

    def build_table(self, tensor: SparseTensor) -> PairTable:
        """The pair table of this layer on the tensor's sites, not cached."""
        return strided_table(tensor.sites, kernel=self.kernel_size, stride=self.stride, padding=self.padding)


def _per_axis(name: str, value: int | Shape, least: int) -> Shape:
    axes = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(axes) != 3 or any(not isinstance(v, int) or v < least for v in axes):
        raise ValueError(f"{name} must be one integer >= {least} or three (z, y, x), got {value}")
    return axes
