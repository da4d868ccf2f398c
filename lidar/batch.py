"""Typed batches that travel from the data loader to the model."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, kw_only=True)
class PointCloudBatch:
    """A batch of point clouds, concatenated.

    Attributes:
        points: [P, C] float32: x, y, z in metres (sensor frame), then intensity in 0..1 and further features.
        batch_index: [P] int64, non-decreasing: which sample a point belongs to.
        batch_size: number of samples, empty ones included.
        frame_ids: one name per sample.
        seeds: one integer per sample: the seed of every random draw made for this sample (masks, point order).
        skipped: names of frames that could not be read and were replaced (only with on_error=skip).
    """

    points: torch.Tensor
    batch_index: torch.Tensor
    batch_size: int
    frame_ids: tuple[str, ...]
    seeds: tuple[int, ...]
    skipped: tuple[str, ...] = ()

    def pin_memory(self) -> "PointCloudBatch":
        """The same batch in page-locked memory; a DataLoader asks for it so that copies to a GPU do not block."""
        return replace(self, points=self.points.pin_memory(), batch_index=self.batch_index.pin_memory())

    def to(self, device: torch.device | str) -> "PointCloudBatch":
        """The same batch on another device."""
        return replace(
            self,
            points=self.points.to(device, non_blocking=True),
            batch_index=self.batch_index.to(device, non_blocking=True),
        )


@dataclass(frozen=True, kw_only=True)
class VoxelBatch:
    """Non-empty voxels of a batch, sorted by (sample, z, y, x).

    Attributes:
        features: [N, C] float32: mean of the raw point features in each voxel.
        coordinates: [N, 4] int64: sample, z, y, x.
        batch_size: number of samples, empty ones included.
    """

    features: torch.Tensor
    coordinates: torch.Tensor
    batch_size: int
