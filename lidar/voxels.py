"""Points to voxels: the greedy first-come voxeliser of spconv and OpenPCDet with the mean feature encoder."""

import torch
from torch.nn import functional as F

from lidar.batch import PointCloudBatch, VoxelBatch
from lidar.grid import VoxelGrid
from lidar.sparse.sites import key_coordinates


def voxelize(
    batch: PointCloudBatch,
    grid: VoxelGrid,
    *,
    max_points_per_voxel: int | None,
    max_voxels: int | None,
) -> VoxelBatch:
    """Group points into voxels and average their raw features (OpenPCDet's MeanVFE).

    A point's cell is floor((p - lo) / size) in float32; points outside the range are left out. Both caps are
    first-come in point order, per sample: the first `max_voxels` cells to appear are kept, and the first
    `max_points_per_voxel` points of each. Whoever wants the caps to drop at random shuffles the points first.

    Args:
        batch: points [P, C], x y z first.
        grid: range and voxel size.
        max_points_per_voxel: cap, or None for all points.
        max_voxels: cap per sample, or None for all voxels.

    Returns:
        Voxels sorted by (sample, z, y, x), features [N, C], coordinates [N, 4] int64.

    Raises:
        ValueError: if a cap is not positive or the points have another shape.
    """
    for name, cap in (("max_points_per_voxel", max_points_per_voxel), ("max_voxels", max_voxels)):
        if cap is not None and cap < 1:
            raise ValueError(f"{name} must be at least 1 or None for no cap, got {cap}")
    points = batch.points
    if points.ndim != 2 or points.shape[1] < 3 or len(points) != len(batch.batch_index):
        raise ValueError(
            f"points must be [P, >=3] with one batch_index each, got {list(points.shape)} and "
            f"{list(batch.batch_index.shape)}"
        )
    keys, kept = _cell_keys(points, batch.batch_index, grid)
    # Stable: inside a cell the points stay in their order, so the first of each group is the first to come.
    ordered, order = torch.sort(keys, stable=True)
    order = kept.index_select(0, order)
    cells, counts = torch.unique_consecutive(ordered, return_counts=True)
    starts = counts.cumsum(0) - counts

    if max_voxels is not None:
        chosen = _first_come(order.index_select(0, starts), batch, max_voxels)
        cells, counts, starts = cells[chosen], counts[chosen], starts[chosen]
    if max_points_per_voxel is not None:
        counts = counts.clamp(max=max_points_per_voxel)
    offsets = counts.cumsum(0) - counts
    # Place of every kept point in `order`: its group's start plus its rank in the group.
    places = torch.arange(int(counts.sum()), device=points.device)
    places += torch.repeat_interleave(starts - offsets, counts)
    return VoxelBatch(
        features=_means(points, order.index_select(0, places), offsets),
        coordinates=key_coordinates(cells, grid.shape),
        batch_size=batch.batch_size,
    )


def _cell_keys(
    points: torch.Tensor, batch_index: torch.Tensor, grid: VoxelGrid
) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear cell keys of the points inside the grid, and which points these are."""
    low = points.new_tensor(grid.point_range[:3])
    high = points.new_tensor(grid.point_range[3:])
    size = points.new_tensor(grid.voxel_size)
    xyz = points[:, :3]
    depth, height, width = grid.shape
    cell = ((xyz - low) / size).floor()
    # Rounding can put a point just below the upper edge into the cell past it.
    limit = points.new_tensor((width, height, depth))
    inside = ((xyz >= low) & (xyz < high) & (cell < limit)).all(dim=1)
    kept = inside.nonzero().squeeze(1)
    x, y, z = cell.index_select(0, kept).long().unbind(1)
    sample = batch_index.index_select(0, kept)
    return ((sample * depth + z) * height + y) * width + x, kept


def _first_come(first_points: torch.Tensor, batch: PointCloudBatch, max_voxels: int) -> torch.Tensor:
    """Mask of the voxels among the first `max_voxels` of their sample, from each one's first point."""
    sample = batch.batch_index.index_select(0, first_points)
    by_arrival = torch.argsort(first_points)
    per_sample = torch.bincount(sample, minlength=batch.batch_size)
    before = per_sample.cumsum(0) - per_sample
    rank = torch.empty_like(by_arrival)
    rank[by_arrival] = torch.arange(len(by_arrival), device=by_arrival.device)
    return rank - before.index_select(0, sample) < max_voxels


def _means(points: torch.Tensor, rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Mean of the points in each group of rows: [N, C]."""
    if len(rows) == 0:
        return points.new_zeros(0, points.shape[1])
    return F.embedding_bag(rows, points, offsets, mode="mean")
