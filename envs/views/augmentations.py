"""Synthetic views of images: crops, colours and blur, with the change of their parameters as the action.

The recipe of EquiMod (arXiv 2211.01244) as seq-JEPA uses it (arXiv 2505.03176, A.2). Horizontal flips, grey images,
solarisation and the order of the colour changes are part of no action: nuisances that cannot be predicted.

Every parameter is normalised by a constant of its own, so that the action between two views depends on no other view.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from envs.episodes import ActionSpec, Episode

Kind = Literal["crop", "jitter", "blur"]
PARAMETERS: dict[Kind, tuple[str, ...]] = {
    "crop": ("top", "left", "height", "width"),
    "jitter": ("brightness", "contrast", "saturation", "hue"),
    "blur": ("sigma",),
}
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True, kw_only=True)
class AugmentationSpec:
    """How views are drawn.

    Attributes:
        size: pixels of a view.
        acted: the parameters that make the action, in the order of PARAMETERS.
        scale, ratio: area of a crop as a share of the image, uniform; width / height, log-uniform.
        flip, jitter, grey: probabilities.
        strength: of brightness, contrast, saturation (factors in 1 +- strength) and hue (turns in +-strength).
        sigma: pixels of the view; standard deviation of the blur, uniform.
        blur, solarise: probabilities for the views before the last, and for the last of an episode, which is the
            target of the prediction. To probe the changes between any two views, give equal ones.

    Raises:
        ValueError: naming what is out of range.
    """

    size: int = 32
    acted: tuple[Kind, ...] = ("crop", "jitter", "blur")
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grey: float = 0.2
    sigma: tuple[float, float] = (0.1, 2.0)
    blur: tuple[float, float] = (1.0, 0.1)
    solarise: tuple[float, float] = (0.0, 0.2)

    def __post_init__(self) -> None:
        if not self.acted or set(self.acted) - set(PARAMETERS) or len(set(self.acted)) < len(self.acted):
            raise ValueError(f"acted names some of {', '.join(PARAMETERS)}, each once, got {self.acted}")
        chances = (self.flip, self.jitter, self.grey, *self.blur, *self.solarise)
        if not all(0 <= p <= 1 for p in chances):
            raise ValueError(f"probabilities lie within 0 and 1: {self}")
        if (
            self.size < 1
            or not 0 < self.scale[0] <= self.scale[1] <= 1
            or not 0 < self.ratio[0] <= self.ratio[1]
        ):
            raise ValueError(f"a view has pixels, 0 < scale <= 1, 0 < ratio, both in order: {self}")
        if not all(0 < s <= 1 for s in self.strength[:3]) or not 0 < self.strength[3] <= 0.5:
            raise ValueError(f"strengths lie within 0 and 1, that of the hue within 0 and 0.5: {self}")
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"standard deviations of the blur are positive and in order: {self}")


@dataclass(frozen=True, kw_only=True)
class ViewParameters:
    """All that distinguishes one view from another of the same image.

    Attributes:
        crop: top, left, height, width as shares of the image.
        jitter: factors of brightness, contrast and saturation, and turns of the hue; (1, 1, 1, 0) changes nothing.
        order: of the four colour changes.
        sigma: of the blur in pixels of the view; 0 for none.
        flip, grey, solarise: whether.
    """

    crop: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    jitter: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.0)
    order: tuple[int, ...] = (0, 1, 2, 3)
    sigma: float = 0.0
    flip: bool = False
    grey: bool = False
    solarise: bool = False


class AugmentedImages:
    """Random views of images: an EpisodeSource. Observations [3, size, size] float32 in 0..1.

    The action is the difference of the normalised parameters of two views (`normalised`). Labels: class, and the
    normalised parameters of each kind, `crop` [T, 4], `jitter` [T, 4], `blur` [T, 1].

    Args:
        images: [N, 3, H, W] uint8.
        classes: [N]; none without.
        spec: of the augmentations.

    Raises:
        ValueError: if images or classes have another shape or type.
    """

    def __init__(
        self, images: np.ndarray, *, classes: np.ndarray | None = None, spec: AugmentationSpec | None = None
    ) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8:
            raise ValueError(f"images must be [N, 3, H, W] uint8, got {images.shape} {images.dtype}")
        if classes is not None and classes.shape != (len(images),):
            raise ValueError(f"{len(images)} images have as many classes, got {classes.shape}")
        self.images, self.classes, self.spec = images, classes, spec or AugmentationSpec()

    @property
    def action(self) -> ActionSpec:
        kinds = [kind for kind in PARAMETERS if kind in self.spec.acted]
        names = tuple(f"change of {name}" for kind in kinds for name in PARAMETERS[kind])
        reach = {"crop": 1.0, "jitter": 2.0, "blur": 1.0}
        edge = np.concatenate([np.full(len(PARAMETERS[kind]), reach[kind], np.float32) for kind in kinds])
        return ActionSpec(names=names, low=-edge, high=edge)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (3, self.spec.size, self.spec.size)

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Episode:
        """`steps` views of an image, the last with the target's probabilities of blur and solarisation."""
        shape = self.images.shape[2:]
        drawn = [
            draw_view(self.spec, height=shape[0], width=shape[1], last=t == steps - 1, generator=generator)
            for t in range(steps)
        ]
        parameters = [normalised(view, self.spec) for view in drawn]
        labels: dict[str, np.ndarray] = {kind: np.stack([p[kind] for p in parameters]) for kind in PARAMETERS}
        actions = np.concatenate(
            [np.diff(labels[kind], axis=0) for kind in PARAMETERS if kind in self.spec.acted], axis=1
        )
        if self.classes is not None:
            labels["class"] = self.classes[item]
        views = [augmented(self.images[item], view, size=self.spec.size) for view in drawn]
        return Episode(observations=np.stack(views), actions=actions, item=item, labels=labels)


def normalised(view: ViewParameters, spec: AugmentationSpec) -> Mapping[Kind, np.ndarray]:
    """Parameters of a view by kind, float32: crops in 0..1, colour changes in -1..1, blur in 0..1."""
    neutral = np.array([1, 1, 1, 0])
    return {
        "crop": np.array(view.crop, np.float32),
        "jitter": ((np.array(view.jitter) - neutral) / spec.strength).astype(np.float32),
        "blur": np.array([view.sigma / spec.sigma[1]], np.float32),
    }


def draw_view(
    spec: AugmentationSpec, *, height: int, width: int, last: bool, generator: np.random.Generator
) -> ViewParameters:
    """Parameters of one view of an image of height x width pixels."""
    chance = generator.random(5) < (spec.flip, spec.jitter, spec.grey, spec.blur[last], spec.solarise[last])
    flip, jitter, grey, blur, solarise = chance.tolist()
    factors = np.array([1, 1, 1, 0]) + generator.uniform(-1, 1, 4) * spec.strength
    order = generator.permutation(4)
    sigma = generator.uniform(*spec.sigma)
    top, left, rows, columns = draw_crop(spec, height=height, width=width, generator=generator)
    return ViewParameters(
        crop=(top / height, left / width, rows / height, columns / width),
        jitter=tuple(factors.tolist()) if jitter else ViewParameters.jitter,
        order=tuple(order.tolist()),
        sigma=sigma if blur else 0.0,
        flip=flip,
        grey=grey,
        solarise=solarise,
    )


def draw_crop(
    spec: AugmentationSpec, *, height: int, width: int, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels of a random crop; after ten crops that do not fit, the whole image."""
    for _ in range(10):
        area = height * width * generator.uniform(*spec.scale)
        ratio = np.exp(generator.uniform(*np.log(spec.ratio)))
        rows, columns = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 1 <= rows <= height and 1 <= columns <= width:
            top, left = generator.integers(0, height - rows + 1), generator.integers(0, width - columns + 1)
            return int(top), int(left), rows, columns
    return 0, 0, height, width


def augmented(image: np.ndarray, view: ViewParameters, *, size: int) -> np.ndarray:
    """A view [3, size, size] float32 in 0..1 of an image [3, H, W] uint8."""
    _, height, width = image.shape
    top, left, rows, columns = view.crop
    box = (left * width, top * height, (left + columns) * width, (top + rows) * height)
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    resized = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(resized, np.float32) / 255
    if view.flip:
        pixels = pixels[:, ::-1]
    changes: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
        partial(_blend, factor=view.jitter[0], towards=lambda x: np.zeros_like(x)),
        partial(_blend, factor=view.jitter[1], towards=lambda x: np.full_like(x, (x @ LUMA).mean())),
        partial(_blend, factor=view.jitter[2], towards=grey),
        partial(turned_hue, turns=view.jitter[3]),
    )
    neutral = ViewParameters.jitter
    for i in view.order:
        if view.jitter[i] != neutral[i]:
            pixels = changes[i](pixels)
    if view.grey:
        pixels = grey(pixels)
    if view.sigma > 0:
        pixels = ndimage.gaussian_filter(pixels, (view.sigma, view.sigma, 0), mode="reflect")
    if view.solarise:
        pixels = np.where(pixels >= 0.5, 1 - pixels, pixels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)


def grey(pixels: np.ndarray) -> np.ndarray:
    """Luma of pixels [..., 3] in all three channels."""
    return np.repeat((pixels @ LUMA)[..., None], 3, axis=-1)


def turned_hue(pixels: np.ndarray, *, turns: float) -> np.ndarray:
    """Pixels [..., 3] in 0..1 with the hue of HSV shifted by `turns` of the colour wheel; saturation and value stay."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    top = pixels.max(axis=-1)
    chroma = top - pixels.min(axis=-1)
    scale = np.where(chroma > 0, chroma, 1)
    sextant = np.where(
        top == red,
        (green - blue) / scale,
        np.where(top == green, (blue - red) / scale + 2, (red - green) / scale + 4),
    )
    # Each channel is a trapezoid over the wheel; they are 2 sextants apart.
    phase = (sextant[..., None] + 6 * turns + np.array([5, 3, 1])) % 6
    drop = np.clip(np.minimum(phase, 4 - phase), 0, 1)
    return (top[..., None] - chroma[..., None] * drop).astype(np.float32)


def _blend(pixels: np.ndarray, *, factor: float, towards: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """towards(pixels) at factor 0, the pixels at 1, further away beyond; kept within 0..1."""
    end = towards(pixels)
    return np.clip(end + factor * (pixels - end), 0, 1)
