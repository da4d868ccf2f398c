"""Recall and precision at one score threshold: what average precision over few objects cannot tell."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lidar.detection.overlap import iou_3d
from lidar.evaluation.boxes import BoxFrame


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A score threshold and what it gives.

    Attributes:
        threshold: detections of at least this score count.
        recall: share of the objects that count that are found.
        precision: share of the detections that find an object, whether it counts or not.
        objects: that count.
    """

    threshold: float
    recall: float
    precision: float
    objects: int


def best_operating_point(frames: Sequence[BoxFrame], *, label: int, least: float) -> OperatingPoint:
    """The threshold of the greatest recall, and among those of the greatest precision; recall 0 without detections.

    Best first, every detection takes the free object of its class it overlaps most, if by more than `least`.

    Args:
        label: of the class.
        least: 3-D IoU.

    Raises:
        ValueError: if no object of the class counts.
    """
    scores, found_object, counted_object, objects = [], [], [], 0
    for frame in frames:
        mine, theirs = frame.labels == label, frame.detections.labels == label
        boxes, found = frame.boxes[mine, :7].double(), frame.detections.boxes[theirs, :7].double()
        counts = frame.counted[mine]
        objects += int(counts.sum())
        score = frame.detections.scores[theirs]
        overlap = iou_3d(found, boxes)
        for place in score.argsort(descending=True).tolist():
            best, taken = overlap[place].max(dim=0) if len(boxes) else (torch.tensor(0.0), torch.tensor(0))
            hit = bool(best > least)
            scores.append(float(score[place]))
            found_object.append(hit)
            counted_object.append(hit and bool(counts[taken]))
            if hit:
                overlap[:, taken] = 0
    if objects == 0:
        raise ValueError(
            f"none of the {sum(len(f.boxes) for f in frames)} objects is of class {label} and counts: give frames with "
            f"some, or let more count (BoxFrame.counted)"
        )
    if not scores:
        return OperatingPoint(threshold=1.0, recall=0.0, precision=0.0, objects=objects)
    order = torch.tensor(scores).argsort(descending=True, stable=True)
    ranked = torch.tensor(scores)[order]
    precision = torch.tensor(found_object)[order].double().cumsum(0) / torch.arange(1, len(order) + 1)
    recall = torch.tensor(counted_object)[order].double().cumsum(0) / objects
    # Equal scores are kept or dropped together: only the last of each is a threshold.
    last = torch.ones_like(ranked, dtype=torch.bool)
    last[:-1] = ranked[:-1] != ranked[1:]
    candidates = [
        (float(recall[i]), float(precision[i]), float(ranked[i])) for i in last.nonzero()[:, 0].tolist()
    ]
    best_recall, best_precision, threshold = max(candidates)
    return OperatingPoint(threshold=threshold, recall=best_recall, precision=best_precision, objects=objects)
