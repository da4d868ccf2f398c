"""Views of a scan under sensor noise."""

import pytest
import torch

from lidar.views import SensorNoise, common_cells, sensor_views, spread_frames

from .scenes import batch_of, cloud


def test_a_view_loses_points_and_moves_the_rest_a_little():
    batch = batch_of([cloud(0, 4000)])
    order = torch.arange(len(batch.points)).double()
    batch.points[:, 3] = order.float()  # intensity is not touched: it names the point
    (view,) = sensor_views(batch, views=1, noise=SensorNoise(dropout=0.25, jitter=0.03))
    assert len(view.points) / len(batch.points) == pytest.approx(0.75, abs=0.02)
    shift = view.points[:, :3] - batch.points[view.points[:, 3].long(), :3]
    assert shift.std(0).tolist() == pytest.approx([0.03] * 3, rel=0.05)
    assert shift.mean(0).abs().max() < 0.003


def test_views_are_functions_of_the_samples_seeds():
    clouds = [cloud(0), cloud(1, 500), torch.zeros(0, 4)]
    together = list(sensor_views(batch_of(clouds, seeds=[7, -3, 5]), views=3))
    again = list(sensor_views(batch_of(clouds, seeds=[7, -3, 5]), views=3))
    alone = list(sensor_views(batch_of(clouds[1:2], seeds=[-3]), views=3))
    for view, same, single in zip(together, again, alone, strict=True):
        assert torch.equal(view.points, same.points)
        assert torch.equal(view.points[view.batch_index == 1], single.points)
        assert not (view.batch_index == 2).any()
        assert view.batch_size == 3
    assert len({len(view.points) for view in together}) == 3
    (other,) = sensor_views(batch_of(clouds, seeds=[7, -3, 5]), views=1, seed=1)
    assert not torch.equal(other.points, together[0].points)


def test_the_batch_is_left_unchanged_and_without_noise_a_view_is_the_batch():
    batch = batch_of([cloud(0)])
    before = batch.points.clone()
    (view,) = sensor_views(batch, views=1, noise=SensorNoise(dropout=0, jitter=0))
    assert torch.equal(view.points, before)
    list(sensor_views(batch, views=1))
    assert torch.equal(batch.points, before)


def test_common_cells_pairs_the_same_cell_of_every_view():
    cells = torch.arange(2 * 3 * 4).view(2, 3, 4)
    generator = torch.Generator().manual_seed(0)
    occupied = [torch.rand(2, 3, 4, generator=generator) < 0.7 for _ in range(3)]
    groups = common_cells([(cells[o].float().unsqueeze(1) + 100 * i, o) for i, o in enumerate(occupied)])
    common = cells[occupied[0] & occupied[1] & occupied[2]]
    assert 0 < len(common) < 24
    assert groups.shape == (len(common), 3, 1)
    for i in range(3):
        assert torch.equal(groups[:, i, 0], common + 100.0 * i)


def test_spread_frames_are_evenly_spaced():
    batches = [batch_of([cloud(i), cloud(i + 1)], seeds=[i, i + 1]) for i in (0, 2, 4)]
    batch = spread_frames(batches, 3)
    assert batch.seeds == (0, 2, 4)
    assert batch.batch_size == 3
    assert torch.equal(batch.points, torch.cat([cloud(0), cloud(2), cloud(4)]))
    assert torch.equal(batch.points[batch.batch_index == 1], cloud(2))
    assert spread_frames(batches, 99).seeds == (0, 1, 2, 3, 4, 5)
    for arguments in (([], 3), (batches, 0)):
        with pytest.raises(ValueError, match="cannot take"):
            spread_frames(*arguments)


@pytest.mark.parametrize("values", [{"dropout": 1.0}, {"dropout": -0.1}, {"jitter": -1.0}])
def test_noise_out_of_range(values):
    with pytest.raises(ValueError, match="dropout must be in"):
        SensorNoise(**values)


def test_no_view():
    with pytest.raises(ValueError, match="views must be at least 1, got 0"):
        list(sensor_views(batch_of([cloud(0)]), views=0))
