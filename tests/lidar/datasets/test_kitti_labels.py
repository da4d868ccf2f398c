from pathlib import Path

import numpy as np
import pytest

from lidar.datasets.errors import FrameError
from lidar.datasets.kitti_calib import KittiCalib
from lidar.datasets.kitti_labels import read_kitti_labels
from tests.lidar.datasets.writers import write_calib


def _label_line(name: str, box: np.ndarray, calib: KittiCalib) -> str:
    """A box in the velodyne frame as a KITTI line, from the format's definition."""
    x, y, z, length, width, height, yaw = box
    bottom = calib.to_camera(np.array([[x, y, z - height / 2]]))[0]
    ry = -yaw - np.pi / 2
    numbers = (height, width, length, *bottom, ry)
    return f"{name} 0 0 0 1 2 3 4 " + " ".join(f"{v:.9f}" for v in numbers)


def test_boxes_round_trip(tmp_path: Path) -> None:
    calib_path = write_calib(tmp_path / "calib.txt")
    calib = KittiCalib.read(calib_path)
    rng = np.random.default_rng(0)
    low, high = [3, -20, -2, 1, 0.5, 1, -np.pi], [60, 20, 1, 10, 3, 4, np.pi]
    boxes = rng.uniform(low, high, (20, 7))
    names = [["Car", "Pedestrian", "Cyclist"][i % 3] for i in range(20)]
    lines = [_label_line(name, box, calib) for name, box in zip(names, boxes, strict=True)]
    lines.insert(3, "DontCare -1 -1 -10 1 2 3 4 -1 -1 -1 -1000 -1000 -1000 -10")
    (tmp_path / "label.txt").write_text("\n".join(lines) + "\n\n")
    labels = read_kitti_labels(tmp_path / "label.txt", calib_path)
    assert labels.names == tuple(names)
    assert labels.boxes.dtype == np.float32
    np.testing.assert_allclose(labels.boxes, boxes, atol=1e-4)


def test_an_empty_file_has_no_boxes(tmp_path: Path) -> None:
    (tmp_path / "label.txt").write_text("")
    labels = read_kitti_labels(tmp_path / "label.txt", write_calib(tmp_path / "calib.txt"))
    assert labels.boxes.shape == (0, 7)
    assert labels.names == ()


@pytest.mark.parametrize("line", ["Car 0 0 0 1 2 3 4 1 2", "Car 0 0 0 1 2 3 4 a b c d e f g"])
def test_malformed_lines_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "label.txt").write_text("\n" + line)
    with pytest.raises(FrameError, match="line 2 is not a KITTI label"):
        read_kitti_labels(tmp_path / "label.txt", write_calib(tmp_path / "calib.txt"))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="no such label file"):
        read_kitti_labels(tmp_path / "label.txt", tmp_path / "calib.txt")
    (tmp_path / "label.txt").write_text("")
    with pytest.raises(FrameError, match="no such calibration file"):
        read_kitti_labels(tmp_path / "label.txt", tmp_path / "calib.txt")
