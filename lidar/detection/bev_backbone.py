"""The 2-D backbone of voxel detectors: a BEV map at several scales, brought to one and concatenated (SECOND)."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from worldmodel.nn.batch_norm import SyncedBatchNorm2d

Norm = Callable[[int], nn.Module]


def batch_norm_2d(*, synced: bool, eps: float = 1e-3, momentum: float = 0.01) -> Norm:
    """Makes BatchNorm of a width: over all ranks if `synced`, else over the samples of this GPU, as OpenPCDet's."""
    return partial(SyncedBatchNorm2d if synced else nn.BatchNorm2d, eps=eps, momentum=momentum)


class BEVBackbone(nn.Module):
    """OpenPCDet's BaseBEVBackbone: convolutions at ever coarser scales, each scale upsampled and concatenated.

    Block i is a 3x3 convolution of stride strides[i] and layers[i] more of stride 1; its output goes on to block i + 1
    and through a transposed convolution of kernel and stride up_strides[i] into the concatenation. No biases; every
    convolution is followed by normalisation and ReLU. Parameter names are OpenPCDet's, blocks.0.1.weight (child 0 is
    the padding) and deblocks.1.0.weight.

    Args:
        in_channels: of the BEV map.
        layers: further convolutions of each block.
        strides: of the first convolution of each block.
        widths: channels of each block.
        up_strides: of each transposed convolution; all blocks must come out at the same scale.
        up_widths: channels of each transposed convolution.
        norm: makes the normalisation of a layer from its width.

    Raises:
        ValueError: if the lists differ in length or the blocks come out at different scales.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        layers: Sequence[int] = (5, 5),
        strides: Sequence[int] = (1, 2),
        widths: Sequence[int] = (128, 256),
        up_strides: Sequence[int] = (1, 2),
        up_widths: Sequence[int] = (256, 256),
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        lists = (layers, strides, widths, up_strides, up_widths)
        if len({len(values) for values in lists}) != 1 or not layers:
            raise ValueError(
                f"layers, strides, widths, up_strides and up_widths take one number per block, got "
                f"{', '.join(str(tuple(values)) for values in lists)}"
            )
        norm = norm or batch_norm_2d(synced=False)
        self.blocks, self.deblocks = nn.ModuleList(), nn.ModuleList()
        before, down, scales = in_channels, 1, set()
        for depth, stride, width, up_stride, up_width in zip(*lists, strict=True):
            self.blocks.append(_block(before, width, stride=stride, depth=depth, norm=norm))
            up = nn.ConvTranspose2d(width, up_width, up_stride, stride=up_stride, bias=False)
            self.deblocks.append(nn.Sequential(up, norm(up_width), nn.ReLU(inplace=True)))
            before, down = width, down * stride
            scales.add(down / up_stride)
        if len(scales) != 1:
            raise ValueError(
                f"strides {tuple(strides)} and up_strides {tuple(up_strides)} bring the blocks to different scales: "
                f"each up_stride must undo the strides so far, up to one common factor"
            )
        self.scale = scales.pop()
        self.multiple = down
        self.out_channels = sum(up_widths)

    def map_shape(self, bev_shape: tuple[int, int]) -> tuple[int, int]:
        """H, W of the features of a map of H, W.

        Raises:
            ValueError: if the map cannot be made coarser by whole cells.
        """
        rows, columns = bev_shape
        if rows % self.multiple or columns % self.multiple:
            raise ValueError(
                f"a BEV map of {rows} x {columns} cells cannot be made {self.multiple} times coarser: choose "
                f"point_range and voxel_size so that both are multiples of {self.multiple}"
            )
        return round(rows / self.scale), round(columns / self.scale)

    def forward(self, bev: torch.Tensor) -> torch.Tensor:
        """Features [B, out_channels, *map_shape(H, W)] of a map [B, in_channels, H, W]."""
        self.map_shape((bev.shape[-2], bev.shape[-1]))
        maps = []
        for block, deblock in zip(self.blocks, self.deblocks, strict=True):
            bev = block(bev)
            maps.append(deblock(bev))
        return torch.cat(maps, dim=1)


def _block(in_channels: int, width: int, *, stride: int, depth: int, norm: Norm) -> nn.Sequential:
    children: list[nn.Module] = [nn.ZeroPad2d(1)]
    for layer in range(depth + 1):
        first = layer == 0
        children += [
            nn.Conv2d(
                in_channels if first else width, width, 3,
                stride=stride if first else 1, padding=0 if first else 1, bias=False,
            ),
            norm(width),
            nn.ReLU(inplace=True),
        ]  # fmt: skip
    return nn.Sequential(*children)
