"""Points and boxes of one frame as every picture and viewer shows them: what became of each box, and its colour."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lidar.detection.batch import Detections
from lidar.detection.boxes import corners
from lidar.detection.failures import JudgedFrame, Mark, Objects
from lidar.detection.labels import OTHER

# Okabe and Ito's colours, told apart by colour-blind people too; classes beyond take them again.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
FOUND_COLOUR, UNCOUNTED_COLOUR = "#5a6474", "#b4bac4"

# Pairs of corners, in the order of `corners`: the bottom, the top, the uprights.
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))


@dataclass(frozen=True, kw_only=True, eq=False)
class MarkedFrame:
    """Points and boxes as they are shown.

    Attributes:
        name: of the frame.
        points: [N, 3+] float32.
        boxes: [K, 7] float32: objects, then detections.
        names: K class names.
        labels: [K] int64: place of the class, -1 for objects of none.
        marks: K marks.
        scores: [K] float32, NaN for objects.
    """

    name: str
    points: np.ndarray
    boxes: np.ndarray
    names: tuple[str, ...]
    labels: np.ndarray
    marks: tuple[Mark, ...]
    scores: np.ndarray

    def colour(self, place: int) -> str:
        """Of one box."""
        return colour_of(self.marks[place], int(self.labels[place]))


def colour_of(mark: Mark, label: int) -> str:
    """Colour of a box: of its class, but grey for what was found already and for what does not count."""
    if mark == Mark.UNCOUNTED or label == OTHER:
        return UNCOUNTED_COLOUR
    return FOUND_COLOUR if mark == Mark.FOUND else COLOURS[label % len(COLOURS)]


def marked_frame(
    name: str,
    points: np.ndarray,
    *,
    classes: Sequence[str],
    objects: Objects | None = None,
    detections: Detections | None = None,
    marks: Sequence[Mark] | None = None,
) -> MarkedFrame:
    """A frame to be shown.

    Args:
        points: [N, 3+].
        classes: names by label.
        objects: labelled.
        detections: found.
        marks: of the objects, then the detections; by default nothing was judged.

    Raises:
        ValueError: if points are not [N, 3+], or marks do not belong to the boxes.
    """
    if points.ndim != 2 or points.shape[1] < 3:
        raise ValueError(f"frame {name}: points are [N, 3] or wider, got {points.shape}")
    boxes, labels = [np.zeros((0, 7), np.float32)], [np.zeros(0, np.int64)]
    scores = [np.zeros(0, np.float32)]
    names: list[str] = []
    unjudged: list[Mark] = []
    if objects is not None:
        boxes.append(objects.boxes[:, :7].numpy())
        labels.append(objects.labels.numpy())
        scores.append(np.full(len(objects.names), np.nan, np.float32))
        names += objects.names
        unjudged += [Mark.LABELLED] * len(objects.names)
    if detections is not None:
        boxes.append(detections.boxes[:, :7].numpy())
        labels.append(detections.labels.numpy())
        scores.append(detections.scores.numpy())
        names += [classes[label] for label in detections.labels.tolist()]
        unjudged += [Mark.DETECTED] * len(detections)
    marks = unjudged if marks is None else marks
    if len(marks) != len(names):
        raise ValueError(f"frame {name}: {len(marks)} marks for {len(names)} boxes")
    return MarkedFrame(
        name=name, points=points, boxes=np.concatenate(boxes), names=tuple(names), labels=np.concatenate(labels),
        marks=tuple(marks), scores=np.concatenate(scores),
    )  # fmt: skip


def judged_picture(frame: JudgedFrame, points: np.ndarray, *, classes: Sequence[str]) -> MarkedFrame:
    """A judged frame to be shown, with its points [N, 3+]."""
    return marked_frame(
        frame.frame_id, points, classes=classes, objects=frame.objects, detections=frame.detections,
        marks=(*frame.object_marks, *frame.detection_marks),
    )  # fmt: skip


def box_corners(boxes: np.ndarray) -> np.ndarray:
    """Corners [K, 8, 3] of boxes [K, 7]: the bottom face clockwise from the front left one, then the top face."""
    return corners(torch.from_numpy(boxes)).numpy()


def heading_strokes(boxes: np.ndarray) -> np.ndarray:
    """From the centre of boxes [K, 7] to half a metre before the front: [K, 2, 3]."""
    forward = np.column_stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))])
    centre = boxes[:, :3]
    return np.stack([centre, centre + (boxes[:, 3:4] / 2 + 0.5) * forward], axis=1).astype(np.float32)


def thinned(points: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the points [N, C], evenly from first to last."""
    if len(points) <= most:
        return points
    return points[np.linspace(0, len(points) - 1, most).round().astype(int)]
