"""Anchors of SECOND: where they stand, which object each is to find, and boxes as residuals against them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lidar.detection.boxes import limit_period, nearest_bev_iou
from lidar.grid import VoxelGrid

YAWS = (0.0, 1.57)
# Where headings are cut into two directions: pi/4 to five digits, as OpenPCDet's checkpoints were trained with.
DIRECTION_OFFSET = 0.78539
NEGATIVE, IGNORED = -1, -2


@dataclass(frozen=True, kw_only=True)
class AnchorClass:
    """The anchor of one class.

    Attributes:
        name: of the class.
        size: length, width, height in metres.
        bottom: z of its bottom face in metres, sensor frame.
        matched: BEV IoU from which an anchor is positive.
        unmatched: BEV IoU below which it is negative; between the two it is ignored.
    """

    name: str
    size: tuple[float, float, float]
    bottom: float
    matched: float
    unmatched: float

    def __post_init__(self) -> None:
        if min(self.size) <= 0 or not 0 <= self.unmatched <= self.matched <= 1:
            raise ValueError(
                f"the anchor of {self.name!r} needs a positive size and 0 <= unmatched <= matched <= 1, got "
                f"{self.size}, {self.unmatched} and {self.matched}"
            )


@dataclass(frozen=True, kw_only=True)
class AnchorTargets:
    """What the anchors of a batch are to predict.

    Attributes:
        labels: [B, A] int64: class, NEGATIVE or IGNORED.
        codes: [B, A, 7] residuals of the matched boxes; 0 where there is none.
        directions: [B, A] int64: which half turn the heading of the matched box is in, 0 or 1.
    """

    labels: torch.Tensor
    codes: torch.Tensor
    directions: torch.Tensor

    @property
    def positive(self) -> torch.Tensor:
        """bool [B, A]: anchors with an object."""
        return self.labels >= 0


def anchor_grid(
    classes: Sequence[AnchorClass], *, grid: VoxelGrid, shape: tuple[int, int], yaws: Sequence[float] = YAWS
) -> torch.Tensor:
    """Anchors [H, W, classes, yaws, 7] float32; flattened, in the order of SECOND's predictions.

    They stand on W by H points that span the range of the grid with both its ends, not on the centres of cells.

    Args:
        classes: one anchor each.
        grid: its range.
        shape: H (y), W (x) of the map.
        yaws: headings in radians.
    """
    x0, y0, _, x1, y1, _ = grid.point_range
    y = torch.linspace(y0, y1, shape[0], dtype=torch.float64)
    x = torch.linspace(x0, x1, shape[1], dtype=torch.float64)
    anchors = torch.empty(*shape, len(classes), len(yaws), 7, dtype=torch.float64)
    anchors[..., 0] = x.view(1, -1, 1, 1)
    anchors[..., 1] = y.view(-1, 1, 1, 1)
    for place, kind in enumerate(classes):
        anchors[:, :, place, :, 2] = kind.bottom + kind.size[2] / 2
        anchors[:, :, place, :, 3:6] = torch.tensor(kind.size, dtype=torch.float64)
    anchors[..., 6] = torch.tensor(yaws, dtype=torch.float64)
    return anchors.float()


def encode(boxes: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Residuals [..., 7] of boxes [..., 7] against anchors [..., 7].

    Offsets in the plane over the anchor's diagonal, in height over its height; logarithms of size ratios; the
    difference of headings.
    """
    # Sizes of zero occur in careless labels; their logarithm must not.
    size, anchor_size = boxes[..., 3:6].clamp_min(1e-5), anchors[..., 3:6].clamp_min(1e-5)
    diagonal = torch.linalg.vector_norm(anchor_size[..., :2], dim=-1, keepdim=True)
    offset = boxes[..., :3] - anchors[..., :3]
    return torch.cat(
        [
            offset[..., :2] / diagonal,
            offset[..., 2:] / anchor_size[..., 2:],
            (size / anchor_size).log(),
            boxes[..., 6:7] - anchors[..., 6:7],
        ],
        dim=-1,
    )


def decode(codes: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Boxes [..., 7] of residuals [..., 7]: the inverse of `encode`."""
    diagonal = torch.linalg.vector_norm(anchors[..., 3:5], dim=-1, keepdim=True)
    return torch.cat(
        [
            anchors[..., :2] + codes[..., :2] * diagonal,
            anchors[..., 2:3] + codes[..., 2:3] * anchors[..., 5:6],
            anchors[..., 3:6] * codes[..., 3:6].exp(),
            anchors[..., 6:7] + codes[..., 6:7],
        ],
        dim=-1,
    )


def direction_bin(heading: torch.Tensor) -> torch.Tensor:
    """0 or 1 int64: the half turn a heading is in, counted from DIRECTION_OFFSET."""
    turned = limit_period(heading - DIRECTION_OFFSET, offset=0.0, period=2 * math.pi)
    return (turned / math.pi).floor().long().clamp(0, 1)


def with_direction(heading: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """The heading, known up to half turns, that lies in the half turn `direction`."""
    folded = limit_period(heading - DIRECTION_OFFSET, offset=0.0, period=math.pi)
    return folded + DIRECTION_OFFSET + math.pi * direction.to(heading.dtype)


def assign(
    anchors: torch.Tensor, classes: Sequence[AnchorClass], boxes: torch.Tensor, labels: torch.Tensor
) -> AnchorTargets:
    """Targets of one sample, as tensors without the batch axis: each class of anchors by itself, no sampling.

    Positive is an anchor whose best overlap with an object of its class reaches `matched`, and for every object the
    anchors that overlap it most, ties included. A positive anchor regresses to its own best object, also where it is
    positive for the sake of another. Overlap is the BEV IoU of boxes turned to the nearest axis.

    Args:
        anchors: [H, W, C, Y, 7] of `anchor_grid`.
        classes: C of the anchors; their order is that of the labels.
        boxes: [m, 7+] objects.
        labels: [m] int64.
    """
    assigned = torch.full(anchors.shape[:-1], NEGATIVE, device=anchors.device)
    codes, directions = torch.zeros_like(anchors), torch.zeros_like(assigned)
    for label, kind in enumerate(classes):
        objects = boxes[labels == label][:, :7]
        if len(objects) == 0:
            continue
        mine = anchors[:, :, label]
        overlap = nearest_bev_iou(mine.reshape(-1, 7), objects)
        best, match = (v.view(mine.shape[:-1]) for v in overlap.max(dim=1))
        most = overlap.amax(dim=0)
        forced = ((overlap == most) & (most > 0)).any(dim=1).view(best.shape)
        positive = forced | (best >= kind.matched)
        undecided = torch.where(best < kind.unmatched, NEGATIVE, IGNORED)
        assigned[:, :, label] = undecided.masked_fill(positive, label)
        found = objects[match[positive]]
        codes[:, :, label][positive] = encode(found, mine[positive])
        directions[:, :, label][positive] = direction_bin(found[:, 6])
    return AnchorTargets(labels=assigned.flatten(), codes=codes.view(-1, 7), directions=directions.flatten())


def assign_batch(
    anchors: torch.Tensor,
    classes: Sequence[AnchorClass],
    objects: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> AnchorTargets:
    """`assign` of every sample's (boxes, labels), stacked."""
    samples = [assign(anchors, classes, boxes, labels) for boxes, labels in objects]
    return AnchorTargets(
        labels=torch.stack([s.labels for s in samples]),
        codes=torch.stack([s.codes for s in samples]),
        directions=torch.stack([s.directions for s in samples]),
    )
