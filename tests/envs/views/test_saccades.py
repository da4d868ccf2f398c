"""Saccades: patches lie where the gaze is, tell nothing by their padding, and maps keep to their images."""

import numpy as np
import pytest

from envs.episodes import check_episodes
from envs.views.canvases import CanvasSpec, cluttered_digits
from envs.views.digits import SIDE, digits_of, mnist_digits
from envs.views.saccades import Saccades, SaccadeSpec, digit_saccades, patches, random_window
from envs.views.saliency import POLICIES, FixationPolicy

CANVAS = CanvasSpec(train=3, test=2)


def index_images(count: int, *, height: int = 40, width: int = 56) -> np.ndarray:
    """Two channels: the row and the column of each pixel."""
    grid = np.mgrid[:height, :width].astype(np.float32)
    return np.repeat(grid[None], count, axis=0)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_source(policy: FixationPolicy) -> None:
    source = digit_saccades(split="test", canvas=CANVAS, spec=SaccadeSpec(policy=policy))
    check_episodes(source, steps=5)
    assert len(source) == 20
    assert source.observation_shape == (1, 16, 16)
    episode = source.sample(3, steps=5, generator=np.random.default_rng(0))
    np.testing.assert_allclose(episode.actions, np.diff(episode.labels["fixation"], axis=0))
    assert episode.labels["class"] == source.classes[3]  # type: ignore[index]
    assert len({o.tobytes() for o in episode.observations}) == 5


@pytest.mark.parametrize("side", [15, 16])
def test_salient_pixel_is_the_centre_of_its_patch(side: int) -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        row, column = generator.integers(10, 30), generator.integers(10, 46)
        saliency = np.zeros((1, 40, 56))
        saliency[0, row, column] = 1
        source = Saccades(index_images(1), spec=SaccadeSpec(fovea=side), saliency=saliency)
        episode = source.sample(0, steps=1, generator=generator)
        centre = episode.observations[0].mean(axis=(1, 2))
        assert np.abs(centre - (row, column)).max() <= 0.5
        np.testing.assert_allclose(episode.labels["fixation"][0], (row / 40, column / 56), rtol=1e-6)


def test_action_is_the_movement_of_the_patch() -> None:
    source = Saccades(index_images(1), spec=SaccadeSpec(policy=POLICIES["uniform"]))
    generator = np.random.default_rng(0)
    compared = 0
    for _ in range(60):
        episode = source.sample(0, steps=4, generator=generator)
        fixation = episode.labels["fixation"] * (40, 56)
        inside = ((fixation >= 8) & (fixation <= (32, 48))).all(axis=1)
        corner = episode.observations[:, :, 0, 0]
        for t in range(3):
            if inside[t] and inside[t + 1]:
                np.testing.assert_allclose(
                    episode.actions[t] * (40, 56), corner[t + 1] - corner[t], atol=1e-4
                )
                compared += 1
    assert compared > 20


def test_padding_does_not_tell_the_position() -> None:
    constant = np.full((1, 1, 64, 64), 180, np.uint8)
    source = Saccades(constant, spec=SaccadeSpec(policy=POLICIES["uniform"]))
    drawn = [source.sample(0, steps=8, generator=np.random.default_rng(i)) for i in range(40)]
    seen = np.concatenate([d.observations for d in drawn]).reshape(320, -1)
    where = np.concatenate([d.labels["fixation"] for d in drawn])
    design = np.column_stack([seen, np.ones(len(seen))])
    weights, *_ = np.linalg.lstsq(design[:160], where[:160], rcond=None)
    residual = np.square(where[160:] - design[160:] @ weights).sum(axis=0)
    r2 = 1 - residual / np.square(where[160:] - where[160:].mean(axis=0)).sum(axis=0)
    assert np.abs(r2).max() < 0.05
    assert where.min() < 0.05  # borders were looked at
    assert where.max() > 0.95


def test_border_is_continued_by_reflection() -> None:
    image = np.arange(36, dtype=np.float32).reshape(1, 6, 6)
    patch = patches(image, np.array([[0, 0]]), side=5)[0, 0]
    np.testing.assert_array_equal(patch[2:, 2:], image[0, :3, :3])
    np.testing.assert_array_equal(patch, patch[::-1])
    np.testing.assert_array_equal(patch, patch[:, ::-1])


def test_saliency_is_cropped_like_its_image() -> None:
    images = index_images(1, height=64, width=64)
    saliency = np.zeros((1, 64, 64))
    saliency[0, 30:34, 30:34] = 1
    source = Saccades(images, spec=SaccadeSpec(fovea=7, window=40), saliency=saliency)
    corners = set()
    for seed in range(40):
        episode = source.sample(0, steps=1, generator=np.random.default_rng(seed))
        centre = episode.observations[0, :, 3, 3]
        assert (centre >= 30).all()
        assert (centre < 34).all()
        corners.add(tuple(np.rint(centre - episode.labels["fixation"][0] * 40)))
    assert len(corners) > 20  # the window moved
    check_episodes(source)


def test_window_is_the_same_for_all_arrays() -> None:
    image = index_images(1)[0]
    a, b = random_window([image, image[1]], side=9, generator=np.random.default_rng(3))
    assert a.shape == (2, 9, 9)
    np.testing.assert_array_equal(a[1], b)


def test_salient_fixations_see_more_ink_than_uniform_ones() -> None:
    peaks = {}
    for name, policy in POLICIES.items():
        source = digit_saccades(split="train", canvas=CANVAS, spec=SaccadeSpec(policy=policy))
        seen = [source.sample(i, steps=4, generator=np.random.default_rng(i)).observations for i in range(30)]
        peaks[name] = np.mean([o.max(axis=(1, 2, 3)) - np.median(o, axis=(1, 2, 3)) for o in seen])
    assert peaks["saliency"] > peaks["uniform"] + 0.1
    assert peaks["saliency_ior"] > peaks["uniform"] + 0.1


def test_canvases_carry_their_digits() -> None:
    spec = CanvasSpec(train=2, test=2, fragments=2)
    made, again = (cluttered_digits(split="train", seed=1, spec=spec) for _ in range(2))
    np.testing.assert_array_equal(made.images, again.images)
    assert np.bincount(made.classes).tolist() == [2] * 10
    digits, _ = mnist_digits()
    unit = _standard(digits[digits_of("train", seed=1, train=2, test=2)])
    windows = [
        image[top : top + SIDE, left : left + SIDE]
        for image, (top, left) in zip(
            made.images[:, 0], np.rint(made.centres - 13.5).astype(int), strict=True
        )
    ]
    correlation = _standard(np.stack(windows)) @ unit.T
    assert (correlation.argmax(axis=1) == np.arange(20)).all()
    assert np.diag(correlation).min() > 0.7


def _standard(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(len(images), -1).astype(float)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def test_splits_of_canvases_differ() -> None:
    train, test = (cluttered_digits(split=s, spec=CANVAS) for s in ("train", "test"))
    assert not np.array_equal(train.images[:20], test.images)
    colour = cluttered_digits(split="test", spec=CanvasSpec(train=3, test=2, channels=3))
    assert colour.images.shape == (20, 3, 64, 64)
    assert (colour.images[:, 0] != colour.images[:, 1]).any()


def test_errors_name_the_fix() -> None:
    images = index_images(2)
    with pytest.raises(ValueError, match="do not fit images"):
        Saccades(images, spec=SaccadeSpec(fovea=41))
    with pytest.raises(ValueError, match="do not fit images"):
        Saccades(images, spec=SaccadeSpec(fovea=16, window=50))
    with pytest.raises(ValueError, match=r"go with saliency \[N, H, W\]"):
        Saccades(images, saliency=np.ones((2, 56, 40)))
    with pytest.raises(ValueError, match="2 images have as many classes"):
        Saccades(images, classes=np.zeros(3))
    with pytest.raises(ValueError, match="at least one pixel"):
        SaccadeSpec(fovea=0)
    with pytest.raises(ValueError, match="at least 28 pixels"):
        CanvasSpec(size=20)
    with pytest.raises(ValueError, match="at least one training"):
        CanvasSpec(train=0)
    crowded = Saccades(images, spec=SaccadeSpec(policy=FixationPolicy(inhibition_radius=100)))
    with pytest.raises(ValueError, match=r"only 1 do\. Take a smaller radius"):
        crowded.sample(0, steps=5, generator=np.random.default_rng(0))
