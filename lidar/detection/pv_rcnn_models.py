"""PV-RCNN by name: the second stage that goes with a SECOND of `lidar.detection.models`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lidar.detection.anchors import AnchorClass
from lidar.detection.models import (
    FULL_WIDTHS,
    KITTI_ANCHORS,
    KITTI_CLASSES,
    KITTI_GRID,
    SMALL,
    SMALL_GRID,
    second_kitti,
)
from lidar.detection.point_head import PointHead
from lidar.detection.pv_rcnn import PVRCNN, Proposals
from lidar.detection.roi_head import RoIHead
from lidar.detection.roi_sampling import RoISampling
from lidar.detection.second import AnchorHead
from lidar.detection.set_abstraction import Ball
from lidar.detection.voxel_detector import Suppression, VoxelDetector
from lidar.detection.voxel_set_abstraction import VoxelSetAbstraction
from lidar.grid import VoxelGrid
from worldmodel.nn.batch_norm import SyncedBatchNorm1d


def _balls(
    radii: tuple[float, float], neighbours: tuple[int, int], widths: tuple[int, ...]
) -> tuple[Ball, ...]:
    return tuple(
        Ball(radius=radius, neighbours=count, widths=widths)
        for radius, count in zip(radii, neighbours, strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class SecondStage:
    """Sizes of PV-RCNN's second stage.

    Attributes:
        keypoints: of each sample.
        channels: of their fused features.
        point_balls, stage_balls: around keypoints, among raw points and the voxels of each stage of the encoder.
        point_widths: hidden layers of the keypoint segmentation.
        grid_size, roi_balls: cells along the side of a RoI, and the balls around these among keypoints.
        roi_widths: of the layers after pooling, and of those of the two branches.
        sampling: of RoIs in training.
        training_proposals, test_proposals: boxes of the first stage that go on.
        suppression: among refined boxes.
    """

    keypoints: int
    channels: int
    point_balls: tuple[Ball, ...]
    stage_balls: tuple[tuple[Ball, ...], ...]
    point_widths: tuple[int, ...]
    grid_size: int
    roi_balls: tuple[Ball, ...]
    roi_widths: tuple[int, ...]
    sampling: RoISampling
    training_proposals: Proposals
    test_proposals: Proposals
    suppression: Suppression


# OpenPCDet's KITTI configuration.
KITTI_SECOND_STAGE = SecondStage(
    keypoints=2048,
    channels=128,
    point_balls=_balls((0.4, 0.8), (16, 16), (16, 16)),
    stage_balls=(
        _balls((0.4, 0.8), (16, 16), (16, 16)),
        _balls((0.8, 1.2), (16, 32), (32, 32)),
        _balls((1.2, 2.4), (16, 32), (64, 64)),
        _balls((2.4, 4.8), (16, 32), (64, 64)),
    ),
    point_widths=(256, 256),
    grid_size=6,
    roi_balls=_balls((0.8, 1.6), (16, 16), (64, 64)),
    roi_widths=(256, 256),
    sampling=RoISampling(),
    training_proposals=Proposals(iou=0.8, before=9000, after=512),
    test_proposals=Proposals(iou=0.7, before=1024, after=100),
    suppression=Suppression(score=0.1, iou=0.1, before=4096, after=500),
)
# For cells of 0.2 m and the three stages of the small encoder.
SMALL_SECOND_STAGE = replace(
    KITTI_SECOND_STAGE,
    keypoints=512,
    channels=32,
    point_balls=_balls((0.4, 0.8), (16, 16), (8, 8)),
    stage_balls=(
        _balls((0.4, 0.8), (16, 16), (8, 8)),
        _balls((0.8, 1.6), (16, 16), (16, 16)),
        _balls((1.6, 3.2), (16, 16), (16, 16)),
    ),
    point_widths=(64, 64),
    grid_size=4,
    roi_balls=_balls((0.8, 1.6), (16, 16), (32, 32)),
    roi_widths=(128, 128),
    sampling=RoISampling(count=64),
    training_proposals=Proposals(iou=0.8, before=2000, after=256),
)


def pv_rcnn_kitti(
    *,
    grid: VoxelGrid = KITTI_GRID,
    classes: Sequence[str] = KITTI_CLASSES,
    anchors: Sequence[AnchorClass] = KITTI_ANCHORS,
    second_stage: SecondStage = KITTI_SECOND_STAGE,
    **options: Any,
) -> PVRCNN:
    """PV-RCNN on KITTI: 13,115,697 parameters, 366 tensors.

    Args:
        grid: range and voxels.
        classes: names; each needs an anchor.
        anchors: to choose from by name.
        second_stage: its sizes.
        options: of `build_detector`, for the first stage; in_channels, synced and seed hold for both.
    """
    settings = {"widths": FULL_WIDTHS, "in_channels": 4, "synced": False, "seed": 0, **options}
    first = second_kitti(grid=grid, classes=classes, anchors=anchors, **settings)
    return _refined(first, second_stage, grid=grid, settings=settings)


def pv_rcnn_small(
    *, grid: VoxelGrid = SMALL_GRID, classes: Sequence[str] = KITTI_CLASSES, **options: Any
) -> PVRCNN:
    """PV-RCNN on the small encoder, with KITTI's anchors."""
    settings = {**SMALL, "second_stage": SMALL_SECOND_STAGE, **options}
    return pv_rcnn_kitti(grid=grid, classes=classes, **settings)


def _refined(
    first: VoxelDetector, stage: SecondStage, *, grid: VoxelGrid, settings: dict[str, Any]
) -> PVRCNN:
    """The first stage with a second one, whose weights are drawn from the seed too."""
    assert isinstance(first.dense_head, AnchorHead)
    norm = SyncedBatchNorm1d if settings["synced"] else nn.BatchNorm1d
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"] + 1)  # not the numbers of the first stage again
        keypoints = VoxelSetAbstraction(
            grid=grid,
            bev_channels=first.backbone_3d.bev_channels,
            stage_channels=settings["widths"][:-1],
            stage_balls=stage.stage_balls,
            point_channels=settings["in_channels"] - 3,
            point_balls=stage.point_balls,
            count=stage.keypoints,
            out_channels=stage.channels,
            norm=norm,
        )
        point_head = PointHead(keypoints.gathered_channels, widths=stage.point_widths, norm=norm)
        roi_head = RoIHead(
            stage.channels,
            grid_size=stage.grid_size,
            balls=stage.roi_balls,
            shared=stage.roi_widths,
            hidden=stage.roi_widths,
            sampling=stage.sampling,
            norm=norm,
        )
    return PVRCNN(
        classes=first.classes,
        encoder=first.backbone_3d,
        bev_backbone=first.backbone_2d,
        anchor_head=first.dense_head,
        keypoints=keypoints,
        point_head=point_head,
        roi_head=roi_head,
        training_proposals=stage.training_proposals,
        test_proposals=stage.test_proposals,
        suppression=stage.suppression,
        training_voxels=first.training_voxels,
        test_voxels=first.test_voxels,
    )
