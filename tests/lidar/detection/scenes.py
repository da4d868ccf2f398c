"""A labelled scene for the tests of detectors: a floor with boxes on it, filled with points."""

import math

import torch

from lidar.detection.batch import DetectionBatch, GroundTruth
from lidar.grid import VoxelGrid
from tests.lidar.scenes import TINY, batch_of

TINY_GRID: VoxelGrid = TINY.grid  # 12.8 m squared, 64 x 64 x 20 voxels
TINY_OPTIONS = {"grid": TINY_GRID, "widths": (4, 8, 8, 8), "backend": "torch"}
# A car, a pedestrian and a cyclist (labels 0, 1, 2) that face all ways.
BOXES = torch.tensor(
    [
        [6.0, 3.0, -0.9, 3.9, 1.6, 1.56, 0.4],
        [9.1, -2.3, -0.85, 0.8, 0.6, 1.7, 2.0],
        [3.2, -3.7, -0.85, 1.8, 0.6, 1.7, -2.5],
    ]
)
LABELS = torch.tensor([0, 1, 2])


def scene(boxes: torch.Tensor = BOXES, *, seed: int = 0, floor: int = 800, inside: int = 150) -> torch.Tensor:
    """Points [n, 4] on the floor of the tiny range and inside the boxes."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    plane = uniform(floor, 4) * torch.tensor([12.8, 12.8, 0.05, 1]) + torch.tensor([0, -6.4, -1.75, 0])
    clouds = [plane]
    for box in boxes[:, :7]:
        u = (uniform(inside, 3) - 0.5) * box[3:6]
        cos, sin = math.cos(box[6]), math.sin(box[6])
        turned = torch.stack([u[:, 0] * cos - u[:, 1] * sin, u[:, 0] * sin + u[:, 1] * cos, u[:, 2]], dim=1)
        clouds.append(torch.cat([turned + box[:3], uniform(inside, 1)], dim=1))
    return torch.cat(clouds)


def labelled_batch(
    *, boxes: torch.Tensor = BOXES, labels: torch.Tensor = LABELS, samples: int = 1, features: int = 4
) -> DetectionBatch:
    """The same objects in every sample, with other points."""
    clouds = [scene(boxes, seed=seed) for seed in range(samples)]
    clouds = [torch.nn.functional.pad(c, (0, features - 4)) for c in clouds]
    truth = GroundTruth.padded([boxes] * samples, [labels] * samples)
    return DetectionBatch(points=batch_of(clouds), truth=truth)


def same_heading(a: torch.Tensor, b: torch.Tensor, atol: float) -> bool:
    """Whether angles agree up to full turns."""
    return bool((torch.remainder(a - b + math.pi, 2 * math.pi) - math.pi).abs().max() <= atol)
