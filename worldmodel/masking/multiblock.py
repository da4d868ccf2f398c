"""Random rectangles to predict from the rest (I-JEPA, arXiv 2301.08243, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from worldmodel.masking.target_sequence import TargetSequence, check_sampling

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class MultiBlock:
    """Some target rectangles, and as the context one large rectangle less the targets.

    Every map has its own sizes and places, a function of its seed; nothing is cut to the smallest of the batch.

    Args:
        targets: number of target rectangles; they may overlap.
        target_scale: their area as a share of the map, from and to.
        target_aspect: height over width, from and to.
        context_scale: area of the context rectangle, a square where it fits.
        min_context: cells the context must keep; drawn again, up to 20 times, until it does.
    """

    targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    min_context: int = 4

    def __post_init__(self) -> None:
        for name in ("target_scale", "context_scale", "target_aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name != "target_aspect" and high > 1):
                raise ValueError(
                    f"{name} must be positive and in order, a scale at most 1, got {(low, high)}"
                )
        if self.targets < 1 or self.min_context < 1:
            raise ValueError(
                f"targets and min_context must be at least 1, got {self.targets} and {self.min_context}"
            )

    def __call__(self, occupied: torch.Tensor, *, seeds: Sequence[int]) -> TargetSequence:
        """Draw the tasks of a batch; only occupied cells [B, H, W] bool are context or target."""
        check_sampling(occupied, seeds)
        batch, height, width = occupied.shape
        cells = occupied.cpu().numpy()
        context = np.zeros((batch, height, width), dtype=bool)
        targets = np.zeros((batch, self.targets, height, width), dtype=bool)
        for i, seed in enumerate(seeds):
            context[i], targets[i] = self._draw(cells[i], np.random.default_rng(seed % 2**63))
        return TargetSequence.of_blocks(
            context=torch.from_numpy(context).to(occupied.device),
            targets=torch.from_numpy(targets).to(occupied.device),
        )

    def rectangle(self, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
        """One target rectangle, [H, W] bool."""
        return random_rectangle(
            shape, scale=self.target_scale, aspect=self.target_aspect, generator=generator
        )

    def _draw(self, cells: Array, generator: np.random.Generator) -> tuple[Array, Array]:
        """Context and targets of one map; the context with most cells if none has enough."""
        best: tuple[Array, Array] | None = None
        for _ in range(20):
            targets = np.stack([self.rectangle(cells.shape, generator) for _ in range(self.targets)])
            large = random_rectangle(
                cells.shape, scale=self.context_scale, aspect=(1, 1), generator=generator
            )
            context = large & cells & ~targets.any(0)
            if best is None or context.sum() > best[0].sum():
                best = context, targets & cells
            if context.sum() >= self.min_context:
                break
        assert best is not None
        return best


def random_rectangle(
    shape: tuple[int, ...],
    *,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    generator: np.random.Generator,
) -> Array:
    """A rectangle of uniform area and aspect ratio at a uniform place, cut to the map's sides: [H, W] bool.

    Args:
        shape: (H, W) of the map.
        scale: area as a share of the map, from and to.
        aspect: height over width, from and to.
    """
    area, ratio = generator.uniform(*scale) * shape[0] * shape[1], generator.uniform(*aspect)
    sides = (round((area * ratio) ** 0.5), round((area / ratio) ** 0.5))
    height, width = (min(max(side, 1), limit) for side, limit in zip(sides, shape, strict=True))
    top, left = generator.integers(shape[0] - height + 1), generator.integers(shape[1] - width + 1)
    mask = np.zeros(shape, dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask
