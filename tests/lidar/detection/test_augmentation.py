"""Points, boxes and velocities move together, and back."""

import math

import numpy as np
import pytest
import torch

from lidar.augment import Augmentation, View
from lidar.detection.augmentation import DetectionAugmentation, Motion
from lidar.detection.boxes import corners
from lidar.detection.scene import Scene, membership
from tests.lidar.detection.sources import filled, random_boxes

MOTIONS = [
    Motion(view=View(mirror_y=True)),
    Motion(view=View(mirror_x=True)),
    Motion(view=View(mirror_x=True, mirror_y=True)),
    Motion(view=View(angle=0.7)),
    Motion(view=View(scale=1.3)),
    Motion(shift=(1.0, -2.0, 0.5)),
    Motion(view=View(mirror_x=True, mirror_y=False, angle=-2.5, scale=0.9), shift=(3.0, 1.0, -1.0)),
]


def _boxes(velocity: bool = True) -> np.ndarray:
    return random_boxes(30, seed=1, velocity=velocity).astype(np.float64)


def _as_sets(corner: np.ndarray) -> np.ndarray:
    """Corners [M, 8, 3] in an order of their own, since mirrors exchange left and right."""
    return np.stack([c[np.lexsort(np.round(c, 6).T)] for c in corner])


@pytest.mark.parametrize("motion", MOTIONS)
def test_corners_of_moved_boxes_are_moved_corners(motion: Motion) -> None:
    boxes = _boxes()
    expected = motion.points(corners(torch.from_numpy(boxes)).numpy().reshape(-1, 3)).reshape(-1, 8, 3)
    actual = corners(torch.from_numpy(motion.boxes(boxes))).numpy()
    np.testing.assert_allclose(_as_sets(actual), _as_sets(expected), atol=1e-9)


@pytest.mark.parametrize("motion", MOTIONS)
def test_an_object_that_drives_ahead_still_does(motion: Motion) -> None:
    """The front of a moved box is where its front was moved to, and velocity is the movement of a point in time."""
    boxes = _boxes()
    boxes[:, 7] = 5 * np.cos(boxes[:, 6])
    boxes[:, 8] = 5 * np.sin(boxes[:, 6])
    later = boxes.copy()
    later[:, :2] += 0.1 * boxes[:, 7:9]
    moved, moved_later = motion.boxes(boxes), motion.boxes(later)
    np.testing.assert_allclose(moved[:, 7:9], (moved_later - moved)[:, :2] / 0.1, atol=1e-8)
    ahead = moved[:, 7] * np.cos(moved[:, 6]) + moved[:, 8] * np.sin(moved[:, 6])
    np.testing.assert_allclose(ahead, 5 * motion.view.scale, atol=1e-8)


@pytest.mark.parametrize("motion", MOTIONS)
def test_motions_are_undone(motion: Motion) -> None:
    boxes, points = _boxes(), filled(_boxes(), seed=2).astype(np.float64)
    np.testing.assert_allclose(motion.undo_points(motion.points(points)), points, atol=1e-9)
    back = motion.undo_boxes(motion.boxes(boxes))
    turn = np.angle(np.exp(1j * (back[:, 6] - boxes[:, 6])))
    np.testing.assert_allclose(turn, 0, atol=1e-9)
    columns = [0, 1, 2, 3, 4, 5, 7, 8]
    np.testing.assert_allclose(back[:, columns], boxes[:, columns], atol=1e-9)
    assert (np.abs(motion.boxes(boxes)[:, 6]) <= math.pi).all()


def test_the_rules_written_out() -> None:
    box = np.array([[10.0, 3.0, -1.0, 4.0, 2.0, 1.5, 0.3, 6.0, 1.0]])
    y = Motion(view=View(mirror_y=True)).boxes(box)
    np.testing.assert_allclose(y, [[10, -3, -1, 4, 2, 1.5, -0.3, 6, -1]])
    x = Motion(view=View(mirror_x=True)).boxes(box)
    np.testing.assert_allclose(x, [[-10, 3, -1, 4, 2, 1.5, math.pi - 0.3, -6, 1]])
    scaled = Motion(view=View(scale=2)).boxes(box)
    np.testing.assert_allclose(scaled, [[20, 6, -2, 8, 4, 3, 0.3, 12, 2]])
    shifted = Motion(shift=(1, 2, 3)).boxes(box)
    np.testing.assert_allclose(shifted, [[11, 5, 2, 4, 2, 1.5, 0.3, 6, 1]])


def test_unknown_velocity_stays_unknown() -> None:
    boxes = _boxes()
    boxes[3, 7:] = np.nan
    moved = MOTIONS[-1].boxes(boxes)
    assert np.isnan(moved[3, 7:]).all()
    assert np.isfinite(np.delete(moved, 3, axis=0)).all()
    assert np.isfinite(moved[3, :7]).all()


def test_scenes_move_as_one_and_keep_their_members() -> None:
    boxes = random_boxes(12, seed=3)
    scene = Scene(points=filled(boxes, seed=4), boxes=boxes, labels=np.zeros(12, np.int64))
    kept = scene.points.copy(), scene.boxes.copy()
    augment = DetectionAugmentation(
        geometry=Augmentation(flip_x=True, rotation=math.pi), translation_std=(0.5, 0.5, 0.5)
    )
    before = membership(scene.points, scene.boxes)
    for seed in range(5):
        view = augment.apply(scene, np.random.default_rng(seed))
        np.testing.assert_array_equal(membership(view.points, view.boxes), before)
        np.testing.assert_array_equal(view.points[:, 3], scene.points[:, 3])
        np.testing.assert_array_equal(view.boxes, augment.apply(scene, np.random.default_rng(seed)).boxes)
    np.testing.assert_array_equal(scene.points, kept[0])
    np.testing.assert_array_equal(scene.boxes, kept[1])


def test_translation_has_the_given_spread() -> None:
    augment = DetectionAugmentation(translation_std=(0.5, 1.0, 0.0))
    shifts = np.array([augment.motion(np.random.default_rng(seed)).shift for seed in range(500)])
    np.testing.assert_allclose(shifts.std(axis=0), [0.5, 1.0, 0.0], rtol=0.12)
    np.testing.assert_array_equal(DetectionAugmentation().motion(np.random.default_rng(0)).shift, 0)


def test_moves_as_in_pretraining() -> None:
    """The same generator gives the view that pretraining would see."""
    augment, points = DetectionAugmentation(), filled(random_boxes(3, seed=5), seed=5)
    moved = augment.motion(np.random.default_rng(7)).points(points)
    np.testing.assert_array_equal(moved, Augmentation().transform(points, np.random.default_rng(7)))


@pytest.mark.parametrize("std", [(1.0, 1.0), (-1.0, 0.0, 0.0), (float("nan"), 0.0, 0.0)])
def test_impossible_translations_are_refused(std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="translation_std"):
        DetectionAugmentation(translation_std=std)  # type: ignore[arg-type]
