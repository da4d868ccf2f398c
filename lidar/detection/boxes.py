"""Boxes (x, y, z, dx, dy, dz, heading): corners, axis-aligned overlap, and which points lie inside.

The convention is that of `lidar.detection.batch`: (x, y, z) is the centre, dx the length along the heading, and the
heading counts counter-clockwise from +x. Columns after the seventh (velocity) are carried along or left unread.
"""

import math

import torch

# Signs of half the length, width and height at each corner, in OpenPCDet's order: the bottom face, then the top.
_CORNERS = (
    (1, 1, -1), (1, -1, -1), (-1, -1, -1), (-1, 1, -1),
    (1, 1, 1), (1, -1, 1), (-1, -1, 1), (-1, 1, 1),
)  # fmt: skip


def check_boxes(boxes: torch.Tensor, name: str = "boxes") -> None:
    """Raises:
    ValueError: unless boxes are [N, 7] or wider, in floating point.
    """
    if boxes.ndim != 2 or boxes.shape[1] < 7:
        raise ValueError(
            f"{name} are [N, 7] (x, y, z, dx, dy, dz, heading) or wider, got {tuple(boxes.shape)}"
        )
    if not boxes.is_floating_point():
        raise ValueError(f"{name} are floating-point numbers, got {boxes.dtype}")


def limit_period(value: torch.Tensor, *, offset: float, period: float) -> torch.Tensor:
    """The value moved by whole periods into [-offset * period, (1 - offset) * period).

    Args:
        value: angles in radians, any shape.
        offset: 0.5 centres the interval on zero, 0 starts it there.
        period: 2 pi for directions, pi where front and back are the same.
    """
    return value - torch.floor(value / period + offset) * period


def bev_corners(boxes: torch.Tensor) -> torch.Tensor:
    """Corners [N, 4, 2] of boxes [N, 7+] seen from above, clockwise from the front left one."""
    return corners(boxes)[:, :4, :2]


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """Corners [N, 8, 3] of boxes [N, 7+]: the bottom face clockwise from the front left one, then the top face."""
    check_boxes(boxes)
    offset = boxes.new_tensor(_CORNERS) / 2 * boxes[:, None, 3:6]
    cos, sin = boxes[:, None, 6].cos(), boxes[:, None, 6].sin()
    turned = torch.stack(
        [offset[..., 0] * cos - offset[..., 1] * sin, offset[..., 0] * sin + offset[..., 1] * cos], dim=-1
    )
    return torch.cat([turned, offset[..., 2:]], dim=-1) + boxes[:, None, :3]


def enlarged(boxes: torch.Tensor, metres: float) -> torch.Tensor:
    """The boxes with length, width and height grown by so many metres in all, half on either side."""
    check_boxes(boxes)
    return torch.cat([boxes[:, :3], boxes[:, 3:6] + metres, boxes[:, 6:]], dim=1)


def nearest_bev_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union [N, M] seen from above, each box turned to the nearest axis first.

    SECOND's match of anchors and ground truth: a box whose heading is within pi/4 of the x axis, front or back, lies
    along x, any other one along y.

    Args:
        a: [N, 7+].
        b: [M, 7+].
    """
    low_a, high_a = _nearest_rectangles(a)
    low_b, high_b = _nearest_rectangles(b)
    extent = torch.minimum(high_a[:, None], high_b) - torch.maximum(low_a[:, None], low_b)
    intersection = extent.clamp_min(0).prod(dim=-1)
    union = (high_a - low_a).prod(-1)[:, None] + (high_b - low_b).prod(-1) - intersection
    return torch.where(union > 0, intersection / union, 0.0)


def _nearest_rectangles(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    check_boxes(boxes)
    along_x = limit_period(boxes[:, 6:7], offset=0.5, period=math.pi).abs() < math.pi / 4
    half = torch.where(along_x, boxes[:, 3:5], boxes[:, [4, 3]]) / 2
    return boxes[:, :2] - half, boxes[:, :2] + half


def points_in_boxes(points: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Which points lie in which boxes, faces included.

    Points are sorted along x, so that a box is compared with the points of its own strip only.

    Args:
        points: [P, 3+], in the frame of the boxes.
        boxes: [M, 7+].

    Returns:
        bool [M, P].
    """
    check_boxes(boxes)
    if points.ndim != 2 or points.shape[1] < 3:
        raise ValueError(f"points are [P, 3] (x, y, z) or wider, got {tuple(points.shape)}")
    x, order = points[:, 0].contiguous().sort()
    # A little more than the circle around the box, for rounding.
    reach = torch.linalg.vector_norm(boxes[:, 3:5], dim=1) * 0.5001 + 1e-3
    first = torch.searchsorted(x, (boxes[:, 0] - reach).to(x.dtype))
    last = torch.searchsorted(x, (boxes[:, 0] + reach).to(x.dtype), right=True)
    counts = (last - first).clamp_min(0)
    box = torch.repeat_interleave(torch.arange(len(boxes), device=boxes.device), counts)
    place = torch.arange(len(box), device=box.device) - (counts.cumsum(0) - counts)[box] + first[box]
    point = order[place]
    near = (points[point, 1] - boxes[box, 1]).abs() <= reach[box]
    box, point = box[near], point[near]
    offset = points[point, :3] - boxes[box, :3]
    cos, sin = boxes[:, 6].cos()[box], boxes[:, 6].sin()[box]
    half = (boxes[:, 3:6] / 2)[box]
    within = (
        ((offset[:, 0] * cos + offset[:, 1] * sin).abs() <= half[:, 0])
        & ((offset[:, 1] * cos - offset[:, 0] * sin).abs() <= half[:, 1])
        & (offset[:, 2].abs() <= half[:, 2])
    )
    inside = torch.zeros(len(boxes), len(points), dtype=torch.bool, device=boxes.device)
    inside[box[within], point[within]] = True
    return inside
