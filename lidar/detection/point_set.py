"""Positions of a batch of clouds: what neighbours are sought among."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class PointSet:
    """Positions of a batch, concatenated: raw points, voxel centres, keypoints or grid points.

    Attributes:
        xyz: [P, 3] float, metres.
        sample: [P] int64, non-decreasing: which sample a position belongs to.
        batch_size: number of samples, empty ones included.

    Raises:
        ValueError: if the shapes do not fit, or the samples are out of order.
    """

    xyz: torch.Tensor
    sample: torch.Tensor
    batch_size: int

    def __post_init__(self) -> None:
        if self.xyz.ndim != 2 or self.xyz.shape[1] != 3 or self.sample.shape != self.xyz.shape[:1]:
            raise ValueError(
                f"positions must be [P, 3] with a sample each, got {tuple(self.xyz.shape)} and "
                f"{tuple(self.sample.shape)}"
            )
        if len(self.sample) and not (
            bool((self.sample[1:] >= self.sample[:-1]).all())
            and int(self.sample[0]) >= 0
            and int(self.sample[-1]) < self.batch_size
        ):
            raise ValueError(f"samples must be in order and within 0..{self.batch_size - 1}: sort the points")

    def __len__(self) -> int:
        return len(self.sample)

    def sizes(self) -> torch.Tensor:
        """Positions of each sample, [B] int64."""
        return torch.bincount(self.sample, minlength=self.batch_size)

    def spans(self) -> list[tuple[int, int]]:
        """First row and number of positions of each sample."""
        sizes = self.sizes()
        starts = sizes.cumsum(0) - sizes
        return list(zip(starts.tolist(), sizes.tolist(), strict=True))

    def __getitem__(self, rows: torch.Tensor) -> "PointSet":
        """Some of the positions, by rows (in an order that keeps samples together) or by a mask."""
        return PointSet(xyz=self.xyz[rows], sample=self.sample[rows], batch_size=self.batch_size)
