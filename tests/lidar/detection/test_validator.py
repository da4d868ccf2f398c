"""Labels spoilt in every known way, on simulated and on real scans: each time the verdict names the mistake."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs.driving.kitti_export import DatasetSpec, build_dataset
from lidar.datasets import KittiObject
from lidar.detection.benchmarks import LabelledKitti
from lidar.detection.labels import BoxLabels
from lidar.detection.validator import check_labels
from tests.lidar.detection.sources import Memory, Rewritten, filled, memory, row_of_boxes

Boxes = Callable[[np.ndarray], np.ndarray]


def _with(column: int, value: Callable[[np.ndarray], np.ndarray]) -> Boxes:
    def spoil(boxes: np.ndarray) -> np.ndarray:
        spoilt = boxes.copy()
        spoilt[:, column] = value(boxes)
        return spoilt

    return spoil


def _sizes(*order: int) -> Boxes:
    return lambda boxes: boxes[:, [0, 1, 2, *order, 6]]


BOTTOM = _with(2, lambda b: b[:, 2] - b[:, 5] / 2)
SPOILT: dict[str, tuple[Boxes, str]] = {
    "bottom": (BOTTOM, r"z is the middle of the bottom face.*Add half the height to z"),
    "quarter": (_with(6, lambda b: b[:, 6] - math.pi / 2), r"off by a quarter turn.*Add pi / 2"),
    "other quarter": (_with(6, lambda b: b[:, 6] + math.pi / 2), r"off by a quarter turn"),
    "sign": (_with(6, lambda b: -b[:, 6]), r"wrong sign.*Negate the headings"),
    "camera": (_with(6, lambda b: -b[:, 6] - math.pi / 2), r"rotation_y.*-\(rotation_y \+ pi / 2\)"),
    "degrees": (_with(6, lambda b: np.degrees(b[:, 6])), r"in degrees.*pi / 180"),
    "w l h": (_sizes(4, 3, 5), r"exchanged \(w, l, h\).*length, width, height"),
    "h w l": (_sizes(5, 4, 3), r"\(h, w, l\), as KITTI"),
    "l h w": (_sizes(3, 5, 4), r"\(l, h, w\)"),
    "old mmdetection3d": (
        lambda b: _with(6, lambda c: -c[:, 6] - math.pi / 2)(_sizes(4, 3, 5)(b)),
        r"mmdetection3d before 1.0.*-heading - pi / 2",
    ),
    "another frame": (
        lambda b: np.column_stack([-b[:, 1], -b[:, 2], b[:, 0], b[:, 3:]]),
        r"are empty, and no known convention explains it. Check that boxes are in the frame of the sensor",
    ),
}


def _in_memory(source: LabelledKitti, *, every: int = 1) -> Memory:
    """Every so manyth frame, read once."""
    refs = source.frames[::every]
    return Memory(
        clouds=tuple(source.read(ref) for ref in refs), found=tuple(source.labels(ref) for ref in refs)
    )


@pytest.fixture(scope="module")
def real(real_data: Callable[[str], Path]) -> Memory:
    return _in_memory(LabelledKitti(scans=KittiObject(root=real_data("kitti_object"))), every=2)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> LabelledKitti:
    folder = build_dataset(
        tmp_path_factory.mktemp("streets"),
        spec=DatasetSpec(train=4, probe=0, val=0),
        workers=1,
        progress=False,
    )
    return LabelledKitti(scans=KittiObject(root=folder, view="camera"))


@pytest.fixture(scope="module")
def simulated(streets: LabelledKitti) -> Memory:
    return _in_memory(streets)


def _check(source: Memory, spoilt: str) -> None:
    spoil, expected = SPOILT[spoilt]
    report = check_labels(Rewritten(source=source, boxes=spoil), source.frames)
    assert not report.good
    assert len(report.findings) == 1
    assert np.char.find(report.text(), "WRONG") > 0
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(report.findings[0])


@pytest.mark.parametrize("spoilt", SPOILT)
def test_simulated_scans(simulated: Memory, spoilt: str) -> None:
    _check(simulated, spoilt)


QUICK = ("bottom", "quarter", "sign", "w l h", "another frame")


@pytest.mark.parametrize(
    "spoilt", [s if s in QUICK else pytest.param(s, marks=pytest.mark.slow) for s in SPOILT]
)
def test_real_scans(real: Memory, spoilt: str) -> None:
    _check(real, spoilt)


def test_right_labels_are_right(real: Memory, simulated: Memory) -> None:
    for source in (simulated, real):
        report = check_labels(source, source.frames)
        assert report.good
        assert report.fit > 0.75
        assert report.empty <= 0.05 * report.near
        assert "labels fit the points" in report.text()


def test_two_mistakes_at_once_are_both_named(simulated: Memory) -> None:
    both = Rewritten(source=simulated, boxes=lambda b: BOTTOM(_sizes(4, 3, 5)(b)))
    findings = check_labels(both, simulated.frames).findings
    assert len(findings) == 2
    assert "exchanged" in findings[0]
    assert "bottom face" in findings[1]


def test_intensity(simulated: Memory) -> None:
    def scaled(factor: float) -> Rewritten:
        return Rewritten(
            source=simulated,
            boxes=lambda b: b,
            points=lambda p: p * np.array([1, 1, 1, factor], np.float32),
        )

    (finding,) = check_labels(scaled(255), simulated.frames).findings
    assert "intensity spans" in finding
    assert "data.intensity_scale" in finding
    (finding,) = check_labels(scaled(1 / 255), simulated.frames).findings
    assert "scaled twice" in finding
    report = check_labels(scaled(0), simulated.frames)
    assert report.good
    assert any("no intensity" in note for note in report.notes)


def test_unscaled_files_and_missing_labels_are_findings(streets: LabelledKitti, tmp_path: Path) -> None:
    ref = streets.frames[0]
    folder = tmp_path / "training"
    for name in ("velodyne", "label_2", "calib"):
        (folder / name).mkdir(parents=True)
    points = streets.read(ref) * np.array([1, 1, 1, 255], np.float32)
    for i in range(2):
        points.tofile(folder / f"velodyne/{i:06d}.bin")
    part = ref.path.parents[1]
    for name in ("label_2", "calib"):
        text = (part / name / f"{ref.frame_id}.txt").read_text()
        (folder / name / "000000.txt").write_text(text)
    source = LabelledKitti(scans=KittiObject(root=tmp_path))
    text = check_labels(source, source.frames).text()
    assert "data.intensity_scale=255" in text
    assert "000001.txt: there is no such label file" in text


def test_velocities_show_half_a_turn() -> None:
    boxes = row_of_boxes(9, velocity=True)
    boxes[:, 6] = 0.4
    boxes[:, 7:] = 5 * np.array([np.cos(0.4), np.sin(0.4)])
    boxes[8, 7:] = np.nan
    right = memory([boxes], [("car",) * 9], velocities=True)
    assert check_labels(right, right.frames).good
    boxes = boxes.copy()
    boxes[:, 6] += math.pi
    turned = replace(right, found=(BoxLabels(boxes=boxes, names=("car",) * 9),))
    (finding,) = check_labels(turned, turned.frames).findings
    assert "8 of 8 moving objects drive backwards" in finding


def test_annotated_counts_are_compared_with_one_sweep() -> None:
    boxes = row_of_boxes(9, velocity=True)
    points = filled(boxes, seed=0, each=20, columns=5)
    points[:, 4] = np.tile([0.0, 0.0, 0.05, 0.1], 45)
    labels = BoxLabels(boxes=boxes, names=("car",) * 9, counts=np.full(9, 10))
    source = Memory(clouds=(points,), found=(labels,), columns=5, velocities=True)
    assert check_labels(source, source.frames).good
    wrong = replace(source, found=(replace(labels, counts=np.full(9, 20)),))
    (finding,) = check_labels(wrong, wrong.frames).findings
    assert "9 of 9 boxes hold another number of points" in finding


def test_too_little_to_tell_is_said() -> None:
    source = memory([row_of_boxes(2)], [("Car", "Car")])
    report = check_labels(source, source.frames)
    assert report.good
    assert any("too few to tell" in note for note in report.notes)
    straight = memory([row_of_boxes(4), row_of_boxes(4, y=5.0)], [("Car",) * 4] * 2)
    report = check_labels(straight, straight.frames)
    assert any("too few objects stand askew" in note for note in report.notes)
    empty = memory([np.zeros((0, 7), np.float32)], [()])
    assert "objects: none" in check_labels(empty, empty.frames).text()
    with pytest.raises(ValueError, match="no frames to check"):
        check_labels(source, ())


def test_impossible_boxes_are_findings() -> None:
    source = memory([row_of_boxes(8)], [("Car",) * 8])
    source.found[0].boxes[3, 4] = -1
    assert "size 4, -1, 1.6" in check_labels(source, source.frames).findings[0]
