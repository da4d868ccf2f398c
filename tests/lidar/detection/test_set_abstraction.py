"""Set abstraction, voxel centres and reading the BEV map, against plain torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lidar.detection.ball_query import ball_query
from lidar.detection.batch import GroundTruth
from lidar.detection.point_head import BACKGROUND, IGNORED, OBJECT, keypoint_labels
from lidar.detection.point_set import PointSet
from lidar.detection.set_abstraction import Ball, SetAbstraction
from lidar.detection.voxel_set_abstraction import VoxelSetAbstraction, sample_bev, voxel_centres
from lidar.grid import VoxelGrid
from lidar.sparse import Sites, SparseTensor

from .test_point_ops import point_set, scattered

BALLS = (Ball(radius=0.9, neighbours=3, widths=(5, 4)), Ball(radius=2.0, neighbours=8, widths=(6,)))
GRID = VoxelGrid(point_range=(0, -8, -3, 16, 8, 1), voxel_size=(0.5, 1.0, 0.5))


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def by_grouping(
    module: SetAbstraction, points: PointSet, features: torch.Tensor, centres: PointSet
) -> torch.Tensor:
    """As PointNet++ writes it: group positions and features, 1x1 convolutions, pool."""
    pooled = []
    for ball, layers in zip(module.balls, module.mlps, strict=True):
        (found,) = ball_query(points, centres, radii=(ball.radius,), counts=(ball.neighbours,))
        grouped = torch.cat(
            [points.xyz[found.rows] - centres.xyz[:, None], features[found.rows]], dim=2
        ).masked_fill(found.empty[:, None, None], 0)
        x = grouped.permute(2, 0, 1).unsqueeze(0)
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.ReLU):
                x = layer(x)
            else:
                x = F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
        pooled.append(F.max_pool2d(x, (1, x.shape[3])).squeeze(3).squeeze(0).t())
    return torch.cat(pooled, dim=1)


@pytest.mark.parametrize("channels", [0, 7])
def test_it_equals_grouping_and_convolution(channels):
    points = point_set(*(scattered(60, s, dtype=torch.float64) for s in (0, 1)))
    centres = point_set(*(scattered(25, s, scale=(14, 9, 3), dtype=torch.float64) for s in (2, 3)))
    features = torch.randn(
        120, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    module = seeded(lambda: SetAbstraction(channels, balls=BALLS)).double()
    parameters = [features, *module.parameters()] if channels else [*module.parameters()]
    (found,) = ball_query(points, centres, radii=(0.9,), counts=(3,))
    assert 0 < found.empty.sum() < len(centres)
    results = []
    for output in (module(points, features, centres), by_grouping(module, points, features, centres)):
        weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)
        results.append((output, torch.autograd.grad((output * weights).sum(), parameters)))
    (mine, gradients), (reference, wanted) = results
    torch.testing.assert_close(mine, reference, atol=1e-12, rtol=0)
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


def test_nothing_to_pool_gives_what_zeros_give():
    module = seeded(lambda: SetAbstraction(2, balls=BALLS)).eval()
    nothing = module(point_set(torch.zeros(0, 3)), torch.zeros(0, 2), point_set(torch.zeros(4, 3)))
    far = module(point_set(torch.full((1, 3), 99.0)), torch.ones(1, 2), point_set(torch.zeros(4, 3)))
    torch.testing.assert_close(nothing, far)
    assert module(point_set(torch.zeros(1, 3)), torch.ones(1, 2), point_set(torch.zeros(0, 3))).shape == (
        0,
        10,
    )
    with pytest.raises(ValueError, match="needs balls"):
        SetAbstraction(2, balls=())


def test_reading_the_map_is_bilinear_from_lower_corners_and_level_at_the_edge():
    bev = torch.randn(2, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    x, y = torch.linspace(0, 15.99, 40), torch.linspace(7.99, -8, 40)
    positions = torch.stack([x, y, torch.zeros(40)], dim=1)
    found = sample_bev(bev, point_set(positions, positions), grid=GRID, stride=2)
    column, row = x / 1.0, (y + 8) / 2.0
    where = torch.stack([column / 15 * 2 - 1, row / 7 * 2 - 1], dim=1).expand(2, 1, 40, 2)
    expected = F.grid_sample(bev, where, mode="bilinear", padding_mode="border", align_corners=True)
    torch.testing.assert_close(found.view(2, 40, 3), expected[:, :, 0].transpose(1, 2), atol=1e-5, rtol=0)


def test_voxel_centres_are_in_metres():
    coordinates = torch.tensor([[0, 0, 0, 0], [1, 1, 2, 3]])
    sites = Sites.from_coordinates(coordinates, shape=(5, 8, 16), batch_size=2)
    centres = voxel_centres(SparseTensor(features=torch.zeros(2, 1), sites=sites), stride=2, grid=GRID)
    assert centres.xyz.tolist() == [[0.5, -7.0, -2.5], [3.5, -3.0, -1.5]]
    assert centres.sample.tolist() == [0, 1]


def test_every_stage_needs_its_scales():
    with pytest.raises(ValueError, match="2 stages and balls of 1"):
        VoxelSetAbstraction(
            grid=GRID, bev_channels=4, stage_channels=(4, 8), stage_balls=(BALLS,), point_channels=1,
            point_balls=BALLS,
        )  # fmt: skip


def test_keypoints_in_the_shell_of_a_box_are_not_judged():
    x = torch.tensor([0.0, 0.99, 1.05, 1.11, -1.09, 5.0])
    points = point_set(torch.zeros(0, 3), torch.stack([x, 0 * x, 0 * x], dim=1), torch.zeros(2, 3))
    box = torch.tensor([[0, 0, 0, 2, 1, 1, 0.0]])
    truth = GroundTruth.padded(
        [box, box, torch.zeros(0, 7)], [torch.tensor([2]), torch.tensor([0]), torch.zeros(0).long()]
    )
    labels = keypoint_labels(points, truth, shell=0.2)
    assert labels.tolist() == [
        OBJECT,
        OBJECT,
        IGNORED,
        BACKGROUND,
        IGNORED,
        BACKGROUND,
        BACKGROUND,
        BACKGROUND,
    ]
