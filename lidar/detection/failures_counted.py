"""How many objects were found, missed and made up, by class, distance and reason: rows of tables."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from lidar.detection.failures import CONFUSED, DUPLICATE, NOTHING, POOR, Failure, JudgedFrame, Mark

DISTANCES = (0.0, 10.0, 20.0, 30.0, 50.0, np.inf)  # metres from the sensor, seen from above


def counts(frames: Sequence[JudgedFrame], classes: Sequence[str]) -> list[tuple[Any, ...]]:
    """(class, objects that count, found, false, recall, precision) for every class."""
    rows = []
    for label, name in enumerate(classes):
        objects = Counter(m for f in frames for m in _of(f.object_marks, f.objects.labels, label))
        found = Counter(m for f in frames for m in _of(f.detection_marks, f.detections.labels, label))
        there, right, false = (
            objects[Mark.FOUND] + objects[Mark.MISSED],
            objects[Mark.FOUND],
            found[Mark.FALSE],
        )
        rows.append((name, there, right, false, _share(right, there), _share(right, right + false)))
    return rows


def recall_by_distance(frames: Sequence[JudgedFrame], classes: Sequence[str]) -> list[tuple[str, ...]]:
    """(class, "found / objects" between successive DISTANCES) for every class."""
    rows = []
    for label, name in enumerate(classes):
        found, there = np.zeros(len(DISTANCES) - 1, int), np.zeros(len(DISTANCES) - 1, int)
        for frame in frames:
            boxes = frame.objects.boxes.numpy()
            bins = np.searchsorted(DISTANCES, np.hypot(boxes[:, 0], boxes[:, 1]), side="right") - 1
            for mark, own, place in zip(frame.object_marks, frame.objects.labels.tolist(), bins, strict=True):
                if own == label and mark in (Mark.FOUND, Mark.MISSED):
                    there[place] += 1
                    found[place] += mark == Mark.FOUND
        rows.append((name, *(f"{a} / {b}" if b else "-" for a, b in zip(found, there, strict=True))))
    return rows


def reasons(false: Sequence[Failure]) -> list[tuple[str, int]]:
    """How many detections are false for which reason."""
    names = {
        DUPLICATE: "a second box on an object that was found", CONFUSED: "on an object of another class",
        POOR: "a poor fit", NOTHING: "nothing labelled there",
    }  # fmt: skip
    return [(text, sum(f.reason.startswith(start) for f in false)) for start, text in names.items()]


def distance_names() -> list[str]:
    """The columns of `recall_by_distance` after the first."""
    return [f"{a:g} to {b:g} m" if np.isfinite(b) else f"beyond {a:g} m" for a, b in pairwise(DISTANCES)]


def _of(marks: Sequence[Mark], labels: torch.Tensor, label: int) -> list[Mark]:
    return [mark for mark, own in zip(marks, labels.tolist(), strict=True) if own == label]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"
