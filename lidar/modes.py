"""The prediction problem of AD-L-JEPA in plain numbers, for the mode diagnostic of worldmodel.theory.

A masked cell is to be predicted from the visible cells around it. Both sides are described by what the cell's voxels
are, not by any network: how many voxels are active in each height level, and how bright they are. The covariances of
these descriptors define the modes; a checkpoint's features of the same visible cells, pooled alike, tell how much of
each mode it holds.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lidar.batch import VoxelBatch
from lidar.encoder import SparseEncoder
from worldmodel.masking.bev import BEVMasks


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """Masked non-empty cells with at least one visible non-empty cell in a square window around them.

    Args:
        masks: the split of the cells.
        window: side of the window in cells, odd.
    """

    masks: BEVMasks
    window: int = 5

    def __post_init__(self) -> None:
        if self.window < 3 or self.window % 2 == 0:
            raise ValueError(f"window must be odd and at least 3 cells, got {self.window}")

    @property
    def cells(self) -> torch.Tensor:
        """[B, H, W] bool."""
        seen = self._sum(self.masks.visible_occupied.unsqueeze(1).float())[:, 0]
        return self.masks.masked_occupied & (seen > 0.5)

    def pooled(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of values [B, C, H, W] over the visible non-empty cells of each window: [N, C]."""
        visible = self.masks.visible_occupied.unsqueeze(1)
        total = self._sum(torch.where(visible, values, values.new_zeros(())))
        mean = total / self._sum(visible.to(values.dtype)).clamp_min(1)
        return mean.permute(0, 2, 3, 1)[self.cells]

    def own(self, values: torch.Tensor) -> torch.Tensor:
        """values [B, C, H, W] at the masked cells themselves: [N, C]."""
        return values.permute(0, 2, 3, 1)[self.cells]

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the window around each cell, [B, C, H, W]."""
        return F.avg_pool2d(values, self.window, stride=1, padding=self.window // 2, divisor_override=1)


def cell_descriptors(voxels: VoxelBatch, encoder: SparseEncoder) -> torch.Tensor:
    """What lies in each BEV cell, [B, Z + 1, H, W] float32: log(1 + active voxels) by height, and mean intensity.

    Args:
        voxels: features are x, y, z, intensity, ...
        encoder: its grid and stride; its weights do not matter.
    """
    levels, _, _ = encoder.input_shape
    height, width = encoder.bev_shape
    b, z, y, x = voxels.coordinates.unbind(1)
    y, x = y // encoder.stride, x // encoder.stride
    ones = torch.ones(len(z), device=z.device)
    counts = torch.zeros(voxels.batch_size, levels, height, width, device=z.device)
    counts.index_put_((b, z, y, x), ones, accumulate=True)
    brightness = torch.zeros(voxels.batch_size, height, width, device=z.device)
    brightness.index_put_((b, y, x), voxels.features[:, 3].float(), accumulate=True)
    brightness = brightness / counts.sum(1).clamp_min(1)
    # The sparse tensor has one level more than the grid, which no point reaches.
    return torch.cat([counts[:, : levels - 1].log1p(), brightness.unsqueeze(1)], dim=1)
