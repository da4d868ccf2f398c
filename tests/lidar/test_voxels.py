"""The voxeliser against a plain loop, and against spconv's."""

import numpy as np
import pytest
import torch

from lidar.batch import PointCloudBatch
from lidar.grid import VoxelGrid
from lidar.sparse import spconv_backend
from lidar.voxels import voxelize

GRID = VoxelGrid(point_range=(0, -4, -1, 6.4, 4, 1), voxel_size=(0.4, 0.5, 0.25))


def batch_of(*clouds: np.ndarray) -> PointCloudBatch:
    return PointCloudBatch(
        points=torch.from_numpy(np.concatenate(clouds).astype(np.float32)),
        batch_index=torch.repeat_interleave(
            torch.arange(len(clouds)), torch.tensor([len(cloud) for cloud in clouds])
        ),
        batch_size=len(clouds),
        frame_ids=tuple(str(n) for n in range(len(clouds))),
        seeds=tuple(range(len(clouds))),
    )


def random_cloud(count: int, seed: int) -> np.ndarray:
    """Points in and around the grid, clustered so that both caps bite; some lie exactly on cell borders."""
    rng = np.random.default_rng(seed)
    points = rng.uniform((-1, -5, -1.5, 0), (7, 5, 1.5, 1), (count, 4))
    points[::3, :3] = rng.normal((3, 0, 0), 0.5, (len(points[::3]), 3))
    points[::7, :3] = np.round(points[::7, :3] / (0.4, 0.5, 0.25)) * (0.4, 0.5, 0.25)
    return points.astype(np.float32)


def reference(cloud: np.ndarray, grid: VoxelGrid, max_points: int | None, max_voxels: int | None):
    """Greedy first-come voxelisation, one point at a time. Mean features by (z, y, x)."""
    low = np.asarray(grid.point_range[:3], np.float32)
    size = np.asarray(grid.voxel_size, np.float32)
    voxels: dict[tuple[int, ...], list[np.ndarray]] = {}
    for point, inside in zip(cloud, grid.inside(cloud), strict=True):
        cell = tuple(int(v) for v in np.floor((point[:3] - low) / size))[::-1]
        if not inside or any(c >= n for c, n in zip(cell, grid.shape, strict=True)):
            continue
        if cell not in voxels:
            if max_voxels is not None and len(voxels) >= max_voxels:
                continue
            voxels[cell] = []
        if max_points is None or len(voxels[cell]) < max_points:
            voxels[cell].append(point)
    return {cell: np.mean(points, axis=0, dtype=np.float64) for cell, points in sorted(voxels.items())}


@pytest.mark.parametrize("max_points", [None, 1, 5])
@pytest.mark.parametrize("max_voxels", [None, 1, 100])
def test_equals_a_plain_loop(max_points, max_voxels):
    clouds = [random_cloud(800, 0), random_cloud(0, 1), random_cloud(500, 2)]
    voxels = voxelize(batch_of(*clouds), GRID, max_points_per_voxel=max_points, max_voxels=max_voxels)
    assert voxels.batch_size == 3
    expected = [reference(cloud, GRID, max_points, max_voxels) for cloud in clouds]
    coordinates = [(sample, *cell) for sample, cells in enumerate(expected) for cell in cells]
    assert voxels.coordinates.tolist() == [list(row) for row in coordinates]
    features = np.array([mean for cells in expected for mean in cells.values()])
    np.testing.assert_allclose(voxels.features.numpy(), features, atol=2e-6)


def test_upper_edge_is_outside():
    cloud = np.array([[6.4, 0, 0, 0], [0, 4, 0, 0], [0, 0, 1, 0], [0, -4, -1, 0.5]], np.float32)
    voxels = voxelize(batch_of(cloud), GRID, max_points_per_voxel=None, max_voxels=None)
    assert voxels.coordinates.tolist() == [[0, 0, 0, 0]]
    assert voxels.features.tolist() == [[0, -4, -1, 0.5]]


def test_rounding_never_leaves_the_grid():
    """Points one float below every upper edge stay inside the grid or are dropped, never in a cell past it."""
    grid = VoxelGrid(point_range=(0, -40, -3, 70.4, 40, 1), voxel_size=(0.05, 0.05, 0.1))
    high = np.nextafter(np.float32([70.4, 40, 1]), np.float32(-100))
    cloud = np.concatenate([high, [0]])[None].astype(np.float32)
    voxels = voxelize(batch_of(cloud), grid, max_points_per_voxel=None, max_voxels=None)
    assert (voxels.coordinates[:, 1:] < torch.tensor(grid.shape)).all()


@pytest.mark.parametrize("clouds", [[random_cloud(0, 0)], [random_cloud(0, 0), random_cloud(0, 1)]])
def test_no_point_at_all(clouds):
    voxels = voxelize(batch_of(*clouds), GRID, max_points_per_voxel=5, max_voxels=10)
    assert voxels.features.shape == (0, 4)
    assert voxels.coordinates.shape == (0, 4)
    assert voxels.coordinates.dtype == torch.int64


def test_wrong_arguments_are_named():
    batch = batch_of(random_cloud(10, 0))
    with pytest.raises(ValueError, match="max_voxels must be at least 1"):
        voxelize(batch, GRID, max_points_per_voxel=5, max_voxels=0)
    with pytest.raises(ValueError, match="max_points_per_voxel must be at least 1"):
        voxelize(batch, GRID, max_points_per_voxel=-1, max_voxels=None)
    broken = PointCloudBatch(
        points=torch.zeros(3, 2),
        batch_index=torch.zeros(3, dtype=torch.int64),
        batch_size=1,
        frame_ids=("a",),
        seeds=(0,),
    )
    with pytest.raises(ValueError, match=r"points must be \[P, >=3\]"):
        voxelize(broken, GRID, max_points_per_voxel=5, max_voxels=10)


@pytest.mark.skipif(not spconv_backend.available(), reason="spconv is not installed")
@pytest.mark.parametrize("max_voxels", [1000, 100_000])
def test_equals_spconv_on_a_real_frame(real_data, max_voxels):
    from cumm import tensorview
    from spconv.utils import Point2VoxelCPU3d

    frame = sorted((real_data("kitti_object") / "training" / "velodyne_reduced").glob("*.bin"))[0]
    points = np.fromfile(frame, np.float32).reshape(-1, 4)
    np.random.default_rng(0).shuffle(points)
    grid = VoxelGrid(point_range=(0, -40, -3, 70.4, 40, 1), voxel_size=(0.05, 0.05, 0.1))
    ours = voxelize(batch_of(points), grid, max_points_per_voxel=5, max_voxels=max_voxels)

    theirs = Point2VoxelCPU3d(
        vsize_xyz=list(grid.voxel_size),
        coors_range_xyz=list(grid.point_range),
        num_point_features=4,
        max_num_voxels=max_voxels,
        max_num_points_per_voxel=5,
    )
    stacked, cells, counts = (v.numpy() for v in theirs.point_to_voxel(tensorview.from_numpy(points)))
    means = stacked.sum(axis=1) / counts[:, None]
    order = np.lexsort(cells.T[::-1])
    np.testing.assert_array_equal(ours.coordinates[:, 1:].numpy(), cells[order])
    np.testing.assert_allclose(ours.features.numpy(), means[order], rtol=0, atol=8e-6)
