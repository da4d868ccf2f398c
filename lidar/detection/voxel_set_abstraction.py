"""PV-RCNN's keypoints: a few points of the scene that gather features of every scale around them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lidar.batch import PointCloudBatch
from lidar.detection.point_set import PointSet
from lidar.detection.sampling import farthest_points
from lidar.detection.set_abstraction import Ball, SetAbstraction
from lidar.encoder import Norm
from lidar.grid import VoxelGrid
from lidar.sparse import SparseTensor
from worldmodel.nn.batch_norm import SyncedBatchNorm1d


@dataclass(frozen=True, kw_only=True)
class Keypoints:
    """Keypoints of a batch and their features.

    Attributes:
        points: K positions.
        gathered: [K, G] features as gathered, all sources concatenated; what the segmentation reads.
        features: [K, C] the same, fused; what RoIs pool.
    """

    points: PointSet
    gathered: torch.Tensor
    features: torch.Tensor


class VoxelSetAbstraction(nn.Module):
    """Voxel set abstraction (PV-RCNN, section 3.2), under the names of OpenPCDet's.

    Keypoints are chosen by farthest-point sampling of the raw points. Each gathers the BEV map at its place, the raw
    points around it, and the sparse voxels of every stage of the encoder around it, in this order.

    Args:
        grid: of the voxels.
        bev_channels: of the BEV map.
        stage_channels: of conv1, conv2, ... of the encoder; each is at twice the stride of the one before.
        stage_balls: scales of the set abstraction of each stage.
        point_channels: features of a raw point beside its position.
        point_balls: scales of the set abstraction of raw points.
        count: keypoints of each sample.
        out_channels: C of the fused features.
        norm: as of `SetAbstraction`.

    Raises:
        ValueError: if a stage has no scales.
    """

    def __init__(
        self,
        *,
        grid: VoxelGrid,
        bev_channels: int,
        stage_channels: Sequence[int],
        stage_balls: Sequence[Sequence[Ball]],
        point_channels: int,
        point_balls: Sequence[Ball],
        count: int = 2048,
        out_channels: int = 128,
        norm: Norm = SyncedBatchNorm1d,
    ) -> None:
        super().__init__()
        if len(stage_channels) != len(stage_balls):
            raise ValueError(
                f"every stage of the encoder needs its scales: {len(stage_channels)} stages and balls of "
                f"{len(stage_balls)}"
            )
        self.grid, self.count = grid, count
        self.SA_layers = nn.ModuleList(
            SetAbstraction(channels, balls=balls, norm=norm)
            for channels, balls in zip(stage_channels, stage_balls, strict=True)
        )
        self.SA_rawpoints = SetAbstraction(point_channels, balls=point_balls, norm=norm)
        modules = (self.SA_rawpoints, *self.SA_layers)
        self.gathered_channels = bev_channels + sum(m.out_channels for m in modules)
        self.out_channels = out_channels
        self.vsa_point_feature_fusion = nn.Sequential(
            nn.Linear(self.gathered_channels, out_channels, bias=False), norm(out_channels), nn.ReLU()
        )

    def forward(self, batch: PointCloudBatch, stages: Sequence[SparseTensor], bev: torch.Tensor) -> Keypoints:
        """Keypoints of a batch.

        Args:
            batch: the raw points, inside the range.
            stages: outputs of conv1, conv2, ... of the encoder.
            bev: [B, bev_channels, H, W] the encoder's map.
        """
        cloud = PointSet(
            xyz=batch.points[:, :3].contiguous(), sample=batch.batch_index, batch_size=batch.batch_size
        )
        keypoints = cloud[farthest_points(cloud, count=self.count)]
        gathered = [
            sample_bev(bev, keypoints, grid=self.grid, stride=2 ** (len(stages) - 1)),
            self.SA_rawpoints(cloud, batch.points[:, 3:].to(bev.dtype), keypoints),
        ]
        for number, (abstraction, stage) in enumerate(zip(self.SA_layers, stages, strict=True)):
            centres = voxel_centres(stage, stride=2**number, grid=self.grid)
            gathered.append(abstraction(centres, stage.features, keypoints))
        joined = torch.cat(gathered, dim=1)
        return Keypoints(points=keypoints, gathered=joined, features=self.vsa_point_feature_fusion(joined))


def voxel_centres(tensor: SparseTensor, *, stride: int, grid: VoxelGrid) -> PointSet:
    """Centres in metres of the sites of a stage at this stride.

    Along z this is OpenPCDet's formula too, although a stage that does not pad z lies half a cell off it.
    """
    sample, z, y, x = tensor.coordinates.unbind(1)
    xyz = torch.stack([x, y, z], dim=1).to(torch.float32)
    size = xyz.new_tensor(grid.voxel_size) * stride
    return PointSet(
        xyz=(xyz + 0.5) * size + xyz.new_tensor(grid.point_range[:3]),
        sample=sample,
        batch_size=tensor.batch_size,
    )


def sample_bev(bev: torch.Tensor, points: PointSet, *, grid: VoxelGrid, stride: int) -> torch.Tensor:
    """The BEV map [B, C, H, W] at the positions, bilinear between cells: [P, C].

    A cell's feature stands at its lower corner, as in OpenPCDet, whose checkpoints expect it. Beyond the outermost
    corners the map goes on as it ends; OpenPCDet returns zeros in the last row and column of cells, by a slip.

    Args:
        bev, points: the map and where to read it.
        grid: of the voxels.
        stride: voxels per cell of the map along x and y.
    """
    channels, height, width = bev.shape[1:]
    x, y = (
        ((points.xyz[:, axis] - grid.point_range[axis]) / (grid.voxel_size[axis] * stride)).clamp(
            0, cells - 1
        )
        for axis, cells in ((0, width), (1, height))
    )
    left, low = x.floor().long(), y.floor().long()
    cells = bev.permute(0, 2, 3, 1).reshape(-1, channels)
    total = cells.new_zeros(len(points), channels)
    for column, along_x in ((left, 1 - (x - left)), ((left + 1).clamp_max(width - 1), x - left)):
        for row, along_y in ((low, 1 - (y - low)), ((low + 1).clamp_max(height - 1), y - low)):
            cell = (points.sample * height + row) * width + column
            total = total + cells.index_select(0, cell) * (along_x * along_y).to(cells.dtype).unsqueeze(1)
    return total
