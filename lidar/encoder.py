"""The sparse 3-D encoder: voxels to a bird's-eye-view map, as OpenPCDet's VoxelBackBone8x and VoxelResBackBone8x."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from lidar.batch import VoxelBatch
from lidar.grid import VoxelGrid
from lidar.sparse import Backend, Shape, Sites, SparseConv3d, SparseTensor, SubMConv3d, output_shape

Norm = Callable[[int], nn.Module]


class SparseEncoder(nn.Module):
    """Submanifold and strided sparse convolutions, each with BatchNorm and ReLU, then a dense BEV map.

    | stage      | layers (kernel 3x3x3 unless said)                                        | width          |
    |------------|--------------------------------------------------------------------------|----------------|
    | conv_input | SubM                                                                     | widths[0]      |
    | conv1      | SubM                                                                     | widths[0]      |
    | conv2 ...  | strided by 2 with padding 1 (the last one (0, 1, 1)); SubM; SubM         | widths[1:-1]   |
    | conv_out   | kernel (3, 1, 1), stride (2, 1, 1), padding 0                            | widths[-1]     |

    widths (16, 32, 64, 64, 128) is VoxelBackBone8x: stride 8, 711,872 parameters with 4 input channels, 72
    tensors in its state under OpenPCDet's names. widths (8, 16, 32, 32) is the small default: stride 4,
    92,448 parameters.

    The residual variant has two residual blocks in place of the SubM layers of every stage, conv1 included; widths
    (16, 32, 64, 128, 128) is VoxelResBackBone8x, stride 8, the encoder of CenterPoint on nuScenes.

    Args:
        in_channels: features per voxel.
        grid: the voxel grid; the encoder works on (Z + 1, Y, X) cells, as OpenPCDet's checkpoints need.
        widths: channels of the stem, of each strided stage and of conv_out.
        norm: makes the normalisation of a layer from its width. The default is BatchNorm1d with eps 1e-3 and
            the given momentum.
        momentum: momentum of the default normalisation (OpenPCDet: 0.01; short runs need 0.1, or the running
            statistics are stale).
        backend: backend of the sparse convolutions, see `lidar.sparse`.

    Raises:
        ValueError: if a width is not positive or the grid is too small for the number of stages.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        grid: VoxelGrid,
        widths: Sequence[int] = (16, 32, 64, 64, 128),
        norm: Norm | None = None,
        momentum: float = 0.01,
        residual: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if len(widths) < 3 or any(width < 1 for width in widths):
            raise ValueError(
                f"widths takes positive channel counts for the stem, one or more strided stages and "
                f"conv_out, got {tuple(widths)}"
            )
        stem, *stages, out = widths
        norm = norm or partial(nn.BatchNorm1d, eps=1e-3, momentum=momentum)
        block: Callable[..., _Block] = partial(_Block, norm=norm, backend=backend)
        residual_block = partial(_ResidualBlock, norm=norm, backend=backend)

        def layers(number: int, width: int) -> list[nn.Module]:
            """The layers of a stage that keep its sites: SubM, one in conv1 and two after it, or residual blocks."""
            if residual:
                return [residual_block(width, index_key=f"subm{number}") for _ in range(2)]
            return [block(width, width, index_key=f"subm{number}") for _ in range(1 if number == 1 else 2)]

        self.input_shape: Shape = grid.sparse_shape
        self.conv_input = block(in_channels, stem, index_key="subm1")
        self.conv1 = nn.Sequential(*layers(1, stem))
        self._stages = ["conv1"]
        shape, before = self.input_shape, stem
        for number, width in enumerate(stages, start=2):
            padding = (0, 1, 1) if number == len(stages) + 1 else (1, 1, 1)
            strided = block(before, width, stride=2, padding=padding, index_key=f"spconv{number}")
            self.add_module(f"conv{number}", nn.Sequential(strided, *layers(number, width)))
            self._stages.append(f"conv{number}")
            shape = _shape_after(strided[0], shape, grid)
            before = width
        self.conv_out = block(before, out, kernel_size=(3, 1, 1), stride=(2, 1, 1), index_key="spconv_down2")
        self.output_shape: Shape = _shape_after(self.conv_out[0], shape, grid)
        self.stride = 2 ** len(stages)
        self.bev_channels = out * self.output_shape[0]

    @property
    def bev_shape(self) -> tuple[int, int]:
        """Rows (y) and columns (x) of the BEV map."""
        return self.output_shape[1:]

    def occupied(self, voxels: VoxelBatch) -> torch.Tensor:
        """Which BEV cells a voxel lies in: bool [B, H, W]."""
        return bev_cells(
            voxels.coordinates, stride=self.stride, bev_shape=self.bev_shape, batch_size=voxels.batch_size
        )

    def forward(self, voxels: VoxelBatch, *, tables: dict[str, Any] | None = None) -> torch.Tensor:
        """Encode voxels.

        Args:
            voxels: features [N, in_channels] at sorted coordinates; samples may be empty.
            tables: table cache to fill and use. Give two passes over the same voxels one dictionary and the
                tables are built once.

        Returns:
            [B, bev_channels, H, W], channel c * D + z, zero where no site is active.
        """
        return self.encode(voxels, tables=tables).bev()

    def encode(self, voxels: VoxelBatch, *, tables: dict[str, Any] | None = None) -> SparseTensor:
        """The sparse output of conv_out, before it is made dense."""
        return self.stage_outputs(voxels, tables=tables)[-1]

    def stage_outputs(
        self, voxels: VoxelBatch, *, tables: dict[str, Any] | None = None
    ) -> list[SparseTensor]:
        """Sparse outputs of conv1, conv2, ... and conv_out, for heads that read several scales."""
        sites = Sites.from_coordinates(
            voxels.coordinates, shape=self.input_shape, batch_size=voxels.batch_size
        )
        tensor = SparseTensor(features=voxels.features, sites=sites, tables={} if tables is None else tables)
        tensor = self.conv_input(tensor)
        outputs = []
        for name in (*self._stages, "conv_out"):
            tensor = self.get_submodule(name)(tensor)
            outputs.append(tensor)
        return outputs


def voxel_backbone_8x(*, in_channels: int = 4, grid: VoxelGrid, **options: Any) -> SparseEncoder:
    """OpenPCDet's VoxelBackBone8x: stride 8, 711,872 parameters with 4 input channels."""
    return SparseEncoder(in_channels=in_channels, grid=grid, widths=(16, 32, 64, 64, 128), **options)


def voxel_res_backbone_8x(*, in_channels: int = 5, grid: VoxelGrid, **options: Any) -> SparseEncoder:
    """OpenPCDet's VoxelResBackBone8x: stride 8, 2,695,312 parameters with 5 input channels."""
    return SparseEncoder(
        in_channels=in_channels, grid=grid, widths=(16, 32, 64, 128, 128), residual=True, **options
    )


def small_encoder(*, in_channels: int = 4, grid: VoxelGrid, **options: Any) -> SparseEncoder:
    """The small default: stride 4, 92,448 parameters with 4 input channels, 64 BEV channels (Z = 20)."""
    options.setdefault("momentum", 0.1)
    return SparseEncoder(in_channels=in_channels, grid=grid, widths=(8, 16, 32, 32), **options)


def bev_cells(
    coordinates: torch.Tensor, *, stride: int, bev_shape: tuple[int, int], batch_size: int
) -> torch.Tensor:
    """Occupancy of the BEV grid: True where a voxel lies in the column. bool [B, H, W].

    Args:
        coordinates: [N, 4] int64 voxels (sample, z, y, x).
        stride: voxels per BEV cell along y and x.
        bev_shape: H, W.
        batch_size: B.
    """
    height, width = bev_shape
    occupied = torch.zeros(batch_size * height * width, dtype=torch.bool, device=coordinates.device)
    sample, _, y, x = coordinates.unbind(1)
    cell = (sample * height + y // stride) * width + x // stride
    return occupied.index_fill_(0, cell, True).view(batch_size, height, width)


class _Block(nn.Sequential):
    """Convolution, normalisation, ReLU. Children 0 and 1 carry OpenPCDet's parameter names."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int | Shape = 3,
        stride: int | Shape | None = None,
        padding: int | Shape = 0,
        index_key: str,
        norm: Norm,
        backend: Backend,
    ) -> None:
        if stride is None:
            conv: nn.Module = SubMConv3d(
                in_channels, out_channels, kernel_size, index_key=index_key, backend=backend
            )
        else:
            conv = SparseConv3d(
                in_channels, out_channels, kernel_size,
                stride=stride, padding=padding, index_key=index_key, backend=backend,
            )  # fmt: skip
        super().__init__(conv, norm(out_channels), nn.ReLU(inplace=True))

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        conv, norm, relu = self
        tensor = conv(tensor)
        return tensor.with_features(relu(_normalise(norm, tensor.features)))


class _ResidualBlock(nn.Module):
    """Two SubM convolutions with bias, each with normalisation, and the input added before the last ReLU."""

    def __init__(self, channels: int, *, index_key: str, norm: Norm, backend: Backend) -> None:
        super().__init__()
        self.conv1, self.conv2 = (
            SubMConv3d(channels, channels, 3, index_key=index_key, bias=True, backend=backend)
            for _ in range(2)
        )
        self.bn1, self.bn2 = norm(channels), norm(channels)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        inner = self.conv1(tensor)
        inner = self.conv2(inner.with_features(_normalise(self.bn1, inner.features).relu()))
        return inner.with_features((_normalise(self.bn2, inner.features) + tensor.features).relu())


def _normalise(norm: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Normalise [N, C]. torch's BatchNorm refuses fewer than two rows: these use the running statistics."""
    if type(norm) is nn.BatchNorm1d and norm.training and len(features) < 2:
        return nn.functional.batch_norm(
            features, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    return norm(features)


def _shape_after(conv: nn.Module, shape: Shape, grid: VoxelGrid) -> Shape:
    assert isinstance(conv, SparseConv3d)
    try:
        return output_shape(shape, kernel=conv.kernel_size, stride=conv.stride, padding=conv.padding)
    except ValueError as error:
        raise ValueError(
            f"the grid of {grid.shape} voxels (z, y, x) is too small for this encoder: {error}"
        ) from None
