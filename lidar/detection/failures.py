"""What a detector found, missed and made up, object by object, and the worst of it over a whole evaluation.

Figures say how good a detector is, this says where to look. Detections of a frame, best first, each take the closest
object of their class that is left, if it is close enough. (KITTI's evaluation lets objects choose; the two differ where
several detections lie on one object.)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch

from lidar.detection.batch import Detections
from lidar.detection.overlap import iou_3d

NOBODY = -1


class Mark(StrEnum):
    """What is known of a box in a frame."""

    FOUND = "found"  # an object
    MISSED = "missed"  # an object
    UNCOUNTED = "counts neither way"  # an object that may be found or missed, or a detection of one
    CORRECT = "correct"  # a detection
    FALSE = "false"  # a detection
    LABELLED = "labelled"  # an object, nothing was judged
    DETECTED = "detected"  # a detection, nothing was judged


@dataclass(frozen=True, kw_only=True)
class Matching:
    """When a detection is close enough to an object of its class.

    Attributes:
        closeness: [N, M] of boxes [N, 7] and [M, 7], greater is closer.
        least: by class; a match exceeds it.
        near: from here on a detection is a poor fit, and not one of nothing.
        told: a closeness in words.
    """

    closeness: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    least: Mapping[str, float]
    near: float
    told: Callable[[float], str]


def by_overlap(least: Mapping[str, float]) -> Matching:
    """Intersection over union in space greater than that of the class, as in KITTI."""
    return Matching(closeness=iou_3d, least=dict(least), near=0.1, told=lambda iou: f"IoU {iou:.2f}")


def by_distance(metres: float, *, classes: Sequence[str]) -> Matching:
    """Centres less than so far apart seen from above, as in nuScenes."""
    return Matching(
        closeness=lambda a, b: -torch.cdist(a[:, :2], b[:, :2]),
        least=dict.fromkeys(classes, -metres),
        near=-2 * metres,
        told=lambda closeness: f"{-closeness:.2f} m away",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Objects:
    """Labelled objects of one frame.

    Attributes:
        boxes: [M, 7+] float32.
        names: M names, as in the labels.
        labels: [M] int64: place of the class, -1 for objects that the detector does not learn.
        points: [M] int64 LiDAR points.
        counted: [M] bool: whether finding or missing it counts.
    """

    boxes: torch.Tensor
    names: tuple[str, ...]
    labels: torch.Tensor
    points: torch.Tensor
    counted: torch.Tensor

    def __post_init__(self) -> None:
        sizes = {len(v) for v in vars(self).values()}
        if len(sizes) != 1:
            raise ValueError(f"objects have a box, name, label and points each, got {sorted(sizes)} of them")


@dataclass(frozen=True, kw_only=True, eq=False)
class JudgedFrame:
    """One frame, judged.

    Attributes:
        frame_id: its name.
        objects: there.
        detections: found.
        detection_points: [D] int64 LiDAR points in each detection.
        object_marks: M marks.
        detection_marks: D marks.
        takes: [D] int64 place of the object that a detection takes, -1 for none.
        reasons: D texts; why a detection is false, else how close it is.
    """

    frame_id: str
    objects: Objects
    detections: Detections
    detection_points: torch.Tensor
    object_marks: tuple[Mark, ...]
    detection_marks: tuple[Mark, ...]
    takes: torch.Tensor
    reasons: tuple[str, ...]


def judge(
    frame_id: str,
    *,
    objects: Objects,
    detections: Detections,
    detection_points: torch.Tensor,
    classes: Sequence[str],
    matching: Matching,
) -> JudgedFrame:
    """Match the detections of one frame with its objects.

    Objects that count are taken before others. Objects that the detector does not learn can be taken by none, but a
    detection on one is said to be that.

    Raises:
        ValueError: if a class has no least closeness.
    """
    missing = [name for name in classes if name not in matching.least]
    if missing:
        raise ValueError(f"matching needs a least closeness for {', '.join(missing)}")
    close = matching.closeness(detections.boxes[:, :7].float(), objects.boxes[:, :7].float()).numpy()
    labels, named = objects.labels.numpy(), detections.labels.numpy()
    counted = objects.counted.numpy() & (labels >= 0)
    free = np.ones(len(labels), bool)
    takes = np.full(len(named), NOBODY)
    reasons = [""] * len(named)
    for d in np.argsort(-detections.scores.numpy(), kind="stable"):
        least = matching.least[classes[named[d]]]
        mine = free & (labels == named[d]) & (close[d] > least)
        if mine.any():
            takes[d] = max(np.flatnonzero(mine), key=lambda m: (counted[m], close[d, m]))
            free[takes[d]] = False
            reasons[d] = matching.told(close[d, takes[d]])
        else:
            reasons[d] = _why_false(close[d], labels == named[d], objects.names, least, matching)
    taken = ~free
    object_marks = [
        (Mark.FOUND if taken[m] else Mark.MISSED) if counted[m] else Mark.UNCOUNTED
        for m in range(len(labels))
    ]
    detection_marks = [
        Mark.FALSE if m == NOBODY else Mark.CORRECT if counted[m] else Mark.UNCOUNTED for m in takes
    ]
    return JudgedFrame(
        frame_id=frame_id, objects=objects, detections=detections, detection_points=detection_points,
        object_marks=tuple(object_marks), detection_marks=tuple(detection_marks),
        takes=torch.from_numpy(takes), reasons=tuple(reasons),
    )  # fmt: skip


DUPLICATE, CONFUSED, POOR, NOTHING = "a second box on", "on a", "poor fit:", "nothing labelled there"


def _why_false(
    close: np.ndarray, same: np.ndarray, names: Sequence[str], least: float, matching: Matching
) -> str:
    """Why a detection that took nothing is false, from its closeness [M] to all objects."""
    for those, what in ((same, DUPLICATE), (~same, CONFUSED)):
        if (close[those] > least).any():
            nearest = int(np.where(those, close, -np.inf).argmax())
            return f"{what} {names[nearest]}, {matching.told(close[nearest])}"
    if (close > matching.near).any():
        nearest = int(close.argmax())
        return f"{POOR} {names[nearest]}, {matching.told(close[nearest])}"
    return NOTHING


@dataclass(frozen=True, kw_only=True, eq=False)
class Failure:
    """A false detection or a missed object.

    Attributes:
        place: of the frame in the evaluation.
        frame_id: its name.
        mark: FALSE or MISSED.
        name: of its class.
        box: [7] float32.
        score: of the detection, NaN of an object.
        points: LiDAR points in the box.
        reason: why a detection is false; "" of an object.
    """

    place: int
    frame_id: str
    mark: Mark
    name: str
    box: np.ndarray
    score: float
    points: int
    reason: str

    @property
    def distance(self) -> float:
        """Metres from the sensor, seen from above."""
        return float(np.hypot(self.box[0], self.box[1]))


def worst_false(
    frames: Sequence[JudgedFrame], *, classes: Sequence[str], limit: int | None = None
) -> list[Failure]:
    """False detections, those with the highest scores first."""
    found = [
        Failure(
            place=place, frame_id=frame.frame_id, mark=mark, name=classes[int(frame.detections.labels[d])],
            box=frame.detections.boxes[d, :7].numpy(), score=float(frame.detections.scores[d]),
            points=int(frame.detection_points[d]), reason=frame.reasons[d],
        )
        for place, frame in enumerate(frames)
        for d, mark in enumerate(frame.detection_marks)
        if mark == Mark.FALSE
    ]  # fmt: skip
    return sorted(found, key=lambda failure: -failure.score)[:limit]


def worst_missed(
    frames: Sequence[JudgedFrame], *, classes: Sequence[str], limit: int | None = None
) -> list[Failure]:
    """Missed objects, those with the most LiDAR points first."""
    found = [
        Failure(
            place=place, frame_id=frame.frame_id, mark=mark, name=classes[int(frame.objects.labels[m])],
            box=frame.objects.boxes[m, :7].numpy(), score=float("nan"), points=int(frame.objects.points[m]), reason="",
        )
        for place, frame in enumerate(frames)
        for m, mark in enumerate(frame.object_marks)
        if mark == Mark.MISSED
    ]  # fmt: skip
    return sorted(found, key=lambda failure: -failure.points)[:limit]
