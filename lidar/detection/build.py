"""Putting a detector together: backbones and head that fit one another, with weights drawn from a seed."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from lidar.detection.anchors import AnchorClass
from lidar.detection.bev_backbone import BEVBackbone, batch_norm_2d
from lidar.detection.center_point import BEVCells, CenterHead
from lidar.detection.voxel_detector import DenseHead, VoxelDetector
from lidar.encoder import SparseEncoder
from lidar.grid import VoxelGrid
from lidar.pretraining import Voxelizer
from lidar.sparse import Backend
from worldmodel.nn.batch_norm import SyncedBatchNorm1d

# Makes a head from the channels and the shape (H, W) of its map, and whether BatchNorm is over all ranks.
Head = Callable[[int, tuple[int, int], bool], DenseHead]


def build_detector(
    head: Head,
    *,
    grid: VoxelGrid,
    classes: Sequence[str],
    widths: Sequence[int],
    caps: tuple[int | None, int | None, int | None],
    residual: bool = False,
    in_channels: int = 4,
    momentum: float = 0.01,
    bev: dict[str, Any] | None = None,
    synced: bool = False,
    backend: Backend = "auto",
    seed: int = 0,
) -> VoxelDetector:
    """A detector with weights drawn from `seed`; the global random state is left as it was.

    Args:
        head: makes the head.
        grid: range and voxels.
        classes: names; the place is the label.
        widths, residual: of the `SparseEncoder`.
        caps: points per voxel, voxels in training, voxels in testing; None is no cap.
        in_channels: features per point.
        momentum: of the backbones' BatchNorm; short runs need more than 0.01.
        bev: arguments of the `BEVBackbone`.
        synced: BatchNorm over all ranks. OpenPCDet's is per GPU unless it is asked for.
        backend: of the sparse convolutions.

    Raises:
        ValueError: if a class is named twice or the grid does not suit the backbones.
    """
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(f"a detector needs classes, each once, got {tuple(classes)}")
    per_voxel, training, test = caps
    norm = SyncedBatchNorm1d if synced else nn.BatchNorm1d
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = SparseEncoder(
            in_channels=in_channels,
            grid=grid,
            widths=widths,
            residual=residual,
            norm=partial(norm, eps=1e-3, momentum=momentum),
            backend=backend,
        )
        backbone = BEVBackbone(
            encoder.bev_channels, norm=batch_norm_2d(synced=synced, momentum=momentum), **(bev or {})
        )
        dense_head = head(backbone.out_channels, backbone.map_shape(encoder.bev_shape), synced)
    return VoxelDetector(
        classes=classes,
        encoder=encoder,
        bev_backbone=backbone,
        head=dense_head,
        training_voxels=Voxelizer(grid=grid, max_points_per_voxel=per_voxel, max_voxels=training),
        test_voxels=Voxelizer(grid=grid, max_points_per_voxel=per_voxel, max_voxels=test),
    )


def chosen_anchors(classes: Sequence[str], anchors: Sequence[AnchorClass]) -> tuple[AnchorClass, ...]:
    """The anchor of each class, by name.

    Raises:
        ValueError: if a class has none.
    """
    by_name = {anchor.name: anchor for anchor in anchors}
    missing = [name for name in classes if name not in by_name]
    if missing:
        raise ValueError(
            f"no anchor for {', '.join(missing)}, only for {', '.join(by_name)}: give anchors= with one for each class"
        )
    return tuple(by_name[name] for name in classes)


def center_head(*, grid: VoxelGrid, **options: Any) -> Head:
    """Makes a `CenterHead` of these options over a grid."""

    def head(in_channels: int, shape: tuple[int, int], synced: bool) -> CenterHead:
        norm = batch_norm_2d(synced=synced, eps=1e-5, momentum=0.1)
        return CenterHead(in_channels, cells=BEVCells.of(grid, shape), norm=norm, **options)

    return head


def one_task_head(classes: int, *, grid: VoxelGrid, **options: Any) -> Head:
    """Makes a `CenterHead` with all classes in one task, boxes within the grid's range and no velocities: Waymo's."""
    settings = {"regression_weight": 2.0, "centre_limits": grid.point_range, **options}
    return center_head(grid=grid, tasks=[range(classes)], **settings)
