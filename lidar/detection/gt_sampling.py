"""Ground-truth sampling: objects cut out of other scans are pasted into this one, where nothing stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from lidar.detection.gt_database import GroundTruthDatabase
from lidar.detection.overlap import bev_intersection
from lidar.detection.scene import Scene, membership


@dataclass(frozen=True, kw_only=True, eq=False)
class GroundTruthSampling:
    """Pastes recorded objects class by class, at the place where they were recorded.

    Of each class `counts[class]` objects are drawn without repetition. A drawn object is rejected if it overlaps, seen
    from above, an object of the scene (of any class), one pasted before or another one of the same draw. Points of the
    scene inside a pasted box go; where the road is known the object is put on it.

    Args:
        database: the objects.
        classes: names, whose place is the label.
        counts: how many of each class to draw.
        subtract_present: draw that many minus those of the class in the scene (SECOND, CenterPoint), or always that
            many (PV-RCNN).
        min_points: objects with fewer points are not drawn.

    Raises:
        ValueError: if a class of `counts` is not one of `classes`, a count is negative, or the database has no usable
            object of a class.
    """

    database: GroundTruthDatabase
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    subtract_present: bool = True
    min_points: int = 5
    _pools: dict[str, np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        strange = sorted(set(self.counts) - set(self.classes))
        if strange:
            raise ValueError(f"gt-sampling counts {', '.join(strange)}, but the classes are {self.classes}")
        if any(count < 0 for count in self.counts.values()):
            raise ValueError(f"gt-sampling counts are 0 or more, got {dict(self.counts)}")
        wanted = [name for name, count in self.counts.items() if count > 0]
        pools = {name: self.database.pool(name, min_points=self.min_points) for name in wanted}
        empty = [name for name, pool in pools.items() if len(pool) == 0]
        if empty:
            raise ValueError(
                f"{self.database.path}: no {', '.join(empty)} with {self.min_points} or more points and a known "
                f"difficulty to paste (it holds {self.database.summary()}). Set its count to 0, lower min_points, or "
                f"build the database from more frames."
            )
        object.__setattr__(self, "_pools", pools)

    def paste(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """The scene with objects pasted in; its own arrays are left unchanged.

        Raises:
            ValueError: if the points of scene and database have different columns.
        """
        if scene.points.shape[1] != self.database.columns:
            raise ValueError(
                f"{self.database.path}: its points have {self.database.columns} columns, those of the scene "
                f"{scene.points.shape[1]}. Build the database from this data set, with the same sweeps."
            )
        width = scene.boxes.shape[1]
        occupied = scene.boxes[:, :7].astype(np.float64)
        chosen: list[int] = []
        labels: list[int] = []
        for name, pool in self._pools.items():
            label = self.classes.index(name)
            number = self.counts[name]
            if self.subtract_present:
                number -= int((scene.labels == label).sum())
            if number <= 0:
                continue
            drawn = rng.choice(pool, min(number, len(pool)), replace=False)
            drawn = drawn[free(self.database.boxes[drawn, :7].astype(np.float64), occupied)]
            occupied = np.concatenate([occupied, self.database.boxes[drawn, :7]])
            chosen += drawn.tolist()
            labels += [label] * len(drawn)
        if not chosen:
            return scene
        # `occupied` served the view from above; the boxes that are pasted may have to be lifted or lowered.
        boxes = on_road(_of_width(self.database.boxes[chosen], width), scene.road)
        pasted = []
        for entry, box in zip(chosen, boxes, strict=True):
            points = self.database.points(entry).copy()
            points[:, :3] += box[:3]
            pasted.append(points)
        kept = scene.points[~membership(scene.points, boxes).any(axis=0)]
        return Scene(
            points=np.concatenate([*pasted, kept]),
            boxes=np.concatenate([scene.boxes, boxes]),
            labels=np.concatenate([scene.labels, np.array(labels, np.int64)]),
            road=scene.road,
        )


def free(candidates: np.ndarray, occupied: np.ndarray) -> np.ndarray:
    """Which candidates [K, 7] overlap, seen from above, neither an occupied box [M, 7] nor each other: bool [K]."""
    drawn = torch.from_numpy(candidates)
    there = bev_intersection(drawn, torch.from_numpy(occupied)) > 0
    mutual = bev_intersection(drawn, drawn) > 0
    mutual.fill_diagonal_(False)
    return ~(there.any(dim=1) | mutual.any(dim=1)).numpy()


def on_road(boxes: np.ndarray, road: np.ndarray | None) -> np.ndarray:
    """Boxes [K, >=7] moved up or down so that their bottom stands on the road plane below their centre."""
    if road is None:
        return boxes
    a, b, c, d = road
    height = -(a * boxes[:, 0] + b * boxes[:, 1] + d) / c
    moved = boxes.copy()
    moved[:, 2] = height + boxes[:, 5] / 2
    return moved


def _of_width(boxes: np.ndarray, width: int) -> np.ndarray:
    """Boxes with or without velocity: one that was not recorded is unknown."""
    if boxes.shape[1] >= width:
        return boxes[:, :width].copy()
    unknown = np.full((len(boxes), width - boxes.shape[1]), np.nan, boxes.dtype)
    return np.concatenate([boxes, unknown], axis=1)
