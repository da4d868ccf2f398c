"""The data set: keys, crops, dropped boxes, bad frames, batches; and what class names and labels are checked for."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from lidar.augment import Augmentation
from lidar.datasets.errors import DatasetError, FrameError
from lidar.detection.augmentation import DetectionAugmentation
from lidar.detection.gt_cutting import build_database
from lidar.detection.gt_sampling import GroundTruthSampling
from lidar.detection.labelled import LabelledFrames, collate
from lidar.detection.labels import BoxLabels, ClassNames, check_classes, label_fraction
from lidar.detection.scene import membership
from tests.lidar.detection.sources import RANGE, Memory, filled, memory, row_of_boxes

CLASSES = ClassNames(names=("Car", "Pedestrian"), aliases={"Van": "Car"})


def _source(**options: object) -> Memory:
    rows = [row_of_boxes(3), row_of_boxes(2, y=9.0), np.zeros((0, 7), np.float32)]
    return memory(rows, [("Car", "Pedestrian", "Tram"), ("Van", "Car"), ()], **options)


def _frames(source: Memory, **options: object) -> LabelledFrames:
    settings = {"refs": source.frames, "point_range": RANGE, "classes": CLASSES, **options}
    return LabelledFrames(source=source, **settings)  # type: ignore[arg-type]


def test_without_augmentation_frames_are_as_recorded() -> None:
    source = _source()
    sample = _frames(source)[(0, 7)]
    np.testing.assert_array_equal(sample.cloud.points, source.clouds[0])
    np.testing.assert_array_equal(sample.boxes, source.found[0].boxes[:2])
    assert sample.labels.tolist() == [0, 1]
    assert (sample.cloud.frame_id, sample.cloud.seed) == ("000000", 7)
    assert _frames(source)[(1, 0)].labels.tolist() == [0, 0]


def test_batches_pad_and_take_empty_frames() -> None:
    frames = _frames(_source())
    batch = collate([frames[(i, i)] for i in (2, 0, 1)])
    assert batch.truth is not None
    assert batch.truth.labels.tolist() == [[-1, -1], [0, 1], [0, 0]]
    assert batch.truth.of(0)[0].shape == (0, 7)
    assert batch.points.batch_size == 3
    assert batch.seeds == (2, 0, 1)


def test_velocities_come_through() -> None:
    rows = [row_of_boxes(2, velocity=True), np.zeros((0, 9), np.float32)]
    rows[0][1, 7:] = np.nan
    source = memory(rows, [("Car", "Pedestrian"), ()], velocities=True, columns=5)
    frames = _frames(source, augment=DetectionAugmentation())
    batch = collate([frames[(0, 0)], frames[(1, 0)]])
    assert batch.truth is not None
    assert batch.truth.boxes.shape == (2, 2, 9)
    assert torch.isnan(batch.truth.boxes[0, 1, 7:]).all()
    assert batch.points.points.shape[1] == 5


def test_same_key_same_sample() -> None:
    source = _source()
    database_free = DetectionAugmentation(translation_std=(0.5, 0.5, 0.5))
    frames = _frames(source, augment=database_free)
    copy = pickle.loads(pickle.dumps(frames))
    first, again, other = frames[(0, 3)], copy[(0, 3)], frames[(0, 4)]
    assert torch.equal(first.cloud.points, again.cloud.points)
    assert torch.equal(first.boxes, again.boxes)
    assert not torch.equal(first.boxes, other.boxes)


def test_boxes_outside_are_dropped_in_training_only() -> None:
    near = replace_range(RANGE, x1=18.0)
    source = _source()
    assert len(_frames(source, point_range=near)[(0, 0)].boxes) == 2
    assert len(_frames(source, point_range=replace_range(RANGE, x1=13.9))[(0, 0)].boxes) == 1
    everything = _frames(source, point_range=replace_range(RANGE, x1=13.9), training=False)[(0, 0)]
    assert len(everything.boxes) == 2
    assert everything.cloud.points[:, 0].max() < 13.9


def replace_range(values: tuple[float, ...], *, x1: float) -> tuple[float, ...]:
    return (*values[:3], x1, *values[4:])


def test_boxes_with_too_few_points_are_dropped_in_training_only() -> None:
    boxes = row_of_boxes(3)
    labels = BoxLabels(boxes=boxes, names=("Car",) * 3)
    source = Memory(
        clouds=(np.concatenate([filled(boxes[:1], seed=0), filled(boxes[1:2], seed=0, each=2)]),),
        found=(labels,),
    )
    one_class = ClassNames(names=("Car",))
    for least, expected in ((0, 3), (1, 2), (3, 1)):
        assert len(_frames(source, min_points=least, classes=one_class)[(0, 0)].boxes) == expected
    assert len(_frames(source, min_points=3, classes=one_class, training=False)[(0, 0)].boxes) == 3
    annotated = replace(source, found=(replace(labels, counts=np.array([0, 5, 5])),))
    sample = _frames(annotated, min_points=1, classes=one_class)[(0, 0)]
    np.testing.assert_array_equal(sample.boxes, boxes[1:])


def test_pasted_objects_are_in_the_truth(tmp_path) -> None:  # type: ignore[no-untyped-def]
    source = _source()
    database = build_database(
        tmp_path / "a", source=source, refs=source.frames, classes=CLASSES, progress=False
    )
    sampling = GroundTruthSampling(
        database=database, classes=CLASSES.names, counts={"Car": 2, "Pedestrian": 1}
    )
    frames = pickle.loads(pickle.dumps(_frames(source, augment=DetectionAugmentation(sampling=sampling))))
    sample = frames[(2, 0)]
    assert sorted(sample.labels.tolist()) == [0, 0, 1]
    inside = membership(sample.cloud.points.numpy(), sample.boxes.numpy())
    # Scaling and turning in float32 may move a point on a face by a hair; none lies there.
    np.testing.assert_array_equal(inside.sum(axis=1), 20)
    still = [
        Augmentation(flip_y=False, rotation=0, scaling=(1, 1), shuffle=shuffle) for shuffle in (False, True)
    ]
    plain, shuffled = (
        _frames(source, augment=DetectionAugmentation(sampling=sampling, geometry=g))[(2, 0)] for g in still
    )
    assert not torch.equal(plain.cloud.points, shuffled.cloud.points)
    assert torch.equal(plain.boxes, shuffled.boxes)
    rows = [set(map(tuple, sample.cloud.points.tolist())) for sample in (plain, shuffled)]
    assert rows[0] == rows[1]


def test_a_view_without_points_is_not_used() -> None:
    source = _source()
    far = DetectionAugmentation(translation_std=(1e6, 1e6, 1e6))
    sample = _frames(source, augment=far)[(0, 0)]
    assert len(sample.cloud.points) == len(source.clouds[0])  # type: ignore[arg-type]
    assert len(sample.boxes) == 2


def test_bad_frames_stop_or_are_replaced() -> None:
    source = _source()
    broken = Memory(clouds=(None, *source.clouds[1:]), found=source.found)
    with pytest.raises(FrameError, match="unreadable"):
        _frames(broken)[(0, 0)]
    sample = _frames(broken, on_error="skip")[(0, 0)]
    assert (sample.cloud.frame_id, sample.cloud.skipped) == ("000001", ("000000",))
    with pytest.raises(DatasetError, match="none of the 1 frames can be used"):
        _frames(broken, refs=broken.frames[:1], on_error="skip")[(0, 0)]
    with pytest.raises(DatasetError, match="no labelled frames"):
        _frames(source, refs=())
    with pytest.raises(ValueError, match="on_error"):
        _frames(source, on_error="ignore")
    with pytest.raises(TypeError, match="frame_index, draw_seed"):
        _frames(source)[3]  # type: ignore[index]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, np.nan, r"000000.bin: box 1 \(Pedestrian\) of its labels holds NaN"),
        (4, 0.0, r"box 1 \(Pedestrian\) of its labels has the size 4, 0, 1.6"),
        (6, 90.0, r"box 1 \(Pedestrian\) .* heading 90. Headings are in radians"),
    ],
)
def test_impossible_boxes_are_named(column: int, value: float, message: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    source = _source()
    source.found[0].boxes[1, column] = value
    with pytest.raises(FrameError, match=message):
        _frames(source)[(0, 0)]
    with pytest.raises(FrameError, match=message):
        build_database(tmp_path / "a", source=source, refs=source.frames, classes=CLASSES, progress=False)


def test_wrong_class_names_are_found_at_once() -> None:
    with pytest.raises(DatasetError, match=r"no object of class Pedestrain \(did you mean Pedestrian\?\)"):
        _frames(_source(), classes=ClassNames(names=("Car", "Pedestrain")))
    with pytest.raises(DatasetError, match=r"car \(did you mean Car\?\).*Car 2, Pedestrian 1, Tram 1, Van 1"):
        check_classes(_source(), ClassNames(names=("car", "Tram")))
    absent = ClassNames(names=("Car", "Bus"))
    assert len(_frames(_source(), classes=absent, allow_absent=True)[(0, 0)].boxes) == 1
    unlabelled = memory([np.zeros((0, 7), np.float32)], [()])
    with pytest.raises(DatasetError, match="none at all"):
        check_classes(unlabelled, CLASSES)


def test_classes_and_aliases() -> None:
    assert CLASSES.labels(["Van", "Tram", "Pedestrian", "Car"]).tolist() == [0, -1, 1, 0]
    assert CLASSES.labels([]).tolist() == []
    for names in ((), ("Car", "Car")):
        with pytest.raises(ValueError, match="different names"):
            ClassNames(names=names)
    with pytest.raises(ValueError, match="aliases lead to Bus"):
        ClassNames(names=("Car",), aliases={"Coach": "Bus"})


def test_label_fractions_are_whole_scenes_and_nested() -> None:
    refs = [
        replace(ref, scene=f"drive{i % 7}")
        for i, ref in enumerate(memory([np.zeros((0, 7), np.float32)] * 70, [()] * 70).frames)
    ]
    before: set[str] = set()
    for fraction in (0.01, 0.3, 0.5, 1.0):
        chosen = label_fraction(refs, fraction, seed=3)
        scenes = {ref.scene for ref in chosen}
        assert before <= scenes
        assert fraction <= len(chosen) / 70 < fraction + 1 / 7
        assert list(chosen) == [ref for ref in refs if ref.scene in scenes]
        before = scenes
    drawn = {label_fraction(refs, 0.1, seed=seed)[0].scene for seed in range(30)}
    assert len(drawn) > 3
    for fraction in (0.0, 1.1, -0.5):
        with pytest.raises(ValueError, match="label fraction"):
            label_fraction(refs, fraction, seed=0)
