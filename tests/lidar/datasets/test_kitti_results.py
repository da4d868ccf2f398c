"""Rows of label and result files: reading, writing, errors, and the boxes in the velodyne frame."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lidar.datasets.errors import FrameError
from lidar.datasets.kitti_calib import KittiCalib
from lidar.datasets.kitti_labels import read_kitti_labels
from lidar.datasets.kitti_results import (
    ObjectRows,
    boxes_of,
    read_labels,
    read_results,
    read_tracking_labels,
    result_rows,
    write_rows,
)

RealData = Callable[[str], Path]
LABEL = "Car 0.25 2 -1.5 100 110.5 200 210 1.5 1.6 4.2 1 1.7 20 0.3"


@pytest.fixture
def calib() -> KittiCalib:
    """Axes of a KITTI camera a little below and before the sensor, tilted by a few degrees."""
    tilt = 0.05
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]])
    matrix[:3, 3] = [0.06, -0.08, -0.27]
    projection = np.array([[721.5, 0, 609.6, 44.9], [0, 721.5, 172.9, 0.2], [0, 0, 1, 0.003]])
    return KittiCalib(velodyne_to_camera=matrix, projection=projection)


def test_columns_of_a_label(tmp_path: Path) -> None:
    path = tmp_path / "000000.txt"
    path.write_text(f"{LABEL}\n\npedestrian 0 0 0 1 2 3 4 5 6 7 8 9 10 11\n")
    rows = read_labels(path)
    assert rows.names.tolist() == ["Car", "Pedestrian"]  # the benchmark compares without case
    assert (rows.truncated[0], rows.occluded[0], rows.alpha[0]) == (0.25, 2, -1.5)
    assert rows.image_boxes[0].tolist() == [100, 110.5, 200, 210]
    assert rows.sizes[0].tolist() == [1.5, 1.6, 4.2]
    assert rows.locations[0].tolist() == [1, 1.7, 20]
    assert rows.rotations.tolist() == [0.3, 11]


def test_an_empty_result_file_holds_no_detections(tmp_path: Path) -> None:
    path = tmp_path / "000000.txt"
    write_rows(path, ObjectRows.none(scores=True))
    assert path.read_text() == ""
    assert len(read_results(path)) == 0
    assert read_results(path).scores.shape == (0,)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "000000.txt"
    path.write_text(f"{LABEL} 0.123456789\n{LABEL} -3e-05\n")
    rows = read_results(path)
    write_rows(tmp_path / "copy.txt", rows)
    copy = read_results(tmp_path / "copy.txt")
    assert copy.names.tolist() == rows.names.tolist()
    assert np.array_equal(copy.values, rows.values)


def test_float32_scores_keep_their_order_in_files(tmp_path: Path, calib: KittiCalib) -> None:
    scores = np.nextafter(np.float32(0.7), np.float32(1)), np.float32(0.7)
    boxes = np.tile([[10.0, 1, -1, 4, 1.6, 1.5, 0.1]], (2, 1))
    rows = result_rows(boxes, names=["Car"] * 2, scores=np.array(scores), calib=calib, image_size=(1242, 375))
    write_rows(tmp_path / "000000.txt", rows)
    written = read_results(tmp_path / "000000.txt").scores
    assert written[0] > written[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Car 0 0 0 1 2 3", r"line 2 .*7 fields: neither a label nor a result"),
        (f"{LABEL} 0.5", r"line 2 .*16 fields: a result, where a label is wanted"),
        (LABEL.replace("Car", "Bicycle"), r"line 2 .*unknown class 'Bicycle'.* KITTI has Car, Van"),
        (LABEL.replace("1.7", "1,7"), r"line 2 .*could not convert"),
        (LABEL.replace("1.7", "nan"), r"line 2 .*NaN or infinity"),
        (LABEL.replace("1.7", "inf"), r"line 2 .*NaN or infinity"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "000003.txt"
    path.write_text(f"{LABEL}\n{line}\n")
    with pytest.raises(FrameError, match=rf"000003\.txt: {message}"):
        read_labels(path)


def test_files_that_are_no_rows_at_all(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="no such result file"):
        read_results(tmp_path / "000000.txt")
    (tmp_path / "000001.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(FrameError, match="not a text file"):
        read_labels(tmp_path / "000001.txt")
    (tmp_path / "0000.txt").write_text(f"0 1 {LABEL}\nx 1 {LABEL}\n")
    with pytest.raises(FrameError, match="line 2"):
        read_tracking_labels(tmp_path / "0000.txt")


def test_tracking_labels_become_object_labels(tmp_path: Path) -> None:
    path = tmp_path / "0000.txt"
    path.write_text(
        f"3 -1 DontCare -1 -1 -10 1 2 3 4 -1000 -1000 -1000 -10 -1 -1 -10\n3 7 {LABEL}\n"
        f"5 8 {LABEL.replace('Car', 'Person')}\n"
    )
    frames = read_tracking_labels(path)
    assert sorted(frames) == [3, 5]
    assert frames[3].names.tolist() == ["DontCare", "Car"]
    assert frames[3].image_boxes[0].tolist() == [1, 2, 3, 4]
    assert frames[3].sizes[0].tolist() == [-1, -1, -1]
    assert frames[3].locations[0].tolist() == [-1000, -1000, -1000]
    assert frames[3].locations[1].tolist() == [1, 1.7, 20]
    assert frames[5].names.tolist() == ["Person_sitting"]


def test_real_tracking_labels_equal_their_object_form(real_data: RealData) -> None:
    frames = read_tracking_labels(real_data("kitti_tracking") / "training/label_02/0000.txt")
    folder = real_data("kitti_eval_fixture") / "seq0" / "label_2"
    for number, rows in frames.items():
        expected = read_labels(folder / f"{number:06d}.txt")
        assert rows.names.tolist() == expected.names.tolist()
        assert np.array_equal(rows.values, expected.values)
    assert len(frames) == 154


def test_boxes_to_rows_and_back(calib: KittiCalib) -> None:
    rng = np.random.default_rng(0)
    boxes = np.column_stack(
        [
            rng.uniform(5, 60, 50),
            rng.uniform(-30, 30, 50),
            rng.uniform(-2, 1, 50),
            rng.uniform(0.5, 5, (50, 3)),
            rng.uniform(-9, 9, 50),
        ]
    )
    rows = result_rows(boxes, names=["Car"] * 50, scores=rng.random(50), calib=calib, image_size=(1242, 375))
    back = boxes_of(rows, calib)
    assert np.abs(back[:, :6] - boxes[:, :6]).max() < 1e-9
    assert np.abs(np.exp(1j * back[:, 6]) - np.exp(1j * boxes[:, 6])).max() < 1e-9
    assert np.abs(rows.rotations).max() <= np.pi
    left, top, right, bottom = rows.image_boxes.T
    assert left.min() >= 0
    assert right.max() <= 1241
    assert bottom.max() <= 374
    assert (right >= left).all()
    assert (bottom >= top).all()
    assert np.array_equal(rows.truncated, -np.ones(50))


def test_a_box_straight_ahead_is_seen_where_it_is() -> None:
    projection = np.array([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]])
    axes = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    calib = KittiCalib(velodyne_to_camera=axes, projection=projection)
    box = np.array([[20, 0, 0, 4, 2, 1.5, 0]])
    rows = result_rows(box, names=["Car"], scores=np.ones(1), calib=calib, image_size=(1242, 375))
    near = 700 / 18
    assert rows.image_boxes[0].tolist() == pytest.approx(
        [600 - near, 180 - 0.75 * near, 600 + near, 180 + 0.75 * near]
    )
    # Seen from behind: both angles are -pi/2.
    assert rows.rotations[0] == pytest.approx(-np.pi / 2)
    assert rows.alpha[0] == pytest.approx(-np.pi / 2)
    behind = result_rows(
        box * [-1, 1, 1, 1, 1, 1, 1], names=["Car"], scores=np.ones(1), calib=calib, image_size=(1242, 375)
    )
    assert np.isfinite(behind.values).all()


def test_real_labels_round_trip(real_data: RealData, tmp_path: Path) -> None:
    """Label to box to file to box: places and sizes to 1e-4 m, rotations to 1e-6; image boxes fit."""
    root = real_data("kitti_object") / "training"
    overlaps = []
    for path in sorted((root / "label_2").glob("*.txt")):
        calib = KittiCalib.read(root / "calib" / path.name)
        rows = read_labels(path)
        there = rows.names != "DontCare"
        rows = ObjectRows(names=rows.names[there], values=rows.values[there])
        boxes = boxes_of(rows, calib)
        assert np.allclose(boxes, read_kitti_labels(path, root / "calib" / path.name).boxes, atol=1e-5)
        written = result_rows(
            boxes, names=rows.names.tolist(), scores=np.ones(len(boxes)), calib=calib, image_size=(1242, 375)
        )
        write_rows(tmp_path / path.name, written)
        back = read_results(tmp_path / path.name)
        assert np.abs(back.locations - rows.locations).max(initial=0) < 1e-4
        assert np.abs(back.sizes - rows.sizes).max(initial=0) < 1e-4
        difference = back.rotations - rows.rotations
        assert np.abs(difference - 2 * np.pi * np.round(difference / (2 * np.pi))).max(initial=0) < 1e-6
        low = np.maximum(back.image_boxes[:, :2], rows.image_boxes[:, :2])
        high = np.minimum(back.image_boxes[:, 2:], rows.image_boxes[:, 2:])
        shared = np.maximum(high - low, 0).prod(axis=1)
        areas = [(r.image_boxes[:, 2:] - r.image_boxes[:, :2]).prod(axis=1) for r in (back, rows)]
        overlaps += (shared / (areas[0] + areas[1] - shared)).tolist()
    assert len(overlaps) > 50
    assert np.median(overlaps) > 0.85  # annotators draw what is visible, the corners stand around it


def test_wrong_boxes_are_refused(calib: KittiCalib) -> None:
    with pytest.raises(ValueError, match="N names and N scores"):
        result_rows(np.zeros((2, 7)), names=["Car"], scores=np.zeros(2), calib=calib, image_size=(9, 9))
    with pytest.raises(ValueError, match="NaN"):
        result_rows(
            np.full((1, 7), np.nan), names=["Car"], scores=np.zeros(1), calib=calib, image_size=(9, 9)
        )
    assert (
        len(result_rows(np.zeros((0, 7)), names=[], scores=np.zeros(0), calib=calib, image_size=(9, 9))) == 0
    )
