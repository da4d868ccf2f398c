"""The operating point on frames small enough to count by hand."""

import pytest
import torch

from lidar.detection.batch import Detections
from lidar.evaluation.boxes import BoxFrame
from lidar.evaluation.operating_point import best_operating_point


def car(x: float) -> list[float]:
    return [x, 0.0, -1.0, 4.0, 1.8, 1.5, 0.0]


def frame(there: dict[float, int], found: list[tuple[float, float]], *, label: int = 0) -> BoxFrame:
    """Cars at x with so many points; detections at x with a score."""
    return BoxFrame(
        detections=Detections(
            boxes=torch.tensor([car(x) for x, _ in found]).reshape(-1, 7),
            scores=torch.tensor([s for _, s in found]),
            labels=torch.full((len(found),), label),
        ),
        boxes=torch.tensor([car(x) for x in there]).reshape(-1, 7),
        labels=torch.zeros(len(there), dtype=torch.int64),
        counted=torch.tensor(list(there.values()), dtype=torch.int64) >= 20,
    )


def test_recall_first_then_precision() -> None:
    """Two cars count, one has too few points; a duplicate and a false alarm, the latter below the last true one."""
    frames = [
        frame({10.0: 50, 30.0: 5}, [(10.1, 0.9), (10.0, 0.8), (30.0, 0.7)]),
        frame({20.0: 30}, [(20.0, 0.6), (40.0, 0.5)]),
    ]
    found = best_operating_point(frames, label=0, least=0.7)
    assert found.threshold == pytest.approx(0.6)
    assert (found.recall, found.objects) == (1.0, 2)
    assert found.precision == pytest.approx(3 / 4)  # 0.9, 0.7 and 0.6 find something, the duplicate does not


def test_equal_scores_are_one_threshold_and_other_classes_do_not_count() -> None:
    same = best_operating_point([frame({10.0: 50}, [(10.0, 0.5), (50.0, 0.5)])], label=0, least=0.7)
    assert (same.recall, same.precision) == (1.0, 0.5)
    other = best_operating_point([frame({10.0: 50}, [(10.0, 0.5)], label=1)], label=0, least=0.7)
    assert other.recall == 0.0
    with pytest.raises(ValueError, match="none of the 1 objects is of class 0 and counts"):
        best_operating_point([frame({10.0: 5}, [(10.0, 0.5)])], label=0, least=0.7)


def test_an_overlap_of_just_the_least_is_not_enough() -> None:
    shifted = 4.0 * (1 - 0.7) / (1 + 0.7)  # IoU 0.7
    near, far = (
        best_operating_point([frame({10.0: 50}, [(10.0 + shifted * f, 0.5)])], label=0, least=0.7)
        for f in (0.99, 1.01)
    )
    assert (near.recall, far.recall) == (1.0, 0.0)


def test_nothing_detected_finds_nothing() -> None:
    point = best_operating_point([frame({10.0: 50}, [])], label=0, least=0.7)
    assert (point.recall, point.precision, point.objects) == (0.0, 0.0, 1)
