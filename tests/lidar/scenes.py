"""Small point clouds and models for the tests of lidar/."""

import numpy as np
import torch

from lidar.batch import PointCloudBatch, VoxelBatch
from lidar.grid import VoxelGrid
from lidar.recipe import CompatConfig, EMAVarianceConfig, EncoderConfig, SIGRegConfig, build_task

TINY = EncoderConfig(
    name="tiny",
    point_range=(0, -6.4, -3, 12.8, 6.4, 1),
    voxel_size=(0.2, 0.2, 0.2),
    widths=(4, 8, 8, 8),
    norm_momentum=0.1,
    max_points_per_voxel=None,
    max_voxels=None,
    mask_ratio=0.5,
    lambda_reg=1.0,
)
KITTI = EncoderConfig(
    name="kitti",
    point_range=(0, -40, -3, 70.4, 40, 1),
    voxel_size=(0.05, 0.05, 0.1),
    widths=(16, 32, 64, 64, 128),
    norm_momentum=0.01,
    max_points_per_voxel=5,
    max_voxels=16000,
    mask_ratio=0.5,
    lambda_reg=1.0,
)
PAPER = CompatConfig(
    learn_tokens=True,
    token_std=0.02,
    nonnegative_tokens=False,
    synced_batch_norm=True,
)
OFFICIAL = CompatConfig(
    learn_tokens=False,
    token_std=1.0,
    nonnegative_tokens=False,
    synced_batch_norm=False,
)
EMA = EMAVarianceConfig(lambda_jepa=1.0, lambda_reg=0.5, occupied_weight=0.75, ema_momentum=0.996)
SIGREG = SIGRegConfig(weight=0.05, samples=64, num_slices=64, occupied_weight=0.75)


def tiny_task(objective=EMA, compat=PAPER, *, encoder=TINY, seed=0):
    return build_task(encoder=encoder, objective=objective, compat=compat, collapse_std=0.05, seed=seed)


def cloud(seed: int, points: int = 600) -> torch.Tensor:
    """Points [n, 4] of a floor and two boxes in the tiny range."""
    rng = np.random.default_rng(seed)
    floor = np.column_stack(
        [
            rng.uniform(0, 12.8, points),
            rng.uniform(-6.4, 6.4, points),
            rng.normal(-1.7, 0.02, points),
            rng.uniform(0, 1, points),
        ]
    )
    boxes = []
    for x, y in rng.uniform((1, -5), (9, 4), (2, 2)):
        low, high = (x, y, -1.7, 0), (x + 2, y + 1, 0, 1)
        boxes.append(rng.uniform(low, high, (80, 4)))
    return torch.from_numpy(np.concatenate([floor, *boxes]).astype(np.float32))


def batch_of(clouds: list[torch.Tensor], seeds: list[int] | None = None) -> PointCloudBatch:
    counts = torch.tensor([len(c) for c in clouds])
    return PointCloudBatch(
        points=torch.cat(clouds),
        batch_index=torch.repeat_interleave(torch.arange(len(clouds)), counts),
        batch_size=len(clouds),
        frame_ids=tuple(str(i) for i in range(len(clouds))),
        seeds=tuple(seeds if seeds is not None else range(len(clouds))),
    )


def voxels_at(coordinates: list[tuple[int, int, int, int]], batch_size: int = 1) -> VoxelBatch:
    table = torch.tensor(sorted(coordinates), dtype=torch.int64).reshape(-1, 4)
    features = torch.rand(len(table), 4, generator=torch.Generator().manual_seed(0))
    return VoxelBatch(features=features, coordinates=table, batch_size=batch_size)


def tiny_grid() -> VoxelGrid:
    return TINY.grid
