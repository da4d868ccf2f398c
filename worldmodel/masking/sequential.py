"""Salient regions predicted one after another, most salient first (DSeq-JEPA, arXiv 2511.17354).

Region k + 1 is predicted from regions 1 to k; region 1 is never a target, the background never context. A curriculum
mixes this with the random rectangles of I-JEPA.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from worldmodel.masking.multiblock import MultiBlock
from worldmodel.masking.saliency import SaliencyRegions
from worldmodel.masking.target_sequence import TargetSequence, check_sampling


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """How often the salient regions are used: with probability lambda, which rises linearly from 0 to 1.

    The paper's algorithm throws a coin per region, its text speaks of samples and its code of optimiser steps:

    - "region": each of the n - 1 foreground regions is kept, or replaced by a random rectangle in its place in the
      order; a rectangle leaves cells to the regions before it and takes them from those after it.
    - "sample": each map gets the salient regions or the multi-block targets of I-JEPA.
    - "step": the whole batch does, on all ranks alike.

    Args:
        unit: what one coin decides.
        steps: optimiser steps until lambda is 1.
        seed: of the coins of "step"; the others are drawn from each sample's seed and the step.
    """

    unit: Literal["region", "sample", "step"] = "region"
    steps: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.unit not in ("region", "sample", "step"):
            raise ValueError(f"the unit of the curriculum is region, sample or step, got {self.unit!r}")
        if self.steps < 1:
            raise ValueError(f"the curriculum takes at least 1 step, got {self.steps}")

    def share(self, step: int) -> float:
        """Lambda at an optimiser step, counted from 0."""
        return min(step / self.steps, 1.0)

    def coins(self, step: int, *, seeds: Sequence[int], count: int) -> np.ndarray:
        """[B, count] bool, true with probability lambda: independent within the unit's reach, equal beyond it."""
        shape = (count,) if self.unit == "region" else (1,)
        if self.unit == "step":
            drawn = np.random.default_rng((self.seed, step)).random((1, 1)).repeat(len(seeds), 0)
        else:
            rows = [np.random.default_rng((s % 2**63, step, COINS)).random(shape) for s in seeds]
            drawn = np.stack(rows) if rows else np.zeros((0, *shape))
        return np.broadcast_to(drawn < self.share(step), (len(seeds), count))


COINS, RECTANGLES = 1, 2  # streams of random numbers of a sample


@dataclass(frozen=True, kw_only=True)
class SequentialRegions:
    """Mask sampler: salient regions in order, or random rectangles where there is none or the curriculum says so.

    Args:
        regions: finds and ranks the regions.
        blocks: I-JEPA's sampler, for maps without any foreground region and for the curriculum.
        curriculum: without, salient regions are always used.
    """

    regions: SaliencyRegions = field(default_factory=SaliencyRegions)
    blocks: MultiBlock = field(default_factory=MultiBlock)
    curriculum: Curriculum | None = None

    def __call__(
        self,
        occupied: torch.Tensor,
        *,
        seeds: Sequence[int],
        saliency: torch.Tensor | None = None,
        step: int = 0,
    ) -> TargetSequence:
        """Draw the tasks of a batch.

        Args:
            occupied: [B, H, W] bool, cells that count: patches of an image (all), non-empty bird's-eye-view cells.
            seeds: one integer per map.
            saliency: [B, H, W] float; without, the targets are I-JEPA's.
            step: optimiser step from 0, for the curriculum.
        """
        check_sampling(occupied, seeds)
        blocks = self.blocks(occupied, seeds=seeds)
        if saliency is None:
            return blocks
        masks = self.regions(saliency, occupied=occupied).masks
        salient = np.ones((len(masks), self.regions.n - 1), dtype=bool)
        if self.curriculum is not None:
            salient = self.curriculum.coins(step, seeds=seeds, count=self.regions.n - 1)
            if self.curriculum.unit == "region":
                masks = self._with_rectangles(masks, occupied, salient=salient, seeds=seeds, step=step)
                salient = np.ones_like(salient)
        sequence = TargetSequence.of_regions(masks)
        rows = torch.from_numpy(salient[:, 0].copy()).to(occupied.device) & sequence.valid.any(1)
        return sequence.where(rows, blocks)

    def _with_rectangles(
        self,
        masks: torch.Tensor,
        occupied: torch.Tensor,
        *,
        salient: np.ndarray,
        seeds: Sequence[int],
        step: int,
    ) -> torch.Tensor:
        """Regions [B, N, H, W] with a rectangle in the place of each that is not `salient` [B, N - 1]."""
        mixed = masks.cpu().numpy().copy()
        free = occupied.cpu().numpy().copy()
        for row, seed in enumerate(seeds):
            generator = np.random.default_rng((seed % 2**63, step, RECTANGLES))
            for rank, keep in enumerate(salient[row]):
                if not keep:
                    mixed[row, rank] = self.blocks.rectangle(free.shape[1:], generator)
                mixed[row, rank] &= free[row]
                free[row] &= ~mixed[row, rank]
            mixed[row, -1] = free[row]
        return torch.from_numpy(mixed).to(masks.device)
