"""Predictive learning across saccades (arXiv 2505.03176): glimpses of one image, the action is the gaze's movement.

The small version: digits on cluttered 64 x 64 canvases, a fovea of 16 x 16 pixels, saliency by local contrast.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from envs.episodes import ActionSpec, Episode
from envs.views.canvases import CanvasSpec, cluttered_digits
from envs.views.saliency import FixationPolicy, local_contrast


@dataclass(frozen=True, kw_only=True)
class SaccadeSpec:
    """How images are looked at.

    Attributes:
        fovea: pixels of the square patch that is seen.
        policy: where the gaze goes.
        window: side of a random square part of each image, and of its saliency map, to which an episode keeps;
            the whole image without.

    Raises:
        ValueError: if the fovea or window is smaller than 1 pixel.
    """

    fovea: int = 16
    policy: FixationPolicy = field(default_factory=FixationPolicy)
    window: int | None = None

    def __post_init__(self) -> None:
        if self.fovea < 1 or (self.window is not None and self.window < 1):
            raise ValueError(f"the fovea and the window have at least one pixel: {self}")


class Saccades:
    """Fixations of images: an EpisodeSource. Observations [C, fovea, fovea] float32.

    The action is the difference of two fixations (row, column) / image size. Labels: class, and `fixation` [T, 2], the
    (row, column) / image size of each.

    Args:
        images: [N, C, H, W] uint8, or float32 in 0..1.
        classes: [N]; none without.
        spec: fovea and policy.
        saliency: [N, H, W] of the images; their local contrast without.

    Raises:
        ValueError: if shapes disagree, or the fovea or window exceeds the images.
    """

    def __init__(
        self,
        images: np.ndarray,
        *,
        classes: np.ndarray | None = None,
        spec: SaccadeSpec | None = None,
        saliency: np.ndarray | None = None,
    ) -> None:
        self.images, self.classes, self.spec = images, classes, spec or SaccadeSpec()
        self.saliency = local_contrast(images) if saliency is None else saliency
        if images.ndim != 4 or self.saliency.shape != (len(images), *images.shape[2:]):
            raise ValueError(
                f"images [N, C, H, W] go with saliency [N, H, W], got {images.shape} and {self.saliency.shape}"
            )
        if classes is not None and classes.shape != (len(images),):
            raise ValueError(f"{len(images)} images have as many classes, got {classes.shape}")
        extent = min(*images.shape[2:], self.spec.window or images.shape[2])
        if self.spec.fovea > extent or (self.spec.window or 1) > extent:
            raise ValueError(
                f"a fovea of {self.spec.fovea} and a window of {self.spec.window} pixels do not fit images "
                f"{images.shape}: take smaller ones"
            )

    @property
    def action(self) -> ActionSpec:
        edge = np.ones(2, np.float32)
        return ActionSpec(names=("down [image height]", "right [image width]"), low=-edge, high=edge)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (self.images.shape[1], self.spec.fovea, self.spec.fovea)

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Episode:
        """`steps` distinct fixations of an image."""
        image, saliency = self.images[item], self.saliency[item]
        if self.spec.window is not None:
            image, saliency = random_window([image, saliency], side=self.spec.window, generator=generator)
        fixations = self.spec.policy.sample(saliency, steps, generator)
        where = (fixations / saliency.shape).astype(np.float32)
        labels = {"fixation": where}
        if self.classes is not None:
            labels["class"] = self.classes[item]
        return Episode(
            observations=patches(image, fixations, side=self.spec.fovea),
            actions=np.diff(where, axis=0),
            item=item,
            labels=labels,
        )


def digit_saccades(
    *,
    split: Literal["train", "test"] = "train",
    seed: int = 0,
    canvas: CanvasSpec | None = None,
    spec: SaccadeSpec | None = None,
) -> Saccades:
    """Saccades over digits on cluttered canvases."""
    made = cluttered_digits(split=split, seed=seed, spec=canvas)
    return Saccades(made.images, classes=made.classes, spec=spec)


def random_window(
    arrays: Sequence[np.ndarray], *, side: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """The same random square window of arrays [..., H, W] of one height and width: an image and what maps it."""
    height, width = arrays[0].shape[-2:]
    top, left = generator.integers(0, height - side + 1), generator.integers(0, width - side + 1)
    return [array[..., top : top + side, left : left + side] for array in arrays]


def patches(image: np.ndarray, fixations: np.ndarray, *, side: int) -> np.ndarray:
    """Patches [k, C, side, side] float32 of an image [C, H, W] around (row, column) [k, 2].

    A patch of an even side has its centre half a pixel above and left of the fixation. The image is continued by
    reflection, so that the border cannot be told by its padding.
    """
    half = side // 2
    padded = np.pad(image, ((0, 0), (half, half), (half, half)), mode="reflect")
    cut = np.stack([padded[:, r : r + side, c : c + side] for r, c in fixations])
    return cut.astype(np.float32) / (255 if image.dtype == np.uint8 else 1)
