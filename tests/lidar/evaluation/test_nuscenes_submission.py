"""From boxes in the LiDAR frame to a submission, and what is wrong with a submission."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from lidar.detection.batch import Detections
from lidar.evaluation.nuscenes_submission import (
    CLASSES,
    MAX_BOXES,
    attribute,
    check_submission,
    sample_boxes,
    submission,
    write_submission,
)

NAN = float("nan")


def pose(seed: int, *, scale: float) -> np.ndarray:
    """A vehicle that stands on a slight slope, far from the origin."""
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    angles = [rng.uniform(-np.pi, np.pi), *rng.normal(0, 0.03, 2)]
    matrix[:3, :3] = Rotation.from_euler("zyx", angles).as_matrix()
    matrix[:3, 3] = rng.uniform(-scale, scale, 3)
    return matrix


def detections(count: int, *, width: int = 9, seed: int = 0) -> Detections:
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(-40, 40, (count, width))
    boxes[:, 3:6] = rng.uniform(0.5, 6, (count, 3))
    boxes[:, 6] = rng.uniform(-np.pi, np.pi, count)
    labels = torch.from_numpy(rng.integers(len(CLASSES), size=count))
    return Detections(boxes=torch.from_numpy(boxes), scores=torch.rand(count), labels=labels)


def test_boxes_to_the_world_and_back() -> None:
    found = detections(60)
    # The mounting on the vehicle, then the vehicle in the world.
    to_global = pose(1, scale=2000) @ pose(2, scale=2)
    boxes = sample_boxes(found, sample_token="t", classes=CLASSES, to_global=to_global)
    back = np.linalg.inv(to_global)
    for box, original, label in zip(boxes, found.boxes.numpy(), found.labels.tolist(), strict=True):
        centre = back[:3, :3] @ box["translation"] + back[:3, 3]
        assert np.abs(centre - original[:3]).max() < 1e-6
        w, x, y, z = box["rotation"]
        turn = back[:3, :3] @ Rotation.from_quat([x, y, z, w]).as_matrix()
        heading = np.arctan2(turn[1, 0], turn[0, 0])
        assert abs(np.exp(1j * heading) - np.exp(1j * original[6])) < 1e-6
        width, length, height = box["size"]
        assert [length, width, height] == pytest.approx(original[3:6].tolist())
        assert box["detection_name"] == CLASSES[label]
        # The world's velocity lacks the part along z, which a slight slope makes.
        speed = back[:3, :3] @ [*box["velocity"], 0]
        assert np.abs(speed[:2] - original[7:9]).max() < 0.3
    check_submission(submission({"t": boxes}), ["t"])


def test_a_car_ahead_of_a_vehicle_that_drives_north() -> None:
    to_global = np.eye(4)[:3]
    to_global[:, 3] = [100, 200, 0]  # LiDAR x is east, y, ahead, is north
    ahead = torch.tensor([[0.0, 10, 1, 4, 2, 1.5, np.pi / 2, 0, 5]])
    one = Detections(boxes=ahead, scores=torch.tensor([0.25]), labels=torch.tensor([0]))
    box = sample_boxes(one, sample_token="t", classes=("car",), to_global=to_global)[0]
    assert box["translation"] == pytest.approx([100, 210, 1])
    assert box["size"] == pytest.approx([2, 4, 1.5])
    assert np.abs(box["rotation"]) == pytest.approx([0.5**0.5, 0, 0, 0.5**0.5], abs=1e-6)
    assert box["velocity"] == pytest.approx([0, 5])
    assert box["attribute_name"] == "vehicle.moving"
    assert box["detection_score"] == 0.25


@pytest.mark.parametrize("name", CLASSES)
def test_attributes_follow_speed(name: str) -> None:
    kind = name if name in ("pedestrian", "bus", "traffic_cone", "barrier") else "vehicle"
    kind = "cycle" if name in ("bicycle", "motorcycle") else kind
    expected = {
        "pedestrian": ("pedestrian.moving", "pedestrian.standing", "pedestrian.moving"),
        "bus": ("vehicle.moving", "vehicle.stopped", "vehicle.stopped"),
        "vehicle": ("vehicle.moving", "vehicle.parked", "vehicle.parked"),
        "cycle": ("cycle.with_rider", "cycle.without_rider", "cycle.without_rider"),
        "traffic_cone": ("", "", ""),
        "barrier": ("", "", ""),
    }[kind]
    assert tuple(attribute(name, speed) for speed in (0.3, 0.2, NAN)) == expected


def test_unknown_velocities_are_written_as_zero() -> None:
    found = detections(3)
    found.boxes[0, 7:9] = NAN
    boxes = sample_boxes(found, sample_token="t", classes=CLASSES, to_global=np.eye(4))
    assert boxes[0]["velocity"] == [0, 0]
    assert boxes[1]["velocity"] != [0, 0]
    plain = sample_boxes(detections(3, width=7), sample_token="t", classes=CLASSES, to_global=np.eye(4))
    assert [box["velocity"] for box in plain] == [[0, 0]] * 3


def test_the_best_five_hundred_are_kept() -> None:
    found = detections(MAX_BOXES + 20)
    boxes = sample_boxes(found, sample_token="t", classes=CLASSES, to_global=np.eye(4))
    assert len(boxes) == MAX_BOXES
    none = detections(0)
    assert sample_boxes(none, sample_token="t", classes=CLASSES, to_global=np.eye(4)) == []


def test_a_file_is_written_in_the_order_given(tmp_path: Path) -> None:
    boxes = sample_boxes(detections(2), sample_token="z", classes=CLASSES, to_global=np.eye(4))
    write_submission(tmp_path / "new" / "results.json", {"z": boxes, "a": []})
    content = json.loads((tmp_path / "new" / "results.json").read_text())
    assert list(content["results"]) == ["z", "a"]
    assert content["results"]["z"] == boxes
    assert content["meta"]["use_lidar"] is True
    assert sum(content["meta"].values()) == 1


def test_broken_detections_are_refused() -> None:
    found = detections(2)
    with pytest.raises(ValueError, match="not tank"):
        sample_boxes(found, sample_token="t", classes=("tank",), to_global=np.eye(4))
    found.boxes[0, 3] = 0
    with pytest.raises(ValueError, match=r"sample t: .*0 or less"):
        sample_boxes(found, sample_token="t", classes=CLASSES, to_global=np.eye(4))
    found.boxes[0, 3] = NAN
    with pytest.raises(ValueError, match=r"sample t: .*NaN"):
        sample_boxes(found, sample_token="t", classes=CLASSES, to_global=np.eye(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"translation": [1.0, 2.0]}, "translation is a list of 3"),
        ({"rotation": [1.0, 0.0, 0.0, "x"]}, "rotation is a list of 4"),
        ({"size": [1.0, NAN, 1.0]}, "size holds NaN"),
        ({"size": [1.0, 0.0, 1.0]}, "above 0"),
        ({"detection_name": "tank"}, "detection_name is one of car"),
        ({"detection_score": NAN}, "detection_score is a finite number"),
        ({"detection_score": True}, "detection_score is a finite number"),
        ({"attribute_name": "car.flying"}, "attribute_name is one of"),
        ({"sample_token": "b"}, "its sample_token is 'b'"),
    ],
)
def test_broken_boxes_are_named(change: dict[str, Any], message: str) -> None:
    box = sample_boxes(detections(1), sample_token="a", classes=CLASSES, to_global=np.eye(4))[0]
    check_submission(submission({"a": [box, {**box, "velocity": [NAN, NAN]}]}), ["a"])
    with pytest.raises(ValueError, match=f"sample a, box 1: .*{message}"):
        check_submission(submission({"a": [box, {**box, **change}]}), ["a"])


def test_broken_submissions_are_named() -> None:
    with pytest.raises(ValueError, match="not a submission"):
        check_submission([], [])
    with pytest.raises(ValueError, match="meta"):
        check_submission({"results": {}}, [])
    with pytest.raises(ValueError, match=r"1 samples \(b\) are missing"):
        check_submission(submission({"a": []}), ["a", "b"])
    with pytest.raises(ValueError, match=r"1 samples \(a\) have no labels"):
        check_submission(submission({"a": []}), [])
    with pytest.raises(ValueError, match="at most 500"):
        check_submission(submission({"a": [{}] * 501}), ["a"])
    with pytest.raises(ValueError, match="not an object"):
        check_submission(submission({"a": [3]}), ["a"])  # type: ignore[list-item]
