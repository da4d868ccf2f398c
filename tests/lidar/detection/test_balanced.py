"""Class-balanced resampling against its definition."""

import numpy as np
import pytest

from lidar.detection.balanced import balanced_frames, class_presence
from lidar.detection.labels import ClassNames
from tests.lidar.detection.sources import memory, row_of_boxes


def test_every_class_is_drawn_equally_often() -> None:
    present = np.zeros((1000, 3), bool)
    present[:900, 0] = True
    present[900:990, 1] = True
    present[990:, 2] = True
    frames = balanced_frames(present, seed=0, epoch=0)
    assert len(frames) == 999  # 1000 pairs over 3 classes
    np.testing.assert_array_equal(present[frames].sum(axis=0), 333)


def test_frames_of_several_classes_are_drawn_for_each() -> None:
    rng = np.random.default_rng(0)
    present = rng.random((2000, 4)) < (0.9, 0.5, 0.05, 0.01)
    frames = balanced_frames(present, seed=0, epoch=0)
    assert len(frames) == present.sum() // 4 * 4
    counts = np.bincount(frames, minlength=2000)
    expected = (present / present.sum(axis=0)).sum(axis=1) * (present.sum() // 4)
    assert (counts[~present.any(axis=1)] == 0).all()
    for column in present.T:
        assert counts[column].sum() == pytest.approx(expected[column].sum(), rel=0.05)


def test_it_is_a_function_of_seed_and_epoch() -> None:
    present = np.random.default_rng(1).random((100, 2)) < 0.5
    draws = [balanced_frames(present, seed=s, epoch=e) for s, e in ((0, 0), (0, 0), (0, 1), (1, 0))]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[0], draws[3])


def test_absent_classes_get_no_draws() -> None:
    present = np.zeros((10, 3), bool)
    present[:, 0] = True
    assert len(balanced_frames(present, seed=0, epoch=0)) == 10
    with pytest.raises(ValueError, match="no frame holds"):
        balanced_frames(np.zeros((10, 3), bool), seed=0, epoch=0)
    with pytest.raises(ValueError, match=r"\[frames, classes\]"):
        balanced_frames(np.zeros(10, bool), seed=0, epoch=0)


def test_presence_is_read_from_labels() -> None:
    source = memory(
        [row_of_boxes(2), row_of_boxes(1), row_of_boxes(1)], [("Car", "Van"), ("Bus",), ("Tram",)]
    )
    classes = ClassNames(names=("Car", "Bus"), aliases={"Van": "Car"})
    present = class_presence(source, source.frames, classes)
    assert present.tolist() == [[True, False], [False, True], [False, False]]
