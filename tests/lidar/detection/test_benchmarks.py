"""Real KITTI and nuScenes labels against published counts, road planes, difficulty (skipped without ../shared/data)."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lidar.datasets import FrameError, KittiObject, NuScenesSweeps
from lidar.datasets.kitti_labels import read_kitti_labels
from lidar.detection.augmentation import DetectionAugmentation
from lidar.detection.benchmarks import LabelledKitti, read_plane
from lidar.detection.gt_cutting import build_database
from lidar.detection.gt_sampling import GroundTruthSampling
from lidar.detection.labelled import LabelledFrames
from lidar.detection.labels import ClassNames
from lidar.detection.scene import membership
from lidar.grid import inside
from tests.lidar.datasets.writers import write_bin, write_calib
from tests.lidar.detection.sources import RANGE

RealData = Callable[[str], Path]
CLASSES = ClassNames(names=("Car", "Pedestrian", "Cyclist"))
# Points in the camera's view, and of these in range; points in each labelled box of the full scan, in file order.
COUNTS = {
    "000000": (20285, 20266, "Pedestrian 377"),
    "000001": (18630, 18627, "Truck 71, Car 9, Cyclist 18"),
    "000002": (20210, 20064, "Misc 1349, Car 67"),
    "000003": (18911, 18791, "Car 674"),
    "000004": (19063, 18913, "Car 78, Car 26"),
    "000005": (19962, 19950, "Pedestrian 70"),
    "000006": (19473, 19423, "Car 9, Car 64, Car 321, Car 26"),
    "000007": (19423, 19271, "Car 182, Car 20, Car 5, Cyclist 25"),
    "000008": (17238, 17110, "Car 6035, Car 1900, Car 1041, Car 659, Car 55, Car 162"),
    "000009": (19411, 19264, "Car 215, Car 4, Car 1"),
}


def _kitti(real_data: RealData, view: str) -> LabelledKitti:
    return LabelledKitti(scans=KittiObject(root=real_data("kitti_object"), view=view))


def test_points_in_kitti_boxes(real_data: RealData) -> None:
    full, camera = _kitti(real_data, "full"), _kitti(real_data, "camera")
    for ref, (frame, (seen, in_range, expected)) in zip(full.frames, COUNTS.items(), strict=False):
        assert ref.frame_id == frame
        labels = full.labels(ref)
        counts = membership(full.read(ref), labels.boxes).sum(axis=1)
        names, numbers = zip(*(entry.split() for entry in expected.split(", ")), strict=True)
        assert labels.names == names
        np.testing.assert_allclose(counts, [int(n) for n in numbers], atol=1)
        points = camera.read(ref)
        assert len(points) == pytest.approx(seen, abs=1)
        horizontally = (*RANGE[:2], -100.0, *RANGE[3:5], 100.0)
        assert inside(points, horizontally).sum() == pytest.approx(in_range, abs=1)


def test_points_in_nuscenes_boxes(real_data: RealData) -> None:
    """The demo's boxes, in today's convention, hold the points that their annotations say."""
    root = real_data("nuscenes_demo")
    source = NuScenesSweeps(root=root)
    with next(root.glob("*.pkl")).open("rb") as file:
        instances = pickle.load(file)["data_list"][0]["instances"]
    boxes = np.array([i["bbox_3d"] for i in instances], np.float32)
    expected = np.array([i["num_lidar_pts"] for i in instances])
    counts = membership(source.read(source.frames[0]), boxes).sum(axis=1)
    assert len(instances) == 69
    assert (counts == expected).sum() == 61
    assert (np.abs(counts - expected) <= 1).sum() == 65


def test_objects_stand_on_real_road_planes(real_data: RealData) -> None:
    """The plane runs below the scan by about the sensor's height, and the boxes stand on it."""
    source, gaps = _kitti(real_data, "camera"), []
    for ref in source.frames:
        plane = source.road(ref)
        if plane is None:
            continue
        assert plane[2] > 0.99
        assert 1.5 < plane[3] < 1.9
        labels = source.labels(ref)
        bottom = labels.boxes[:, 2] - labels.boxes[:, 5] / 2
        gaps += (plane[0] * labels.boxes[:, 0] + plane[1] * labels.boxes[:, 1] + bottom + plane[3]).tolist()
    assert len(gaps) > 25
    assert np.median(np.abs(gaps)) < 0.15


def test_pasted_objects_on_real_scans(real_data: RealData, tmp_path: Path) -> None:
    """Cut out of full scans, pasted into camera views."""
    source, full = _kitti(real_data, "camera"), _kitti(real_data, "full")
    path = tmp_path / "kitti.gt"
    database = build_database(path, source=full, refs=full.frames[:12], classes=CLASSES, progress=False)
    sampling = GroundTruthSampling(
        database=database, classes=CLASSES.names, counts={"Car": 20, "Pedestrian": 15, "Cyclist": 15}
    )
    frames = LabelledFrames(
        source=source,
        refs=source.frames,
        point_range=RANGE,
        classes=CLASSES,
        augment=DetectionAugmentation(sampling=sampling),
    )
    for index in range(0, 10, 3):
        sample = frames[(index, index)]
        held = membership(sample.cloud.points.numpy(), sample.boxes.numpy()).sum(axis=1)
        assert len(held) > 10
        assert (held >= 5).mean() > 0.8  # some stand half out of the range


def _label(*, truncated: float, occluded: int, height: float) -> str:
    return f"Car {truncated} {occluded} 0 100 100 200 {100 + height} 1.5 1.6 4 1 1 20 0\n"


@pytest.mark.parametrize(
    ("truncated", "occluded", "height", "expected"),
    [
        (0.15, 0, 39, 0),  # on every limit, a pixel short of 40
        (0.15, 0, 38.9, 1),
        (0.16, 0, 80, 1),
        (0.3, 1, 24, 1),
        (0.31, 1, 24, 2),
        (0.5, 2, 24, 2),
        (0.51, 2, 24, -1),
        (0.0, 3, 100, -1),
        (0.0, 0, 23.9, -1),
    ],
)
def test_difficulty(tmp_path: Path, truncated: float, occluded: int, height: float, expected: int) -> None:
    (tmp_path / "l.txt").write_text(_label(truncated=truncated, occluded=occluded, height=height))
    labels = read_kitti_labels(tmp_path / "l.txt", write_calib(tmp_path / "c.txt"))
    assert labels.difficulty is not None
    assert labels.difficulty.tolist() == [expected]


def test_missing_labels_are_named(tmp_path: Path) -> None:
    write_bin(tmp_path / "training/velodyne/000000.bin", np.ones((5, 4), np.float32))
    source = LabelledKitti(scans=KittiObject(root=tmp_path))
    with pytest.raises(FrameError, match=r"000000\.txt: there is no such label file"):
        source.labels(source.frames[0])
    assert source.road(source.frames[0]) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# Matrix\nWIDTH 4\nHEIGHT 1\n0 -1 0\n", "not a road plane"),
        ("0 -1 0 1.7\n", "not a road plane"),
        ("# Matrix\nWIDTH 4\nHEIGHT 1\n0 -1 x 1.7\n", "not a road plane"),
        ("# Matrix\nWIDTH 4\nHEIGHT 1\n1 0 0 1.7\n", "steeper"),
    ],
)
def test_malformed_planes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plane.txt").write_text(text)
    with pytest.raises(FrameError, match=message):
        read_plane(tmp_path / "plane.txt", write_calib(tmp_path / "calib.txt"))
