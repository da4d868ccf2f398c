"""What a predictor is asked for step by step, and which context each step may use."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class TargetSequence:
    """S prediction tasks on the cells of each map: step s (from 0) predicts targets[:, s] from context(s).

    Attributes:
        rank: [B, H, W] int64: the context of step s are the cells of rank 0 to s; -1 is context of none.
        targets: [B, S, H, W] bool.
        valid: [B, S] bool; a step that is not valid has no weight in any loss.
    """

    rank: torch.Tensor
    targets: torch.Tensor
    valid: torch.Tensor

    @classmethod
    def of_regions(cls, masks: torch.Tensor) -> "TargetSequence":
        """Region s + 1 from regions 0 to s: all steps of disjoint regions [B, N, H, W] bool, first come first.

        The last region is never context. Steps without a target or without a context are not valid.
        """
        count = masks.shape[1]
        order = torch.arange(count - 1, device=masks.device).view(1, -1, 1, 1)
        rank = torch.where(masks[:, :-1], order, -1).amax(1)
        return cls(rank=rank, targets=masks[:, 1:], valid=_solvable(rank, masks[:, 1:]))

    @classmethod
    def of_blocks(cls, *, context: torch.Tensor, targets: torch.Tensor) -> "TargetSequence":
        """Each target [B, S, H, W] bool from the same context [B, H, W] bool, as in I-JEPA; targets may overlap."""
        rank = context.long() - 1
        return cls(rank=rank, targets=targets, valid=_solvable(rank, targets))

    def context(self, step: int) -> torch.Tensor:
        """Cells that step `step` may use, [B, H, W] bool."""
        return (self.rank >= 0) & (self.rank <= step)

    def where(self, rows: torch.Tensor, other: "TargetSequence") -> "TargetSequence":
        """These tasks in the rows [B] bool, those of `other` in the rest; missing steps are not valid."""
        steps = max(self.valid.shape[1], other.valid.shape[1])
        mine, its = _padded(self, steps), _padded(other, steps)
        return TargetSequence(
            rank=torch.where(rows.view(-1, 1, 1), mine.rank, its.rank),
            targets=torch.where(rows.view(-1, 1, 1, 1), mine.targets, its.targets),
            valid=torch.where(rows.view(-1, 1), mine.valid, its.valid),
        )

    def queries(self) -> torch.Tensor:
        """Cells to predict, [B, S * H * W] bool: the targets of valid steps, step by step, row by row."""
        return (self.targets & self.valid[:, :, None, None]).flatten(1)


def _solvable(rank: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    lowest = torch.where(rank >= 0, rank, targets.shape[1]).flatten(1).amin(1, keepdim=True)
    return targets.flatten(2).any(2) & (lowest <= torch.arange(targets.shape[1], device=rank.device))


def _padded(sequence: TargetSequence, steps: int) -> TargetSequence:
    missing = steps - sequence.valid.shape[1]
    return TargetSequence(
        rank=sequence.rank,
        targets=torch.nn.functional.pad(sequence.targets, (0, 0, 0, 0, 0, missing)),
        valid=torch.nn.functional.pad(sequence.valid, (0, missing)),
    )


def check_sampling(occupied: torch.Tensor, seeds: Sequence[int]) -> None:
    """What every sampler of sequences asks of its input.

    Raises:
        ValueError: if `occupied` is not [B, H, W] bool or there is not one seed per map.
    """
    if occupied.ndim != 3 or occupied.dtype != torch.bool:
        raise ValueError(f"occupied must be [B, H, W] bool, got {tuple(occupied.shape)} {occupied.dtype}")
    if len(seeds) != len(occupied):
        raise ValueError(f"{len(seeds)} seeds for a batch of {len(occupied)}")
