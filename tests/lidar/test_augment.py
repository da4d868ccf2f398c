import math

import numpy as np
import pytest

from lidar.augment import Augmentation
from tests.lidar.datasets.writers import cloud

POINTS = cloud(200)
NOTHING = {"flip_x": False, "flip_y": False, "rotation": 0.0, "scaling": (1.0, 1.0), "shuffle": False}


def _apply(seed: int = 0, **options: object) -> np.ndarray:
    return Augmentation(**{**NOTHING, **options}).apply(POINTS, np.random.default_rng(seed))


def test_defaults_are_the_papers_kitti_recipe() -> None:
    assert Augmentation() == Augmentation(
        flip_x=False, flip_y=True, rotation=math.pi / 4, scaling=(0.95, 1.05), shuffle=True
    )


def test_nothing_switched_on_changes_nothing() -> None:
    before = POINTS.copy()
    np.testing.assert_array_equal(_apply(), before)
    assert not np.shares_memory(_apply(), POINTS)
    Augmentation().apply(POINTS, np.random.default_rng(0))
    np.testing.assert_array_equal(POINTS, before)


@pytest.mark.parametrize(("option", "axis"), [("flip_x", 0), ("flip_y", 1)])
def test_flips_mirror_their_axis_half_the_time(option: str, axis: int) -> None:
    mirrored = 0
    for seed in range(200):
        moved = _apply(seed, **{option: True})
        sign = np.ones(4, np.float32)
        sign[axis] = np.sign(moved[0, axis]) * np.sign(POINTS[0, axis])
        np.testing.assert_array_equal(moved, POINTS * sign)
        mirrored += sign[axis] < 0
    assert 70 < mirrored < 130


def test_rotation_turns_about_z_within_its_limit() -> None:
    angles = []
    for seed in range(200):
        moved = _apply(seed, rotation=0.5)
        turned = (moved[:, 0] + 1j * moved[:, 1]) / (POINTS[:, 0] + 1j * POINTS[:, 1])
        np.testing.assert_allclose(np.abs(turned), 1, rtol=1e-5)
        np.testing.assert_allclose(np.angle(turned), np.angle(turned[0]), atol=1e-4)
        np.testing.assert_array_equal(moved[:, 2:], POINTS[:, 2:])
        angles.append(np.angle(turned[0]))
    assert -0.5 <= min(angles) < -0.45
    assert 0.45 < max(angles) <= 0.5


def test_scaling_leaves_intensity_alone() -> None:
    factors = []
    for seed in range(200):
        moved = _apply(seed, scaling=(0.9, 1.2))
        ratio = moved[:, :3] / POINTS[:, :3]
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
        np.testing.assert_array_equal(moved[:, 3], POINTS[:, 3])
        factors.append(ratio[0, 0])
    assert 0.9 <= min(factors) < 0.92
    assert 1.18 < max(factors) <= 1.2 + 1e-6


def test_shuffling_permutes() -> None:
    moved = _apply(shuffle=True)
    assert not np.array_equal(moved, POINTS)
    np.testing.assert_array_equal(moved[np.lexsort(moved.T)], POINTS[np.lexsort(POINTS.T)])


def test_parts_do_not_disturb_each_other() -> None:
    full = Augmentation(shuffle=False)
    for seed in range(20):
        moved = full.apply(POINTS, np.random.default_rng(seed))
        unflipped = Augmentation(shuffle=False, flip_y=False).apply(POINTS, np.random.default_rng(seed))
        np.testing.assert_allclose(np.hypot(*moved[:, :2].T), np.hypot(*unflipped[:, :2].T), rtol=1e-5)
        np.testing.assert_array_equal(moved[:, 2], unflipped[:, 2])


def test_gt_sampling_is_refused() -> None:
    with pytest.raises(ValueError, match="pretraining never sees a label"):
        Augmentation(gt_sampling={"DB_INFO_PATH": "kitti_dbinfos_train.pkl"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": -0.1}, "radians, 0 to pi"),
        ({"rotation": 45}, "radians, 0 to pi"),
        ({"scaling": (0, 1)}, "0 < smallest <= largest"),
        ({"scaling": (1.1, 0.9)}, "0 < smallest <= largest"),
        ({"scaling": (1.0,)}, "0 < smallest <= largest"),
    ],
)
def test_arguments_are_validated(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)
