"""Several views of a scan that keep every BEV cell where it is: what a sensor might have seen on a second look.

They are the positives of LDA-rank: class = (frame, BEV cell), views = the same cell under other sensor noise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lidar.batch import PointCloudBatch


@dataclass(frozen=True, kw_only=True)
class SensorNoise:
    """Random loss and displacement of points.

    Args:
        dropout: probability that a point is lost, in [0, 1).
        jitter: standard deviation of x, y and z in metres; 0.02 is the range noise of a spinning LiDAR (HDL-64E).
    """

    dropout: float = 0.2
    jitter: float = 0.02

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1 or self.jitter < 0:
            raise ValueError(
                f"dropout must be in [0, 1) and jitter not negative, got {self.dropout} and {self.jitter}"
            )


def sensor_views(
    batch: PointCloudBatch, *, views: int, noise: SensorNoise | None = None, seed: int = 0
) -> Iterator[PointCloudBatch]:
    """Views of a batch under sensor noise, one after the other; each sample's is a function of its own seed.

    Args:
        batch: scans; left unchanged.
        views: how many.
        noise: defaults to `SensorNoise()`.
        seed: of the draws, beside the samples' seeds and the number of the view.
    """
    if views < 1:
        raise ValueError(f"views must be at least 1, got {views}")
    noise = noise or SensorNoise()
    counts = torch.bincount(batch.batch_index.cpu(), minlength=batch.batch_size).tolist()
    for view in range(views):
        kept, moved = [], []
        for sample_seed, count in zip(batch.seeds, counts, strict=True):
            rng = np.random.default_rng([seed, sample_seed % 2**63, view])
            kept.append(rng.random(count) >= noise.dropout)
            moved.append(rng.normal(scale=noise.jitter, size=(count, 3)).astype(np.float32))
        device = batch.points.device
        points = batch.points.clone()
        points[:, :3] += torch.from_numpy(np.concatenate(moved)).to(device, points.dtype)
        chosen = torch.from_numpy(np.concatenate(kept)).to(device)
        yield replace(batch, points=points[chosen], batch_index=batch.batch_index[chosen])


def common_cells(views: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Features [n, Q, C] of the cells that are occupied in all Q views.

    Args:
        views: per view the features of its occupied cells [m, C], and the occupancy [B, H, W] they come from, in
            row-major order (`lidar.pretraining.occupied_features`).
    """
    common = torch.stack([occupied for _, occupied in views]).all(dim=0)
    return torch.stack([features[common[occupied]] for features, occupied in views], dim=1)


def spread_frames(batches: Sequence[PointCloudBatch], count: int) -> PointCloudBatch:
    """At most `count` evenly spaced samples of some batches, as one batch.

    Raises:
        ValueError: if the batches hold no sample, or `count` is not positive.
    """
    samples = [(batch, index) for batch in batches for index in range(batch.batch_size)]
    if not samples or count < 1:
        raise ValueError(f"cannot take {count} samples of {len(samples)}")
    count = min(count, len(samples))
    chosen = [samples[i * len(samples) // count] for i in range(count)]
    points = [batch.points[batch.batch_index == index] for batch, index in chosen]
    device = points[0].device
    sizes = torch.tensor([len(p) for p in points], device=device)
    return PointCloudBatch(
        points=torch.cat(points),
        batch_index=torch.repeat_interleave(torch.arange(count, device=device), sizes),
        batch_size=count,
        frame_ids=tuple(batch.frame_ids[index] for batch, index in chosen),
        seeds=tuple(batch.seeds[index] for batch, index in chosen),
    )
