"""One's own LiDAR data: both label forms give the same frames, and every mistake in them is named with its line."""

from pathlib import Path

import numpy as np
import pytest

from lidar.datasets import DatasetError, FrameError, PointFolder
from lidar.detection.folder_labels import LabelledFolder, json_line
from tests.lidar.datasets.writers import cloud, write_bin, write_pcd, write_ply
from tests.lidar.detection.sources import random_boxes

NAMES = ("Car", "Truck", "Car")


def _points(root: Path) -> PointFolder:
    """Four frames of four formats, two of them in a subfolder."""
    for i, folder in enumerate(("a", "a", "b/c", "b/c")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        path = root / folder / f"{i:06d}"
        points = cloud(30, seed=i)
        if i == 0:
            write_bin(path.with_suffix(".bin"), points)
        elif i == 1:
            np.save(path.with_suffix(".npy"), points)
        elif i == 2:
            write_pcd(path.with_suffix(".pcd"), points, "binary")
        else:
            write_ply(path.with_suffix(".ply"), points, "binary_little_endian")
    return PointFolder(root=root)


def _boxes(frame: int) -> np.ndarray:
    boxes = random_boxes(3, seed=frame, velocity=True)
    boxes[1, 7:] = np.nan
    return boxes


def _write_text(root: Path) -> Path:
    for frame, key in enumerate(("a/000000", "a/000001", "b/c/000002")):
        path = root / f"{key}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for name, box in zip(NAMES, _boxes(frame).astype(float), strict=True):
            numbers = [repr(float(v)) for v in box[np.isfinite(box)]]
            # The class first, or last.
            lines.append(" ".join([name, *numbers] if frame else [*numbers, name]))
        path.write_text("# comment\n\n" + "\n".join(lines) + "\n")
    (root / "b/c/000003.txt").write_text("")
    return root


def _write_json(path: Path) -> Path:
    frames = ("a/000000.bin", "a/000001", "b/c/000002.pcd")
    lines = [json_line(frame, boxes=_boxes(i), names=NAMES) for i, frame in enumerate(frames)]
    empty = json_line("b/c/000003.ply", boxes=np.zeros((0, 7)), names=())
    path.write_text("".join([empty, *reversed(lines)]))
    return path


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("velocities", [False, True])
def test_both_forms_read_the_same(tmp_path: Path, form: str, velocities: bool) -> None:
    points = _points(tmp_path / "points")
    at = _write_text(tmp_path / "labels") if form == "text" else _write_json(tmp_path / "labels.jsonl")
    source = LabelledFolder(points=points, labels_at=at, velocities=velocities)
    assert source.unlabelled == 0
    assert [ref.frame_id for ref in source.frames] == [ref.frame_id for ref in points.frames]
    for i, ref in enumerate(source.frames):
        np.testing.assert_array_equal(source.read(ref), cloud(30, seed=i))
        labels = source.labels(ref)
        expected = _boxes(i) if i < 3 else np.zeros((0, 9), np.float32)
        np.testing.assert_array_equal(labels.boxes, expected if velocities else expected[:, :7])
        assert labels.names == (NAMES if i < 3 else ())
        assert labels.difficulty is None
        assert source.road(ref) is None
    assert {ref.scene for ref in source.frames} == {"a", "b/c"}


def test_point_files_without_labels_are_left_out_and_counted(tmp_path: Path) -> None:
    points, labels = _points(tmp_path / "points"), _write_text(tmp_path / "labels")
    (labels / "a/000001.txt").unlink()
    source = LabelledFolder(points=points, labels_at=labels)
    assert (len(source.frames), source.unlabelled) == (3, 1)


def test_labels_that_belong_to_no_file_are_named(tmp_path: Path) -> None:
    points, labels = _points(tmp_path / "points"), _write_text(tmp_path / "labels")
    (labels / "a/000009.txt").write_text("")
    with pytest.raises(
        DatasetError, match=r"1 of 5 labels have no point file, the first is a/000009.*e\.g\. a/000000"
    ):
        LabelledFolder(points=points, labels_at=labels)
    with pytest.raises(DatasetError, match="there are no labels"):
        LabelledFolder(points=points, labels_at=tmp_path / "nowhere")
    for empty in (tmp_path / "empty", tmp_path / "empty.jsonl"):
        if empty.suffix:
            empty.write_text("\n")
        else:
            empty.mkdir()
        with pytest.raises(DatasetError, match="no labels in it"):
            LabelledFolder(points=points, labels_at=empty)


@pytest.mark.parametrize(
    "line",
    [
        "Car 1 2 3 4 5 6",
        "Car 1 2 3 4 5 6 7 8",
        "Car 1 2 3 4 5 x 7",
        "1 2 3 4 5 6 7 8",
        "Car 0.00 0 1.74 529.41 172.75 614.46 229.94 1.42 1.65 4.13 -0.93 1.42 20.04 1.70",
    ],
)
def test_malformed_lines_of_text_are_named(tmp_path: Path, line: str) -> None:
    points, labels = _points(tmp_path / "points"), _write_text(tmp_path / "labels")
    (labels / "a/000000.txt").write_text("Car 1 2 3 4 5 6 0\n" + line)
    source = LabelledFolder(points=points, labels_at=labels)
    with pytest.raises(
        FrameError, match=r"a/000000.txt: line 2 is not a label.*class x y z dx dy dz heading"
    ):
        source.labels(source.frames[0])


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"objects": []}',
        '{"frame": 3, "objects": []}',
        '{"frame": "a/000000"}',
        '{"frame": "a/000000", "objects": [{"class": "Car"}]}',
        '{"frame": "a/000000", "objects": [{"box": [1, 2, 3, 4, 5, 6, 7]}]}',
        '{"frame": "a/000000", "objects": [{"class": "Car", "box": [1, 2, 3, 4, 5, 6]}]}',
        '{"frame": "a/000000", "objects": [{"class": "Car", "box": [1, 2, 3, 4, 5, "b", 7]}]}',
        '{"frame": "a/000000", "objects": [{"class": "Car", "box": [1, 2, 3, 4, 5, 6, 7], "velocity": [1]}]}',
    ],
)
def test_malformed_lines_of_json_are_named(tmp_path: Path, line: str) -> None:
    points, path = _points(tmp_path / "points"), tmp_path / "labels.jsonl"
    path.write_text('{"frame": "a/000001", "objects": []}\n' + line + "\n")
    with pytest.raises(FrameError, match=r'labels.jsonl: line 2 is not a label.*"frame": NAME'):
        LabelledFolder(points=points, labels_at=path)


def test_a_frame_labelled_twice_is_named(tmp_path: Path) -> None:
    path = _write_json(tmp_path / "labels.jsonl")
    path.write_text(path.read_text() + '{"frame": "a/000001.npy", "objects": []}\n')
    with pytest.raises(FrameError, match="line 5 labels frame a/000001 again"):
        LabelledFolder(points=_points(tmp_path / "points"), labels_at=path)


def test_a_label_file_that_went_away_is_named(tmp_path: Path) -> None:
    points, labels = _points(tmp_path / "points"), _write_text(tmp_path / "labels")
    source = LabelledFolder(points=points, labels_at=labels)
    (labels / "a/000000.txt").unlink()
    with pytest.raises(FrameError, match="cannot be read"):
        source.labels(source.frames[0])
