"""Handwritten digits pasted on cluttered canvases: real strokes in images one can look around in, crop and recolour."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from envs.views.digits import SIDE, digits_of, mnist_digits

FRAGMENT = 8  # pixels of a piece of clutter


@dataclass(frozen=True, kw_only=True)
class CanvasSpec:
    """How canvases are made.

    Attributes:
        size: pixels of the square canvas.
        channels: 1 grey or 3 colours.
        fragments: pieces of other digits of the same split, 8 x 8 pixels each.
        train, test: digits per class on each side of the split.

    Raises:
        ValueError: if a digit does not fit, or a number is out of range.
    """

    size: int = 64
    channels: Literal[1, 3] = 1
    fragments: int = 6
    train: int = 400
    test: int = 100

    def __post_init__(self) -> None:
        if self.size < SIDE or self.channels not in (1, 3) or self.fragments < 0:
            raise ValueError(
                f"a canvas has at least {SIDE} pixels, 1 or 3 channels and 0 or more fragments: {self}"
            )
        if min(self.train, self.test) < 1:
            raise ValueError(f"at least one training and one test digit per class: {self}")


@dataclass(frozen=True, kw_only=True)
class Canvases:
    """Images [N, C, S, S] uint8, classes [N], and the (row, column) of each digit's centre [N, 2]."""

    images: np.ndarray
    classes: np.ndarray
    centres: np.ndarray


def cluttered_digits(
    *, split: Literal["train", "test"] = "train", seed: int = 0, spec: CanvasSpec | None = None
) -> Canvases:
    """Each digit of a split once, at a random place on a smooth random background with clutter.

    Ink is brighter than any background; its colour, like the background's, says nothing about the class.
    """
    spec = spec or CanvasSpec()
    generator = np.random.default_rng((seed, 0xCA, split == "test"))
    digits, classes = mnist_digits()
    chosen = digits_of(split, seed=seed, train=spec.train, test=spec.test)
    count, size, channels = len(chosen), spec.size, spec.channels
    canvas = _backgrounds(count, size, channels, generator)
    places = generator.integers(0, size - SIDE + 1, (count, 2))
    pieces = (count, spec.fragments)
    others = generator.choice(chosen, pieces)
    cuts = generator.integers(0, SIDE - FRAGMENT + 1, (*pieces, 2))
    drops = generator.integers(0, size - FRAGMENT + 1, (*pieces, 2))
    colours = generator.uniform(0.6, 1, (count, spec.fragments + 1, channels)).astype(np.float32)
    for i in range(count):
        for k in range(spec.fragments):
            piece = _window(digits[others[i, k]], cuts[i, k], FRAGMENT)
            _paste(_window(canvas[i], drops[i, k], FRAGMENT), piece, colours[i, k])
        _paste(_window(canvas[i], places[i], SIDE), digits[chosen[i]], colours[i, -1])
    return Canvases(
        images=np.rint(255 * canvas).astype(np.uint8),
        classes=classes[chosen],
        centres=places + (SIDE - 1) / 2,
    )


def _backgrounds(count: int, size: int, channels: int, generator: np.random.Generator) -> np.ndarray:
    """[N, C, S, S] float32 in 0..0.5: a colour per canvas and linearly interpolated noise on a 6 x 6 grid."""
    cells = 6
    position = np.linspace(0, cells - 1, size)[:, None]
    weights = np.maximum(0, 1 - np.abs(position - np.arange(cells)))
    noise = generator.uniform(-0.12, 0.12, (count, channels, cells, cells))
    base = generator.uniform(0, 0.5, (count, channels, 1, 1))
    return np.clip(base + weights @ noise @ weights.T, 0, 0.5).astype(np.float32)


def _window(image: np.ndarray, corner: np.ndarray, side: int) -> np.ndarray:
    top, left = corner.tolist()
    return image[..., top : top + side, left : left + side]


def _paste(under: np.ndarray, ink: np.ndarray, colour: np.ndarray) -> None:
    """Draw ink [H, W] uint8 in a colour [C] over part of a canvas [C, H, W]."""
    under += ink * np.float32(1 / 255) * (colour[:, None, None] - under)
