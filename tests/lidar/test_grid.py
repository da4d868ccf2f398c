import numpy as np
import pytest

from lidar.grid import VoxelGrid

KITTI = (0, -40, -3, 70.4, 40, 1)


def test_shape_is_in_voxels_with_one_level_more_for_the_sparse_tensor():
    grid = VoxelGrid(point_range=KITTI, voxel_size=(0.05, 0.05, 0.1))
    assert grid.shape == (40, 1600, 1408)
    assert grid.sparse_shape == (41, 1600, 1408)


def test_inside_holds_the_lower_edge_and_not_the_upper():
    grid = VoxelGrid(point_range=KITTI, voxel_size=(0.05, 0.05, 0.1))
    edges = [[x, y, z] for x in (0, 70.4, -1e-7, 3) for y in (-40, 40, 0) for z in (-3, 1, 0)]
    points = np.array(edges, np.float32)
    low, high = np.float32(KITTI[:3]), np.float32(KITTI[3:])
    expected = ((points >= low) & (points < high)).all(axis=1)
    np.testing.assert_array_equal(grid.inside(points), expected)
    assert expected.sum() == 2 * 2 * 2


@pytest.mark.parametrize(
    ("point_range", "voxel_size", "message"),
    [
        ((0, 0, 0, 1, 1), (0.1, 0.1, 0.1), "6 numbers"),
        ((0, 0, 0, -1, 1, 1), (0.1, 0.1, 0.1), "the x range .* is empty"),
        ((0, 0, 0, 1, 1, 1), (0.1, 0.3, 0.1), "the y range .* whole number"),
    ],
)
def test_a_wrong_grid_names_the_axis(point_range, voxel_size, message):
    with pytest.raises(ValueError, match=message):
        VoxelGrid(point_range=point_range, voxel_size=voxel_size)
