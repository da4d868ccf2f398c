"""The detectors by name: SECOND on KITTI and ONCE, CenterPoint on nuScenes, Waymo and KITTI, and both at a small size.

Grids, caps, widths and thresholds are those of OpenPCDet's configurations; a checkpoint of theirs fits the detector of
the same name (`lidar.detection.checkpoints`).
"""

from collections.abc import Sequence
from typing import Any

from lidar.detection.anchors import AnchorClass
from lidar.detection.build import build_detector, center_head, chosen_anchors, one_task_head
from lidar.detection.second import AnchorHead
from lidar.detection.voxel_detector import Suppression, VoxelDetector
from lidar.grid import VoxelGrid

KITTI_GRID = VoxelGrid(point_range=(0, -40, -3, 70.4, 40, 1), voxel_size=(0.05, 0.05, 0.1))
ONCE_GRID = VoxelGrid(point_range=(-75.2, -75.2, -5, 75.2, 75.2, 3), voxel_size=(0.1, 0.1, 0.2))
WAYMO_GRID = VoxelGrid(point_range=(-75.2, -75.2, -2, 75.2, 75.2, 4), voxel_size=(0.1, 0.1, 0.15))
NUSCENES_GRIDS = {
    0.075: VoxelGrid(point_range=(-54, -54, -5, 54, 54, 3), voxel_size=(0.075, 0.075, 0.2)),
    0.1: VoxelGrid(point_range=(-51.2, -51.2, -5, 51.2, 51.2, 3), voxel_size=(0.1, 0.1, 0.2)),
}
SMALL_GRID = VoxelGrid(point_range=(0, -12.8, -3, 25.6, 12.8, 1), voxel_size=(0.2, 0.2, 0.2))

KITTI_ANCHORS = (
    AnchorClass(name="Car", size=(3.9, 1.6, 1.56), bottom=-1.78, matched=0.6, unmatched=0.45),
    AnchorClass(name="Pedestrian", size=(0.8, 0.6, 1.73), bottom=-0.6, matched=0.5, unmatched=0.35),
    AnchorClass(name="Cyclist", size=(1.76, 0.6, 1.73), bottom=-0.6, matched=0.5, unmatched=0.35),
)
ONCE_ANCHORS = (
    AnchorClass(name="Car", size=(4.38, 1.87, 1.59), bottom=-1.71, matched=0.6, unmatched=0.45),
    AnchorClass(name="Bus", size=(11.11, 2.88, 3.41), bottom=-1.74, matched=0.55, unmatched=0.4),
    AnchorClass(name="Truck", size=(7.52, 2.50, 2.62), bottom=-1.55, matched=0.55, unmatched=0.4),
    AnchorClass(name="Pedestrian", size=(0.75, 0.76, 1.69), bottom=-1.62, matched=0.3, unmatched=0.15),
    AnchorClass(name="Cyclist", size=(2.18, 0.79, 1.43), bottom=-1.65, matched=0.5, unmatched=0.35),
)
KITTI_CLASSES = ("Car", "Pedestrian", "Cyclist")
ONCE_CLASSES = tuple(anchor.name for anchor in ONCE_ANCHORS)
WAYMO_CLASSES = ("Vehicle", "Pedestrian", "Cyclist")
# Classes of similar size share a task, and compete there alone.
NUSCENES_TASKS = (
    ("car",), ("truck", "construction_vehicle"), ("bus", "trailer"), ("barrier",), ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
)  # fmt: skip
NUSCENES_CLASSES = tuple(name for task in NUSCENES_TASKS for name in task)

FULL_WIDTHS, RESIDUAL_WIDTHS = (16, 32, 64, 64, 128), (16, 32, 64, 128, 128)
# Cells of 0.4 m from the small encoder's of 0.8 m: a pedestrian is smaller than one of those.
SMALL: dict[str, Any] = {
    "widths": (8, 16, 32, 32),
    "momentum": 0.1,
    "bev": {"layers": (2, 2), "widths": (32, 64), "up_strides": (2, 4), "up_widths": (32, 32)},
    "caps": (None, None, None),
}


def second_kitti(
    *,
    grid: VoxelGrid = KITTI_GRID,
    classes: Sequence[str] = KITTI_CLASSES,
    anchors: Sequence[AnchorClass] = KITTI_ANCHORS,
    **options: Any,
) -> VoxelDetector:
    """SECOND on KITTI: 5,325,576 parameters, 162 tensors.

    Args:
        grid: range and voxels.
        classes: names; each needs an anchor.
        anchors: to choose from by name.
        options: of `build_detector`.
    """
    settings = {"widths": FULL_WIDTHS, "caps": (5, 16_000, 40_000), **options}
    chosen = chosen_anchors(classes, anchors)
    suppression = Suppression(score=0.1, iou=0.01, before=4096, after=500)

    def head(in_channels: int, shape: tuple[int, int], synced: bool) -> AnchorHead:
        return AnchorHead(in_channels, classes=chosen, grid=grid, shape=shape, suppression=suppression)

    return build_detector(head, grid=grid, classes=classes, **settings)


def second_once(
    *, grid: VoxelGrid = ONCE_GRID, classes: Sequence[str] = ONCE_CLASSES, **options: Any
) -> VoxelDetector:
    """SECOND on ONCE, five classes."""
    settings = {"caps": (5, 60_000, 60_000), **options}
    return second_kitti(grid=grid, classes=classes, anchors=ONCE_ANCHORS, **settings)


def second_small(
    *, grid: VoxelGrid = SMALL_GRID, classes: Sequence[str] = KITTI_CLASSES, **options: Any
) -> VoxelDetector:
    """SECOND on the small encoder, with KITTI's anchors."""
    return second_kitti(grid=grid, classes=classes, **{**SMALL, **options})


def center_point_nuscenes(
    voxel: float = 0.075,
    *,
    grid: VoxelGrid | None = None,
    classes: Sequence[str] = NUSCENES_CLASSES,
    **options: Any,
) -> VoxelDetector:
    """CenterPoint on ten nuScenes sweeps (x, y, z, intensity, age in s): residual encoder, six tasks, velocities.

    Args:
        voxel: 0.075 or 0.1 m, which sets the grid and the caps.
        grid: in place of that grid.
        classes: a choice of NUSCENES_CLASSES; tasks without any are left out.
        options: of `build_detector`.
    """
    if voxel not in NUSCENES_GRIDS:
        raise ValueError(f"voxel is one of {', '.join(map(str, NUSCENES_GRIDS))} m, got {voxel}")
    unknown = set(classes) - set(NUSCENES_CLASSES)
    if unknown:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no task of nuScenes; its classes are {', '.join(NUSCENES_CLASSES)}"
        )
    groups = [[name for name in task if name in classes] for task in NUSCENES_TASKS]
    settings = {
        "widths": RESIDUAL_WIDTHS,
        "residual": True,
        "in_channels": 5,
        "caps": (10, 120_000, 160_000) if voxel == 0.075 else (10, 60_000, 60_000),
        **options,
    }
    grid = grid or NUSCENES_GRIDS[voxel]
    head = center_head(
        tasks=[[list(classes).index(name) for name in group] for group in groups if group],
        grid=grid,
        centre_limits=(-61.2, -61.2, -10.0, 61.2, 61.2, 10.0),
        suppression=Suppression(score=0.1, iou=0.2, before=1000, after=83),
        regression_weight=0.25,
        velocity=True,
    )
    return build_detector(head, grid=grid, classes=classes, **settings)


def center_point_waymo(
    *, grid: VoxelGrid = WAYMO_GRID, classes: Sequence[str] = WAYMO_CLASSES, **options: Any
) -> VoxelDetector:
    """CenterPoint on Waymo with the plain encoder, one task; OpenPCDet's own models read 5 features per point."""
    settings = {"widths": FULL_WIDTHS, "caps": (5, 150_000, 150_000), **options}
    head = one_task_head(
        len(classes), grid=grid, suppression=Suppression(score=0.1, iou=0.7, before=4096, after=500)
    )
    return build_detector(head, grid=grid, classes=classes, **settings)


def center_point_kitti(
    *, grid: VoxelGrid = KITTI_GRID, classes: Sequence[str] = KITTI_CLASSES, **options: Any
) -> VoxelDetector:
    """CenterPoint on KITTI, for which there is no official configuration.

    Residual encoder, one block of the BEV backbone brought to cells of 0.2 m, Waymo's head, KITTI's caps.
    """
    settings = {
        "widths": RESIDUAL_WIDTHS,
        "residual": True,
        "bev": {"layers": (5,), "strides": (1,), "widths": (128,), "up_strides": (2,), "up_widths": (256,)},
        "caps": (5, 16_000, 40_000),
        **options,
    }
    head = one_task_head(
        len(classes), grid=grid, suppression=Suppression(score=0.1, iou=0.01, before=4096, after=500)
    )
    return build_detector(head, grid=grid, classes=classes, **settings)


def center_point_small(
    *, grid: VoxelGrid = SMALL_GRID, classes: Sequence[str] = KITTI_CLASSES, **options: Any
) -> VoxelDetector:
    """CenterPoint on the small encoder, one task with 32 channels."""
    head = one_task_head(
        len(classes),
        grid=grid,
        suppression=Suppression(score=0.1, iou=0.1, before=1000, after=100),
        width=32,
    )
    return build_detector(head, grid=grid, classes=classes, **{**SMALL, **options})
