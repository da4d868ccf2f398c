"""Saliency maps and fixations: nothing transposed, discs of the right area, the ablations do what they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.views.saliency import POLICIES, FixationPolicy, disc, local_contrast


def test_saliency_peaks_on_a_spot_and_not_on_its_transpose() -> None:
    image = np.zeros((1, 2, 40, 60), np.float32)
    image[0, :, 8, 50] = 1
    saliency = local_contrast(image)[0]
    assert np.unravel_index(saliency.argmax(), saliency.shape) == (8, 50)
    assert np.isclose(saliency.sum(), 1)


def test_saliency_is_the_difference_of_two_gaussians() -> None:
    image = np.zeros((1, 1, 81, 81), np.float32)
    image[0, 0, 40, 40] = 1
    row, column = np.mgrid[-40:41, -40:41]
    square = row**2 + column**2

    def gaussian(sigma: float) -> np.ndarray:
        return np.exp(-square / (2 * sigma**2)) / (2 * np.pi * sigma**2)

    expected = np.abs(gaussian(2) - gaussian(5))
    found = local_contrast(image, centre=2, surround=5)[0]
    np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-5)


def test_saliency_of_bytes_and_constant_images() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), np.uint8)
    np.testing.assert_allclose(
        local_contrast(image), local_contrast(image.astype(np.float32) / 255), rtol=1e-5
    )
    constant = local_contrast(np.full((1, 1, 12, 9), 0.7, np.float32))
    np.testing.assert_allclose(constant, 1 / 108, rtol=1e-5)


@pytest.mark.parametrize(("radius", "pixels"), [(0, 1), (1, 5), (8, 197), (16, 797)])
def test_inhibited_area_is_the_discs(radius: int, pixels: int) -> None:
    mask = disc(height=64, width=80, centre=(30, 40), radius=radius)
    assert mask.sum() == pixels  # lattice points within the circle; a square of radius 16 has 1089
    np.testing.assert_array_equal(mask[30 - radius : 31 + radius], mask[30 - radius : 31 + radius][::-1])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 12), st.integers(1, 4))
def test_gaze_does_not_return(seed: int, radius: float, k: int) -> None:
    generator = np.random.default_rng(seed)
    saliency = generator.random((40, 70)) ** 4
    chosen = FixationPolicy(inhibition_radius=radius).sample(saliency, k, generator)
    assert chosen.shape == (k, 2)
    assert (chosen >= 0).all()
    assert (chosen < (40, 70)).all()
    distance = np.linalg.norm(chosen[:, None] - chosen, axis=-1)
    assert (distance[~np.eye(k, dtype=bool)] > radius).all()


def test_fixations_follow_the_map() -> None:
    saliency = np.zeros((30, 100))
    saliency[25, 7], saliency[3, 90] = 3, 1
    policy = FixationPolicy(inhibition_radius=0)
    first = [policy.sample(saliency, 2, np.random.default_rng(i)) for i in range(300)]
    assert {tuple(pair[0]) for pair in first} == {(25, 7), (3, 90)}
    assert all({tuple(p) for p in pair} == {(25, 7), (3, 90)} for pair in first)
    share = np.mean([tuple(pair[0]) == (25, 7) for pair in first])
    assert abs(share - 0.75) < 0.08


def test_policies_of_the_ablation() -> None:
    saliency = np.full((32, 32), 1e-9)
    saliency[:16] = 1
    drawn = {
        name: np.stack([p.sample(saliency, 4, np.random.default_rng(i)) for i in range(100)])
        for name, p in POLICIES.items()
    }
    assert list(drawn) == ["uniform", "saliency", "saliency_ior"]
    below = {name: (points[..., 0] >= 16).mean() for name, points in drawn.items()}
    assert abs(below["uniform"] - 0.5) < 0.08
    assert below["saliency"] < 0.01
    nearest = {
        name: np.min([np.linalg.norm(f[:, i] - f[:, j], axis=1) for i in range(4) for j in range(i)])
        for name, f in drawn.items()
    }
    assert nearest["saliency"] < 3
    assert nearest["saliency_ior"] > 8


def test_used_up_saliency_falls_back_to_the_rest_of_the_image() -> None:
    saliency = np.zeros((20, 20))
    saliency[10, 10] = 1
    chosen = FixationPolicy(inhibition_radius=3).sample(saliency, 3, np.random.default_rng(0))
    assert tuple(chosen[0]) == (10, 10)
    assert len(set(map(tuple, chosen.tolist()))) == 3


def test_errors_name_the_fix() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"2 fixations .* only 1 do\. Take a smaller radius"):
        FixationPolicy(inhibition_radius=50).sample(np.ones((8, 8)), 2, generator)
    with pytest.raises(ValueError, match="must not be negative"):
        FixationPolicy(inhibition_radius=-1)
    for wrong in (np.ones((2, 3, 4)), np.full((3, 3), np.nan), -np.ones((3, 3))):
        with pytest.raises(ValueError, match=r"a saliency map is \[H, W\]"):
            FixationPolicy().sample(wrong, 1, generator)
    with pytest.raises(ValueError, match=r"images must be \[N, C, H, W\]"):
        local_contrast(np.ones((4, 4)))
    with pytest.raises(ValueError, match="narrower than the surround"):
        local_contrast(np.ones((1, 1, 4, 4)), centre=4, surround=1)
    with pytest.raises(ValueError, match="NaN"):
        local_contrast(np.full((1, 1, 4, 4), np.nan))
