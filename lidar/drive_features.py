"""Sweeps of a drive as bird's-eye latents: a sparse encoder, a coarse grid, a fixed projection."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lidar.batch import PointCloudBatch
from lidar.encoder import SparseEncoder
from lidar.grid import VoxelGrid
from lidar.pretraining import Voxelizer, in_precision
from worldmodel.objectives import unit

# Height above the sensor (m) between which a return counts as an obstacle: 0.5 to 2.5 m above the road in KITTI's car.
OBSTACLE_HEIGHT = (-1.2, 0.8)


@dataclass(frozen=True, kw_only=True)
class BEVGrid:
    """Cells of a bird's-eye map: rows along y, columns along x.

    Attributes:
        rows, columns: H, W.
        cell: edge of a cell, metres.
        origin: x, y of the corner with the smallest coordinates, metres, sensor frame.
    """

    rows: int
    columns: int
    cell: float
    origin: tuple[float, float]

    @classmethod
    def of(cls, grid: VoxelGrid, *, stride: int) -> "BEVGrid":
        """Cells of stride x stride voxels.

        Raises:
            ValueError: if the cells are not square or do not fill the grid.
        """
        _, rows, columns = grid.shape
        if rows % stride or columns % stride or grid.voxel_size[0] != grid.voxel_size[1]:
            raise ValueError(
                f"{rows} x {columns} voxels of {grid.voxel_size[:2]} m are no square cells of {stride} voxels: "
                f"choose another pool"
            )
        return cls(
            rows=rows // stride,
            columns=columns // stride,
            cell=grid.voxel_size[0] * stride,
            origin=grid.point_range[:2],
        )

    def centers(self) -> torch.Tensor:
        """x, y of the centres, [H, W, 2] metres."""
        y = self.origin[1] + self.cell * (torch.arange(self.rows) + 0.5)
        x = self.origin[0] + self.cell * (torch.arange(self.columns) + 0.5)
        return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)


class LidarBEVEncoder(nn.Module):
    """Point clouds [N, P, 4] to maps [N, C, H, W]: unit features of the sparse encoder, averaged over squares of cells.

    Rows of infinity are no points. Without a projection C is the encoder's width.

    Args:
        encoder: voxels to a bird's-eye map.
        voxelizer: points to voxels, of the encoder's grid.
        pool: cells of the encoder per cell of the map, along either axis.
        projection: of the features of a cell, such as `PCAProjection`.
    """

    def __init__(
        self,
        *,
        encoder: SparseEncoder,
        voxelizer: Voxelizer,
        pool: int = 2,
        projection: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.voxelizer, self.pool, self.projection = encoder, voxelizer, pool, projection
        self.grid = BEVGrid.of(voxelizer.grid, stride=encoder.stride * pool)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Maps [N, C, H, W] of point clouds [N, P, 4].

        Raises:
            ValueError: on another shape.
        """
        voxels = in_precision(self.voxelizer(cloud_batch(points)), next(self.encoder.parameters()).dtype)
        maps = nn.functional.avg_pool2d(unit(self.encoder(voxels)), self.pool)
        return maps if self.projection is None else self.projection(maps)


def cloud_batch(points: torch.Tensor) -> PointCloudBatch:
    """Point clouds [N, P, 4] as a batch.

    Raises:
        ValueError: on another shape.
    """
    if points.ndim != 3 or points.shape[-1] < 4:
        raise ValueError(f"point clouds are [N, P, 4], got {tuple(points.shape)}")
    count, size = points.shape[:2]
    return PointCloudBatch(
        points=points.flatten(0, 1),
        batch_index=torch.arange(count, device=points.device).repeat_interleave(size),
        batch_size=count,
        frame_ids=tuple(str(i) for i in range(count)),
        seeds=(0,) * count,
    )


class PCAProjection(nn.Module):
    """Leading principal components of map cells, each with unit variance over the cells it was fitted on.

    Args:
        features: width C of a cell.
        components: K.
    """

    mean: torch.Tensor
    basis: torch.Tensor
    explained: torch.Tensor

    def __init__(self, features: int, components: int) -> None:
        super().__init__()
        if not 1 <= components <= features:
            raise ValueError(f"components must lie in 1..{features}, got {components}")
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("basis", torch.eye(features)[:, :components].clone())
        self.register_buffer("explained", torch.zeros(()))

    @classmethod
    def fitted(cls, cells: torch.Tensor, *, components: int) -> "PCAProjection":
        """From cells [N, C].

        Raises:
            ValueError: if the cells vary in fewer directions than there are components.
        """
        cells = cells.double()
        projection = cls(cells.shape[1], components)
        mean = cells.mean(dim=0)
        variance, axes = torch.linalg.eigh((cells - mean).T @ (cells - mean) / len(cells))
        variance, axes = variance.flip(0).clamp(min=0), axes.flip(1)
        if variance[components - 1] <= 1e-10 * variance[0]:
            raise ValueError(
                f"the cells vary in fewer than {components} directions: ask for fewer components"
            )
        projection.mean.copy_(mean)
        projection.basis.copy_(axes[:, :components] / variance[:components].sqrt())
        projection.explained.copy_(variance[:components].sum() / variance.sum())
        return projection

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps [..., C, H, W] to [..., K, H, W]."""
        cells = maps.movedim(-3, -1).to(self.basis.dtype) - self.mean
        return (cells @ self.basis).movedim(-1, -3)


@torch.no_grad()
def encode_sweeps(
    encoder: LidarBEVEncoder, sweeps: Sequence[np.ndarray], *, batch_size: int = 8
) -> np.ndarray:
    """Maps [T, C, H, W] float16 of the sweeps [P, 4] of a drive by an encoder in eval mode."""
    maps = []
    for start in range(0, len(sweeps), batch_size):
        part = sweeps[start : start + batch_size]
        points = np.full((len(part), max(len(p) for p in part), 4), np.inf, np.float32)
        for row, sweep in zip(points, part, strict=True):
            row[: len(sweep)] = sweep
        maps.append(encoder(torch.from_numpy(points)).half().numpy())
    return np.concatenate(maps)


def obstacle_map(points: np.ndarray, grid: BEVGrid) -> np.ndarray:
    """Cells [H, W] bool of a map with a return between `OBSTACLE_HEIGHT` of points [P, >=3]."""
    low, high = OBSTACLE_HEIGHT
    tall = points[(points[:, 2] > low) & (points[:, 2] < high)]
    cell = np.floor((tall[:, :2] - np.asarray(grid.origin, np.float32)) / grid.cell).astype(np.int64)
    cell = cell[((cell >= 0) & (cell < (grid.columns, grid.rows))).all(axis=1)]
    occupied = np.zeros((grid.rows, grid.columns), bool)
    occupied[cell[:, 1], cell[:, 0]] = True
    return occupied
