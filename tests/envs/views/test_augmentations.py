"""Augmentations: actions by fixed constants, every operation against a reference, probabilities of the recipe."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from envs.episodes import check_episodes
from envs.views.augmentations import (
    LUMA,
    PARAMETERS,
    AugmentationSpec,
    AugmentedImages,
    ViewParameters,
    augmented,
    draw_view,
    normalised,
    turned_hue,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 3, 24, 30), np.uint8)
SPEC = AugmentationSpec(size=16)
WIDTHS = {("crop", "jitter", "blur"): 9, ("crop",): 4, ("jitter",): 4, ("blur",): 1}


def image_of(pixels: np.ndarray) -> np.ndarray:
    """[3, H, W] bytes to [H, W, 3] in 0..1."""
    return pixels.transpose(1, 2, 0).astype(np.float32) / 255


@pytest.mark.parametrize(("acted", "width"), WIDTHS.items())
def test_source(acted: tuple, width: int) -> None:
    source = AugmentedImages(IMAGES, classes=np.arange(3), spec=replace(SPEC, acted=acted))
    check_episodes(source, steps=5)
    assert source.action.dim == width
    episode = source.sample(2, steps=4, generator=np.random.default_rng(0))
    assert episode.labels["class"] == 2
    values = np.concatenate([episode.labels[kind] for kind in PARAMETERS if kind in acted], axis=1)
    np.testing.assert_array_equal(episode.actions, np.diff(values, axis=0))
    assert 0 <= episode.observations.min() <= episode.observations.max() <= 1
    assert len({view.tobytes() for view in episode.observations}) == 4


def test_order_of_acted_is_that_of_the_parameters() -> None:
    mixed = AugmentedImages(IMAGES, spec=replace(SPEC, acted=("blur", "crop")))
    assert mixed.action.names == tuple(f"change of {n}" for n in (*PARAMETERS["crop"], *PARAMETERS["blur"]))


def test_action_of_two_views_does_not_depend_on_how_many_follow() -> None:
    source = AugmentedImages(IMAGES, spec=SPEC)
    short, long = (source.sample(1, steps=n, generator=np.random.default_rng(7)) for n in (4, 9))
    np.testing.assert_array_equal(short.actions[:2], long.actions[:2])
    np.testing.assert_array_equal(short.observations[:3], long.observations[:3])


def test_parameters_fill_their_normalised_ranges() -> None:
    generator = np.random.default_rng(0)
    views = [draw_view(SPEC, height=32, width=32, last=False, generator=generator) for _ in range(1500)]
    values = {kind: np.stack([normalised(v, SPEC)[kind] for v in views]) for kind in PARAMETERS}
    height, width = values["crop"][:, 2], values["crop"][:, 3]
    area = height * width
    assert area.min() > 0.15  # 0.2, and rounding to pixels
    np.testing.assert_allclose(area.mean(), 0.55, atol=0.05)
    assert (values["crop"][:, 0] + height).max() <= 1
    assert (values["crop"][:, 1] + width).max() <= 1
    changed = values["jitter"].any(axis=1)
    np.testing.assert_allclose(changed.mean(), 0.8, atol=0.03)
    jitter = values["jitter"][changed]
    np.testing.assert_allclose(jitter.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(jitter.var(axis=0), 1 / 3, atol=0.03)
    assert np.abs(jitter).max() <= 1
    assert values["blur"].min() >= 0.05
    assert values["blur"].max() <= 1


@pytest.mark.parametrize(("last", "blur", "solarise"), [(False, 1.0, 0.0), (True, 0.1, 0.2)])
def test_target_is_blurred_less_and_solarised_more(last: bool, blur: float, solarise: float) -> None:
    generator = np.random.default_rng(0)
    views = [draw_view(SPEC, height=32, width=32, last=last, generator=generator) for _ in range(1000)]
    for values, expected in (
        ([v.sigma > 0 for v in views], blur),
        ([v.solarise for v in views], solarise),
        ([v.flip for v in views], 0.5),
        ([v.grey for v in views], 0.2),
    ):
        np.testing.assert_allclose(np.mean(values), expected, atol=0.05)


def test_neutral_parameters_leave_the_image() -> None:
    square = IMAGES[0][:, :, :24]
    np.testing.assert_allclose(augmented(square, ViewParameters(), size=24), square / 255, atol=1e-6)
    for kind, values in normalised(ViewParameters(), SPEC).items():
        np.testing.assert_array_equal(values, [0, 0, 1, 1] if kind == "crop" else 0)


def test_crop_cuts_where_it_says_and_flip_mirrors() -> None:
    view = ViewParameters(crop=(4 / 24, 10 / 30, 12 / 24, 12 / 30))
    expected = IMAGES[1][:, 4:16, 10:22] / 255
    np.testing.assert_allclose(augmented(IMAGES[1], view, size=12), expected, atol=1e-6)
    flipped = augmented(IMAGES[1], replace(view, flip=True), size=12)
    np.testing.assert_allclose(flipped, expected[:, :, ::-1], atol=1e-6)


@pytest.mark.parametrize("which", range(4))
def test_colour_changes_follow_their_definition(which: int) -> None:
    square = IMAGES[2][:, :, :24]
    pixels, factors = image_of(square), [1.0, 1.0, 1.0, 0.0]
    factors[which] = 0.08 if which == 3 else 1.35
    luma = pixels @ LUMA
    if which == 0:
        expected = pixels * 1.35
    elif which == 1:
        expected = 1.35 * pixels - 0.35 * luma.mean()
    elif which == 2:
        expected = 1.35 * pixels - 0.35 * luma[..., None]
    else:
        expected = np.array([_hue_by_library(p, 0.08) for p in pixels.reshape(-1, 3)]).reshape(pixels.shape)
    view = ViewParameters(jitter=(factors[0], factors[1], factors[2], factors[3]))
    found = augmented(square, view, size=24).transpose(1, 2, 0)
    np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=1e-5)


def _hue_by_library(pixel: np.ndarray, turns: float) -> tuple[float, float, float]:
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel.tolist())
    return colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.0, 0.3, 1.0])
def test_hue_equals_colorsys(turns: float) -> None:
    pixels = np.random.default_rng(1).random((200, 3), np.float32)
    pixels[:20] = pixels[:20, :1]  # greys have no hue
    pixels[20:30, 1] = pixels[20:30, 0]  # ties
    expected = [_hue_by_library(pixel, turns) for pixel in pixels]
    np.testing.assert_allclose(turned_hue(pixels, turns=turns), expected, atol=1e-5)


def test_order_of_the_colour_changes_is_kept() -> None:
    square = IMAGES[0][:, :, :24]
    jitter = (1.4, 0.6, 1.0, 0.0)
    first, second = (
        augmented(square, ViewParameters(jitter=jitter, order=order), size=24)
        for order in ((0, 1, 2, 3), (1, 0, 2, 3))
    )
    assert np.abs(first - second).max() > 0.01


def test_grey_blur_and_solarise() -> None:
    square = IMAGES[0][:, :, :24]
    pixels = image_of(square)
    grey = augmented(square, ViewParameters(grey=True), size=24)
    np.testing.assert_allclose(grey, np.repeat((pixels @ LUMA)[None], 3, axis=0), atol=1e-6)
    blurred = augmented(square, ViewParameters(sigma=1.5), size=24)
    for channel in range(3):
        np.testing.assert_allclose(
            blurred[channel], ndimage.gaussian_filter(pixels[..., channel], 1.5), atol=1e-6
        )
    solarised = augmented(square, ViewParameters(solarise=True), size=24)
    np.testing.assert_allclose(solarised, np.minimum(square / 255, 1 - square / 255), atol=1e-6)


def test_errors_name_the_fix() -> None:
    for wrong, message in {
        ("acted", ()): "acted names some of crop, jitter, blur",
        ("acted", ("crop", "crop")): "each once",
        ("acted", ("hue",)): "acted names some of",
        ("flip", 1.5): "probabilities",
        ("blur", (1.0, -0.1)): "probabilities",
        ("size", 0): "a view has pixels",
        ("scale", (0.5, 0.2)): "0 < scale",
        ("ratio", (0.0, 1.0)): "0 < ratio",
        ("strength", (0.4, 0.4, 0.0, 0.1)): "strengths",
        ("strength", (0.4, 0.4, 0.2, 0.6)): "hue",
        ("sigma", (0.0, 2.0)): "standard deviations",
    }.items():
        with pytest.raises(ValueError, match=message):
            AugmentationSpec(**dict([wrong]))
    with pytest.raises(ValueError, match=r"\[N, 3, H, W\] uint8"):
        AugmentedImages(IMAGES.astype(np.float32))
    with pytest.raises(ValueError, match=r"\[N, 3, H, W\] uint8"):
        AugmentedImages(IMAGES[:, :1])
    with pytest.raises(ValueError, match="3 images have as many classes"):
        AugmentedImages(IMAGES, classes=np.zeros(2))


def test_crops_that_never_fit_leave_the_whole_image() -> None:
    wide = replace(SPEC, scale=(1.0, 1.0), ratio=(4.0, 4.0))
    view = draw_view(wide, height=20, width=20, last=False, generator=np.random.default_rng(0))
    assert view.crop == (0, 0, 1, 1)
