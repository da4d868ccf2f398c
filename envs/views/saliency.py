"""Where to look: a saliency map by local contrast, and fixations drawn from it with inhibition of return."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage


def local_contrast(images: np.ndarray, *, centre: float = 1.0, surround: float = 4.0) -> np.ndarray:
    """Saliency [N, H, W] float32, each map summing to 1, of images [N, C, H, W].

    |difference of Gaussians| of these standard deviations in pixels, summed over channels (Itti, Koch and Niebur 1998:
    centre-surround contrast). A constant image gets a constant map. Borders are reflected.

    Raises:
        ValueError: if the images are not [N, C, H, W], hold NaN, or the widths are out of order.
    """
    if images.ndim != 4:
        raise ValueError(f"images must be [N, C, H, W], got {images.shape}")
    if not 0 < centre < surround:
        raise ValueError(f"the centre {centre} must be narrower than the surround {surround}")
    scaled = images.astype(np.float32) / (255 if images.dtype == np.uint8 else 1)
    if not np.isfinite(scaled).all():
        raise ValueError("an image holds NaN or infinite numbers")
    inner, outer = (ndimage.gaussian_filter(scaled, (0, 0, s, s), mode="reflect") for s in (centre, surround))
    contrast = np.abs(inner - outer).sum(axis=1)
    contrast[contrast < 1e-6] = 0  # rounding
    contrast[~contrast.any(axis=(1, 2))] = 1
    return contrast / contrast.sum(axis=(1, 2), keepdims=True)


def disc(*, height: int, width: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    """Pixels [H, W] whose (row, column) lies within `radius` of `centre`."""
    row, column = np.arange(height)[:, None] - centre[0], np.arange(width) - centre[1]
    return row**2 + column**2 <= radius**2


@dataclass(frozen=True, kw_only=True)
class FixationPolicy:
    """Draws fixations one after another from a saliency map (arXiv 2505.03176, 4.2 and A.1).

    Attributes:
        use_saliency: False draws uniformly over the image instead.
        inhibition_radius: pixels around a fixation to which the gaze does not return. 0 inhibits that pixel alone, so
            that fixations of one image are always distinct.

    Raises:
        ValueError: if the radius is negative.
    """

    use_saliency: bool = True
    inhibition_radius: float = 8.0

    def __post_init__(self) -> None:
        if not self.inhibition_radius >= 0:
            raise ValueError(f"the inhibition radius must not be negative, got {self.inhibition_radius}")

    def sample(self, saliency: np.ndarray, k: int, generator: np.random.Generator) -> np.ndarray:
        """(row, column) of k fixations [k, 2] int64, from a map [H, W] of non-negative numbers.

        Where the salient pixels are used up, the rest of the image is drawn from uniformly.

        Raises:
            ValueError: if the map is no such map, or all of it is inhibited before k fixations are drawn.
        """
        if saliency.ndim != 2 or not np.isfinite(saliency).all() or (saliency < 0).any():
            raise ValueError(f"a saliency map is [H, W], finite and not negative, got shape {saliency.shape}")
        shape = saliency.shape
        weight = saliency.astype(np.float64) if self.use_saliency else np.ones(shape)
        free = np.ones(shape, bool)
        fixations = np.empty((k, 2), np.int64)
        for i in range(k):
            # Generator.choice checks its probabilities at every call, which takes most of the time of a sample.
            total = (weight * free).cumsum()
            if not total[-1] > 0:
                total = free.cumsum().astype(np.float64)
            if not total[-1] > 0:
                raise ValueError(
                    f"{k} fixations with an inhibition radius of {self.inhibition_radius} pixels do not fit into "
                    f"{shape[0]} x {shape[1]} pixels: only {i} do. Take a smaller radius"
                )
            chosen = np.searchsorted(total, generator.random() * total[-1], side="right")
            fixations[i] = row, column = divmod(int(chosen), shape[1])
            free &= ~disc(
                height=shape[0], width=shape[1], centre=(row, column), radius=self.inhibition_radius
            )
        return fixations


# The three sampling schemes that the paper compares (its Table 3).
POLICIES = {
    "uniform": FixationPolicy(use_saliency=False, inhibition_radius=0),
    "saliency": FixationPolicy(inhibition_radius=0),
    "saliency_ior": FixationPolicy(),
}
