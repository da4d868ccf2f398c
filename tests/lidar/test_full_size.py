"""The paper's size on real scans: slow, run by `make bench` and `pytest -m slow`."""

import resource

import pytest
import torch

from lidar.datasets import KittiObject, LidarFrames, collate
from lidar.experiment import SHUFFLED
from lidar.recipe import OccupancyConfig

from .scenes import EMA, KITTI, tiny_task


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", [EMA, OccupancyConfig(positive_weight=1.0, cells="all")], ids=["ad_l_jepa", "occupancy"]
)
def test_a_full_size_step_runs_in_bounded_memory(real_data, objective):
    source = KittiObject(root=real_data("kitti_object"))
    dataset = LidarFrames(
        source=source, refs=source.frames, point_range=KITTI.grid.point_range, augment=SHUFFLED
    )
    task = tiny_task(objective, encoder=KITTI)
    loss = task.training_step(collate([dataset[(0, 0)], dataset[(1, 1)]]), 0).total
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in task.parameters() if p.grad is not None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 2**20  # KiB
