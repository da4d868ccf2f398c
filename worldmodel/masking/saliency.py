"""Salient regions of a map, most salient first, the rest of the map last (DSeq-JEPA, arXiv 2511.17354).

The map may be any number per cell: the similarity of an image's [CLS] token with its patches, or the feature norm or
point density of bird's-eye-view cells.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import ndimage

Array = np.ndarray
BINS = 256


@dataclass(frozen=True, kw_only=True)
class Regions:
    """Disjoint regions of the cells of a batch of maps, by rank; the last one is the background.

    Attributes:
        masks: [B, N, H, W] bool; empty where a region is missing.
        valid: [B, N] bool, false where a region is missing. Foreground regions fill the front.
        scores: [B, N] float32, mean saliency of each region after scaling the map to 0..1; 0 where missing.
    """

    masks: torch.Tensor
    valid: torch.Tensor
    scores: torch.Tensor

    @property
    def counts(self) -> torch.Tensor:
        """Number of foreground regions of each map, [B] int64."""
        return self.valid[:, :-1].sum(1)

    def histogram(self) -> torch.Tensor:
        """How many maps have 0, 1, ..., N - 1 foreground regions: [N] int64."""
        return torch.bincount(self.counts, minlength=self.valid.shape[1])


@dataclass(frozen=True, kw_only=True)
class SaliencyRegions:
    """Otsu's threshold, connected components, small ones dropped, ranked by mean saliency.

    The n - 1 best components are regions 1 to n - 1; everything else, dropped components included, is region n. At the
    paper's alpha most images have one foreground region, so n is rarely reached.

    Args:
        n: number of regions with the background; 5 in the paper.
        alpha: smallest area of a component, as a share of the (occupied) cells.
        connectivity: neighbours of a cell, 4 or 8.
    """

    n: int = 5
    alpha: float = 0.15
    connectivity: Literal[4, 8] = 8

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ValueError(
                f"regions are at least one and the background: n must be 2 or more, got {self.n}"
            )
        if not 0.0 <= self.alpha < 1.0:
            raise ValueError(f"alpha is a share of the cells in [0, 1), got {self.alpha}")
        if self.connectivity not in (4, 8):
            raise ValueError(f"connectivity is 4 or 8, got {self.connectivity}")

    def __call__(self, saliency: torch.Tensor, *, occupied: torch.Tensor | None = None) -> Regions:
        """Regions of a batch of maps.

        Args:
            saliency: [B, H, W] float, of any scale.
            occupied: [B, H, W] bool, cells that count: no region holds another. All without.

        Raises:
            ValueError: if shapes do not fit or an occupied cell is not finite.
        """
        if saliency.ndim != 3 or (occupied is not None and occupied.shape != saliency.shape):
            raise ValueError(
                f"expected saliency and occupied [B, H, W], got {tuple(saliency.shape)} and "
                f"{None if occupied is None else tuple(occupied.shape)}"
            )
        values = saliency.detach().cpu().double().numpy()
        cells = np.ones(values.shape, dtype=bool) if occupied is None else occupied.cpu().numpy().astype(bool)
        if not np.isfinite(values[cells]).all():
            raise ValueError("the saliency map is not finite: look at the encoder it comes from")
        masks = np.zeros((len(values), self.n, *values.shape[1:]), dtype=bool)
        scores = np.zeros((len(values), self.n), dtype=np.float32)
        for i in range(len(values)):
            scaled = min_max(values[i], cells[i])
            for rank, region in enumerate(self._foreground(scaled, cells[i])):
                masks[i, rank] = region
            masks[i, -1] = cells[i] & ~masks[i].any(0)
            for rank, region in enumerate(masks[i]):
                scores[i, rank] = scaled[region].mean() if region.any() else 0.0
        found = torch.from_numpy(masks).to(saliency.device)
        return Regions(
            masks=found, valid=found.flatten(2).any(2), scores=torch.from_numpy(scores).to(saliency.device)
        )

    def _foreground(self, scaled: Array, cells: Array) -> list[Array]:
        """Components that pass, best first; equal scores in reading order of their first cell."""
        threshold = otsu(bin_counts(scaled[cells]))
        above = cells & (bin_of(scaled) > threshold)
        structure = ndimage.generate_binary_structure(2, 2 if self.connectivity == 8 else 1)
        labels, count = ndimage.label(above, structure)
        components = [labels == label for label in range(1, count + 1)]
        large = [c for c in components if c.sum() >= self.alpha * cells.sum()]
        return sorted(large, key=lambda c: -scaled[c].mean())[: self.n - 1]


def min_max(values: Array, cells: Array) -> Array:
    """values [H, W] scaled to 0..1 over `cells` [H, W] bool, 0 elsewhere; all 0 if they are constant."""
    inside = values[cells]
    low, span = (inside.min(), np.ptp(inside)) if inside.size else (0.0, 0.0)
    if not span > 0:
        return np.zeros_like(values)
    return np.where(cells, (np.where(cells, values, low) - low) / span, 0.0)


def bin_of(scaled: Array) -> Array:
    """Bin 0..255 of values in 0..1."""
    return np.minimum((scaled * BINS).astype(np.int64), BINS - 1)


def bin_counts(scaled: Array) -> Array:
    """Histogram [256] of values [K] in 0..1."""
    return np.bincount(bin_of(scaled), minlength=BINS)


def otsu(counts: Array) -> int:
    """Bin t that maximises the between-class variance of bins <= t and > t (Otsu 1979, eq. 18); the first of several.

    The last bin, so that nothing lies above, if there are not two classes.

    Args:
        counts: [bins] histogram.
    """
    below, total = np.cumsum(counts), counts.sum()
    moment = np.cumsum(counts * np.arange(len(counts)))
    two_classes = (below > 0) & (below < total)
    if not two_classes.any():
        return len(counts) - 1
    # (mean of all * below - moment)^2 / (below * above), times total^2 throughout: whole numbers until the division.
    numerator = (moment[-1] * below - moment * total).astype(np.float64) ** 2
    variance = numerator / np.where(two_classes, below * (total - below), 1)
    return int(np.argmax(np.where(two_classes, variance, -1.0)))
