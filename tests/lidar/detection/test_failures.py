"""Found, missed and false, against cases written out and against an exhaustive search."""

from itertools import permutations

import numpy as np
import pytest
import torch

from lidar.detection.batch import Detections
from lidar.detection.failures import (
    JudgedFrame,
    Mark,
    Matching,
    Objects,
    by_distance,
    by_overlap,
    judge,
    worst_false,
    worst_missed,
)
from lidar.detection.failures_counted import counts, reasons, recall_by_distance
from lidar.detection.overlap import iou_3d

CLASSES = ("Car", "Pedestrian")
OVERLAP = by_overlap({"Car": 0.7, "Pedestrian": 0.5})


def car(x: float, y: float = 0.0, heading: float = 0.0) -> list[float]:
    return [x, y, -1.0, 4.0, 1.8, 1.6, heading]


def objects(
    boxes: list[list[float]], *, names: tuple[str, ...] | None = None, counted: list[bool] | None = None
) -> Objects:
    """Cars unless said otherwise; object k has 10 (k + 1) points."""
    names = ("Car",) * len(boxes) if names is None else names
    place = {name: label for label, name in enumerate(CLASSES)}
    return Objects(
        boxes=torch.tensor(boxes).reshape(-1, 7),
        names=names,
        labels=torch.tensor([place.get(n, -1) for n in names], dtype=torch.int64),
        points=10 * (1 + torch.arange(len(boxes))),
        counted=torch.tensor([True] * len(boxes) if counted is None else counted, dtype=torch.bool),
    )


def detections(boxes: list[list[float]], scores: list[float], labels: list[int] | None = None) -> Detections:
    return Detections(
        boxes=torch.tensor(boxes).reshape(-1, 7),
        scores=torch.tensor(scores),
        labels=torch.tensor([0] * len(boxes) if labels is None else labels, dtype=torch.int64),
    )


def judged(
    there: Objects, found: Detections, *, name: str = "a", matching: Matching = OVERLAP
) -> JudgedFrame:
    return judge(
        name, objects=there, detections=found, detection_points=torch.arange(len(found)), classes=CLASSES,
        matching=matching,
    )  # fmt: skip


def test_every_kind_of_right_and_wrong() -> None:
    there = objects(
        [car(10), car(20), car(30), car(40), car(50)],
        names=("Car", "Car", "Pedestrian", "Truck", "Car"),
        counted=[True, True, True, True, False],
    )
    boxes = [car(10.1), car(10.2), car(21.5), car(30), car(40), car(50), car(70)]
    frame = judged(there, detections(boxes, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]))
    assert frame.object_marks == (Mark.FOUND, Mark.MISSED, Mark.MISSED, Mark.UNCOUNTED, Mark.UNCOUNTED)
    assert frame.detection_marks == (Mark.CORRECT, *[Mark.FALSE] * 4, Mark.UNCOUNTED, Mark.FALSE)
    assert frame.takes.tolist() == [0, -1, -1, -1, -1, 4, -1]
    # Cars moved along by d overlap by (4 - d) / (4 + d).
    assert frame.reasons == (
        "IoU 0.95", "a second box on Car, IoU 0.90", "poor fit: Car, IoU 0.45", "on a Pedestrian, IoU 1.00",
        "on a Truck, IoU 1.00", "IoU 1.00", "nothing labelled there",
    )  # fmt: skip
    assert counts([frame], CLASSES) == [
        ("Car", 2, 1, 5, "0.500", "0.167"),
        ("Pedestrian", 1, 0, 0, "0.000", "-"),
    ]
    assert recall_by_distance([frame], CLASSES)[0] == ("Car", "-", "1 / 1", "0 / 1", "-", "-")
    assert [n for _, n in reasons(worst_false([frame], classes=CLASSES))] == [1, 2, 1, 1]


def test_the_better_score_goes_first_and_takes_what_is_closest() -> None:
    there = objects([car(10), car(10.6)])
    frame = judged(there, detections([car(10.25), car(10.1)], [0.5, 0.9]))
    assert frame.takes.tolist() == [1, 0]
    # The one in between prefers the first car, but comes too late for it.
    assert frame.detection_marks == (Mark.CORRECT, Mark.CORRECT)
    counted_first = judged(
        objects([car(10), car(10.6)], counted=[False, True]), detections([car(10.1)], [0.9])
    )
    assert counted_first.takes.tolist() == [1]


def test_a_match_exceeds_its_least_closeness() -> None:
    there = objects([[0.0, 0, 0, 2, 2, 2, 0]])
    found = detections([[0.0, 0, 0, 1, 2, 2, 0]], [0.9])
    for least, mark in ((0.5, Mark.FALSE), (0.499, Mark.CORRECT)):
        frame = judged(there, found, matching=by_overlap({"Car": least, "Pedestrian": 0.5}))
        assert frame.detection_marks == (mark,)


def test_distances_between_centres() -> None:
    there = objects([car(10, heading=1.0), car(30)])
    frame = judged(
        there, detections([car(11.9), car(33)], [0.9, 0.8]), matching=by_distance(2.0, classes=CLASSES)
    )
    assert frame.detection_marks == (Mark.CORRECT, Mark.FALSE)
    assert frame.reasons == ("1.90 m away", "poor fit: Car, 3.00 m away")


def test_greedy_matching_against_all_assignments() -> None:
    """The lexicographically best assignment by score, found by trying every one."""
    generator = torch.Generator().manual_seed(0)
    matching = by_overlap(dict.fromkeys(CLASSES, 0.2))
    matched = 0
    for _ in range(40):
        boxes = torch.rand(4, 7, generator=generator) * torch.tensor([6.0, 4, 0.5, 1, 0.5, 0.3, 0.5])
        there = objects((boxes + torch.tensor([5.0, 0, 0, 3.5, 1.6, 1.4, 0])).tolist())
        moved = there.boxes + 0.3 * torch.randn(4, 7, generator=generator)
        found = Detections(
            boxes=moved, scores=torch.rand(4, generator=generator), labels=torch.zeros(4).long()
        )
        overlap = iou_3d(moved, there.boxes)
        overlap = torch.where(overlap > 0.2, overlap, torch.zeros(())).numpy()
        order = found.scores.argsort(descending=True).numpy()
        best = max(permutations(range(4)), key=lambda p: [overlap[d, p[k]] for k, d in enumerate(order)])
        expected = np.full(4, -1)
        for k, d in enumerate(order):
            expected[d] = best[k] if overlap[d, best[k]] > 0 else -1
        frame = judged(there, found, matching=matching)
        np.testing.assert_array_equal(frame.takes.numpy(), expected)
        matched += int((expected >= 0).sum())
    assert matched > 80


def test_the_worst_come_first() -> None:
    nothing = detections([], [])
    frames = [
        judged(objects([car(10), car(20)]), detections([car(50), car(60, 80)], [0.2, 0.9])),
        judged(objects([]), detections([car(5)], [0.5]), name="b"),
        judged(objects([car(10), car(20), car(30)]), nothing, name="c"),
    ]
    false = worst_false(frames, classes=CLASSES)
    assert [(f.frame_id, f.place, round(f.score, 2)) for f in false] == [
        ("a", 0, 0.9),
        ("b", 1, 0.5),
        ("a", 0, 0.2),
    ]
    assert false[0].distance == pytest.approx(100)
    assert false[0].points == 1
    missed = worst_missed(frames, classes=CLASSES, limit=3)
    assert [(f.frame_id, f.points) for f in missed] == [("c", 30), ("a", 20), ("c", 20)]
    assert np.isnan(missed[0].score)


def test_nothing_anywhere() -> None:
    frame = judged(objects([]), detections([], []))
    assert frame.object_marks == frame.detection_marks == ()
    assert worst_false([frame], classes=CLASSES) == worst_missed([frame], classes=CLASSES) == []


def test_errors_name_what_is_missing() -> None:
    with pytest.raises(ValueError, match="a least closeness for Pedestrian"):
        judged(objects([]), detections([], []), matching=by_overlap({"Car": 0.7}))
    with pytest.raises(ValueError, match="a box, name, label and points each"):
        Objects(
            boxes=torch.zeros(2, 7), names=("Car",), labels=torch.zeros(1), points=torch.zeros(1),
            counted=torch.ones(1, dtype=torch.bool),
        )  # fmt: skip
