"""Random masks on bird's-eye-view cells, empty and non-empty ones apart (AD-L-JEPA, docs/ad_l_jepa.md, step 2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worldmodel.distributed import gather_1d


@dataclass(frozen=True, kw_only=True)
class BEVMasks:
    """A partition of the cells of a batch of BEV grids; sets are [B, H, W] bool.

    In the paper's names: C1 visible non-empty, C0 visible empty, M1 masked non-empty, M0 masked empty. `keys` [B, H, W]
    are the uniform numbers they were drawn with.
    """

    occupied: torch.Tensor
    visible: torch.Tensor
    keys: torch.Tensor

    @property
    def visible_occupied(self) -> torch.Tensor:
        """C1."""
        return self.visible & self.occupied

    @property
    def visible_empty(self) -> torch.Tensor:
        """C0."""
        return self.visible & ~self.occupied

    @property
    def masked_occupied(self) -> torch.Tensor:
        """M1."""
        return ~self.visible & self.occupied

    @property
    def masked_empty(self) -> torch.Tensor:
        """M0."""
        return ~self.visible & ~self.occupied


def uniform_keys(seeds: Sequence[int], height: int, width: int) -> torch.Tensor:
    """One uniform number per cell, [B, H, W] float32 on the CPU, a function of each sample's seed alone."""
    keys = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed % (2**63))
        keys.append(torch.rand(height, width, generator=generator))
    return torch.stack(keys)


class RandomCells:
    """Masks a share of the non-empty cells, exact over the batch, and of the empty cells, independently.

    A non-empty cell is visible if its key is among the `int(n (1 - ratio))` smallest of all n non-empty cells of the
    batch, over all ranks: a random permutation that does not depend on how the batch is spread over processes.

    Args:
        ratio: share of cells to mask, in (0, 1).
    """

    def __init__(self, *, ratio: float = 0.5) -> None:
        if not 0.0 < ratio < 1.0:
            raise ValueError(f"the mask ratio must lie strictly between 0 and 1, got {ratio}")
        self.ratio = ratio

    def __call__(self, occupied: torch.Tensor, *, seeds: Sequence[int]) -> BEVMasks:
        """Draw the four sets.

        Args:
            occupied: [B, H, W] bool, cells that hold at least one voxel.
            seeds: one integer per sample.
        """
        batch, height, width = occupied.shape
        if len(seeds) != batch:
            raise ValueError(f"{len(seeds)} seeds for a batch of {batch}")
        keys = uniform_keys(seeds, height, width).to(occupied.device)
        everyone = gather_1d(keys[occupied])
        keep = int(len(everyone) * (1 - self.ratio))
        if len(everyone) > 1:
            keep = min(max(keep, 1), len(everyone) - 1)
        visible = torch.where(occupied, keys <= _kth_smallest(everyone, keep), keys < 1 - self.ratio)
        return BEVMasks(occupied=occupied, visible=visible, keys=keys)


def random_subset(keys: torch.Tensor, among: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` cells of `among` [B, H, W] with the smallest keys, over the batch of all ranks; bool [B, H, W]."""
    return among & (keys <= _kth_smallest(gather_1d(keys[among]), count))


def _kth_smallest(values: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th smallest of [n] values; below all of them for k = 0, above for k > n. Equal float32 keys are rare; the
    number of chosen cells is then off by the number of equal ones."""
    if k < 1:
        return values.new_tensor(-1.0)
    return values.new_tensor(2.0) if k > len(values) else values.kthvalue(k).values
