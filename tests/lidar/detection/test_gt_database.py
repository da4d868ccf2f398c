"""The database of recorded objects: what goes in comes out, shared by processes, and a damaged file is known."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from lidar.datasets.errors import DatasetError, FrameError
from lidar.detection.gt_cutting import build_database
from lidar.detection.gt_database import GroundTruthDatabase
from lidar.detection.labels import BoxLabels, ClassNames
from tests.lidar.detection.sources import Memory, filled, memory, row_of_boxes

CLASSES = ClassNames(names=("Car", "Pedestrian"), aliases={"Van": "Car"})


def _source(**options: object) -> Memory:
    cars = [row_of_boxes(3), row_of_boxes(2, y=9.0), np.zeros((0, 7), np.float32)]
    return memory(cars, [("Car", "Pedestrian", "Tram"), ("Van", "Car"), ()], **options)


def _build(path: Path, source: Memory, **options: object) -> GroundTruthDatabase:
    return build_database(
        path,
        source=source,
        refs=source.frames,
        classes=CLASSES,
        progress=False,
        **options,  # type: ignore[arg-type]
    )


def test_objects_come_out_as_they_were(tmp_path: Path) -> None:
    source = _source()
    database = _build(tmp_path / "new" / "objects.gt", source)
    assert database.classes == CLASSES.names
    assert database.per_class() == {"Car": 3, "Pedestrian": 1}
    np.testing.assert_array_equal(database.labels, [0, 1, 0, 0])
    np.testing.assert_array_equal(database.counts, 20)
    np.testing.assert_array_equal(database.frame, [0, 0, 1, 1])
    assert database.frame_names.tolist() == [b"000000", b"000001"]
    boxes = np.concatenate([source.found[0].boxes[:2], source.found[1].boxes])
    np.testing.assert_array_equal(database.boxes, boxes)
    for entry in range(4):
        cloud = source.clouds[database.frame[entry]]
        assert cloud is not None
        place = [0, 20, 0, 20][entry]
        expected = cloud[place : place + 20].copy()
        expected[:, :3] -= boxes[entry, :3]
        np.testing.assert_array_equal(database.points(entry), expected)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["objects.gt"]


def test_difficulty_is_that_of_the_labels_or_of_points_and_range(tmp_path: Path) -> None:
    boxes = row_of_boxes(4, spacing=15)  # at 8, 23, 38 and 53 m
    source = memory([boxes], [("Car", "Car", "Car", "Car")])
    classes = ClassNames(names=("Car",))
    path = tmp_path / "a"
    database = build_database(path, source=source, refs=source.frames, classes=classes, progress=False)
    np.testing.assert_array_equal(database.difficulty, [0, 0, 1, 2])
    few = memory([boxes], [("Car",) * 4], each=5)
    database = build_database(path, source=few, refs=few.frames, classes=classes, progress=False)
    np.testing.assert_array_equal(database.difficulty, 2)
    labels = BoxLabels(boxes=boxes, names=("Car",) * 4, difficulty=np.array([-1, 2, 1, -1]))
    given = Memory(clouds=(filled(boxes, seed=0),), found=(labels,))
    database = build_database(path, source=given, refs=given.frames, classes=classes, progress=False)
    np.testing.assert_array_equal(database.difficulty, [-1, 2, 1, -1])
    np.testing.assert_array_equal(database.pool("Car", min_points=5), [1, 2])
    assert len(database.pool("Car", min_points=21)) == 0


def test_empty_boxes_are_left_out(tmp_path: Path) -> None:
    boxes = row_of_boxes(3)
    source = Memory(
        clouds=(filled(boxes[[0, 2]], seed=0),),
        found=(BoxLabels(boxes=boxes, names=("Car", "Pedestrian", "Car")),),
    )
    database = _build(tmp_path / "a", source)
    np.testing.assert_array_equal(database.boxes, boxes[[0, 2]])
    np.testing.assert_array_equal(database.labels, [0, 0])


def test_further_columns_and_velocities_are_kept(tmp_path: Path) -> None:
    boxes = row_of_boxes(2, velocity=True)
    boxes[1, 7:] = np.nan
    source = memory([boxes], [("Car", "Pedestrian")], columns=5, velocities=True)
    database = _build(tmp_path / "a", source)
    assert database.columns == 5
    np.testing.assert_array_equal(database.boxes, boxes)


def test_pickled_it_is_its_path(tmp_path: Path) -> None:
    database = _build(tmp_path / "a", _source())
    content = pickle.dumps(database)
    assert len(content) < 500
    copy = pickle.loads(content)
    np.testing.assert_array_equal(copy.points(2), database.points(2))


@pytest.mark.slow
def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    frames = 40
    source = memory(
        [row_of_boxes(4, y=float(i % 7)) for i in range(frames)],
        [("Car", "Van", "Tram", "Pedestrian")] * frames,
    )
    _build(tmp_path / "one", source)
    _build(tmp_path / "two", source, workers=2)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    broken = Memory(clouds=(*source.clouds[:30], None), found=source.found[:31])
    with pytest.raises(FrameError, match="unreadable"):
        _build(tmp_path / "three", broken, workers=2)


def test_nothing_found_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    source = _source()
    elsewhere = Memory(clouds=tuple(c + 500 for c in source.clouds if c is not None), found=source.found)
    with pytest.raises(DatasetError, match=r"no point lies in any box.*check_labels"):
        _build(tmp_path / "a", elsewhere)
    with pytest.raises(DatasetError, match=r"no object of class Pedestrian"):
        build_database(tmp_path / "a", source=source, refs=source.frames[1:], classes=CLASSES, progress=False)
    with pytest.raises(DatasetError, match="1 frames hold no labelled Car, Pedestrian"):
        build_database(
            tmp_path / "a",
            source=source,
            refs=source.frames[2:],
            classes=CLASSES,
            progress=False,
            on_error="skip",
        )
    assert list(tmp_path.iterdir()) == []


def test_unreadable_frames_stop_or_are_counted(tmp_path: Path) -> None:
    source = _source()
    broken = Memory(clouds=(source.clouds[0], None, source.clouds[2]), found=source.found)
    with pytest.raises(FrameError, match="unreadable"):
        _build(tmp_path / "a", broken)
    database = _build(tmp_path / "a", broken, on_error="skip")
    assert database.note["skipped"] == 1
    assert len(database) == 2


def test_a_failed_build_keeps_the_old_file(tmp_path: Path) -> None:
    source = _source()
    database = _build(tmp_path / "a", source)
    before = (tmp_path / "a").read_bytes()
    broken = Memory(clouds=(source.clouds[0], None), found=source.found[:2])
    with pytest.raises(FrameError):
        _build(tmp_path / "a", broken)
    assert (tmp_path / "a").read_bytes() == before
    assert len(database) == 4


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a"
    content = _build(path, _source()).path.read_bytes()
    other = tmp_path / "b"
    for cut in (10, 63, 64, 200, len(content) - 1):
        other.write_bytes(content[:cut])
        with pytest.raises(DatasetError, match="truncated"):
            GroundTruthDatabase(other)
    other.write_bytes(content + b"x")
    with pytest.raises(DatasetError, match="damaged"):
        GroundTruthDatabase(other)
    other.write_bytes(content[:8] + struct.pack("<I", 7) + content[12:])
    with pytest.raises(DatasetError, match=r"version 7.*reads version 1"):
        GroundTruthDatabase(other)
    other.write_bytes(b"PK\x03\x04" + content)
    with pytest.raises(DatasetError, match="is not a ground-truth database"):
        GroundTruthDatabase(other)
    other.write_bytes(b"")
    with pytest.raises(DatasetError, match="is empty"):
        GroundTruthDatabase(other)
    with pytest.raises(DatasetError, match=r"no ground-truth database.*build_gt_database"):
        GroundTruthDatabase(tmp_path / "none")


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers"):
        _build(tmp_path / "a", _source(), workers=0)
    with pytest.raises(ValueError, match="on_error"):
        _build(tmp_path / "a", _source(), on_error="ignore")
    with pytest.raises(ValueError, match=r"no class Tram.*it has Car, Pedestrian"):
        _build(tmp_path / "a", _source()).pool("Tram", min_points=1)
