"""Boxes without an image are evaluated as KITTI's are: the same curves wherever both can be asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lidar.datasets.kitti_results import ObjectRows
from lidar.detection.batch import Detections
from lidar.evaluation.boxes import BoxFrame, evaluate_boxes
from lidar.evaluation.kitti import evaluate_kitti

CLASSES = ("Car", "Cyclist")
LEAST = {"Car": 0.7, "Cyclist": 0.5}
REACH = {"Car": 1.0, "Cyclist": 0.6}


def frames(count: int = 60, *, seed: int = 0) -> list[BoxFrame]:
    """Objects, some with few points; detections near most of them, and others where nothing is."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        number = int(torch.randint(0, 4, (1,), generator=generator))
        boxes = torch.rand(number, 7, generator=generator) * torch.tensor([60, 40, 1, 1, 0.5, 0.3, 6.0])
        boxes += torch.tensor([0, -20, -1, 3.6, 1.5, 1.4, 0])
        labels = torch.randint(0, 2, (number,), generator=generator)
        moved = boxes + 0.12 * torch.randn(number, 7, generator=generator)
        seen = torch.rand(number, generator=generator) < 0.8
        wrong = boxes[:1] + torch.tensor([10.0, 0, 0, 0, 0, 0, 0])
        found = torch.cat([moved[seen], wrong])
        made.append(
            BoxFrame(
                detections=Detections(
                    boxes=found,
                    scores=torch.rand(len(found), generator=generator),
                    labels=torch.cat([labels[seen], labels[:1]]),
                ),
                boxes=boxes,
                labels=labels,
                counted=torch.randint(0, 12, (number,), generator=generator) >= 5,
            )
        )
    return made


def rows(boxes: torch.Tensor, labels: torch.Tensor, *columns: np.ndarray) -> ObjectRows:
    """KITTI rows in a camera frame that looks along x, every box 100 pixels high."""
    x, y, z, length, width, height, heading = boxes[:, :7].double().numpy().T
    n = len(boxes)
    image = np.tile([0.0, 0.0, 100.0, 100.0], (n, 1))
    bottom = np.column_stack([-y, -(z - height / 2), x])
    sizes = np.column_stack([height, width, length])
    values = np.column_stack([np.zeros((n, 3)), image, sizes, bottom, -heading - np.pi / 2, *columns])
    return ObjectRows(names=np.array([CLASSES[k] for k in labels], dtype="<U8"), values=values)


def test_curves_are_those_of_the_kitti_benchmark() -> None:
    made = frames()
    truth, results = [], []
    for frame in made:
        labels = rows(frame.boxes, frame.labels)
        labels.values[:, 1] = np.where(frame.counted.numpy(), 0, 3)  # unknown visibility: ignored
        truth.append(labels)
        found = frame.detections
        results.append(rows(found.boxes, found.labels, found.scores.double().numpy()))
    expected = evaluate_kitti(truth, results)
    result = evaluate_boxes(made, classes=CLASSES, least=LEAST, reach=REACH)
    for name in CLASSES:
        assert result.valid[name] == expected.valid[name][0] > 10
        for metric in ("3d", "bev"):
            assert 0.1 < result.curves[name][metric].max() <= 1
            np.testing.assert_allclose(
                result.curves[name][metric], expected.curves[name][metric][0], atol=1e-12
            )
            assert result.average(name, metric) == pytest.approx(expected.average(name, metric)[0])


def test_centres_need_no_heading_and_no_size() -> None:
    made = frames()
    turned = []
    for frame in made:
        boxes = frame.detections.boxes.clone()
        boxes[:, 3:7] = torch.tensor([1.0, 9.0, 0.5, 1.0])
        detections = replace(frame.detections, boxes=boxes)
        turned.append(replace(frame, detections=detections))
    given = {"classes": CLASSES, "least": LEAST, "reach": REACH}
    first, second = evaluate_boxes(made, **given), evaluate_boxes(turned, **given)
    for name in CLASSES:
        assert first.average(name, "centre") >= first.average(name, "3d") > 1
        assert first.average(name, "centre") == second.average(name, "centre")
        assert second.average(name, "3d") < 1


def test_the_reach_decides() -> None:
    """One object, a detection .5 m away: found within .6 m, not within .4 m."""
    box = torch.tensor([[10.0, 0, -1, 4, 1.6, 1.5, 0]])
    moved = box + torch.tensor([0.3, 0.4, 5, 0, 0, 0, 0])
    label = torch.zeros(1, dtype=torch.int64)
    found = Detections(boxes=moved, scores=torch.ones(1), labels=label)
    frame = BoxFrame(detections=found, boxes=box, labels=label, counted=torch.ones(1, dtype=torch.bool))
    for reach, best in ((0.6, 100.0), (0.4, 0.0)):
        result = evaluate_boxes([frame], classes=("Car",), least={"Car": 0.7}, reach={"Car": reach})
        assert result.curves["Car"]["centre"].max() * 100 == best
        assert result.json()["Car"]["reach"] == reach


def test_a_class_without_objects_is_undefined_and_a_class_without_overlap_an_error() -> None:
    result = evaluate_boxes(
        frames(3), classes=(*CLASSES, "Tram"), least={**LEAST, "Tram": 0.5}, reach={**REACH, "Tram": 1}
    )
    assert result.json()["Tram"]["3d"]["R40"] is None
    assert "Tram" in result.table()
    with pytest.raises(ValueError, match="a least overlap and a reach for Tram"):
        evaluate_boxes(frames(3), classes=(*CLASSES, "Tram"), least=LEAST, reach=REACH)
    with pytest.raises(ValueError, match="needs frames"):
        evaluate_boxes([], classes=CLASSES, least=LEAST, reach=REACH)
