"""Overlap of rotated boxes: intersection and IoU seen from above and in space, on any device, without compiled code.

The area is an integral, not a polygon. In the frame of one box, which is then the rectangle |x| <= L, |y| <= W, the
part of the other box inside it has the area

    sum over the other's edges, clockwise, of  integral over x within [-L, L] of  clamp(y(x), -W, W) dx

since at each x the upper edge minus the lower one, both clamped, is the length inside. Nothing is decided about
vertices, so that equal boxes, shared edges and corners, right angles and nesting are no special cases: the result is a
continuous function of the boxes. Coordinates are relative to one box's centre, so that float64 is exact to rounding.
"""

import torch

from lidar.detection.boxes import check_boxes

# Pairs at a time in [N, M] overlaps: bounds the memory of the search for pairs that can touch.
_BLOCK = 1 << 22


def paired_bev_intersection(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Area [N] in m^2 that boxes a [N, 7+] and b [N, 7+] share seen from above, pair by pair.

    Exactly 0 where an edge of one separates it from the other.
    """
    _check_pairs(a, b)
    half_a, half_b = a[:, 3:5] / 2, b[:, 3:5] / 2
    shift = b[:, :2] - a[:, :2]
    cos_a, sin_a = a[:, 6].cos(), a[:, 6].sin()
    cos_b, sin_b = b[:, 6].cos(), b[:, 6].sin()
    # The second box in the frame of the first: its centre, and half its length and width as vectors.
    centre = torch.stack(_turned(shift, cos_a, sin_a), dim=1)
    cos, sin = cos_b * cos_a + sin_b * sin_a, sin_b * cos_a - cos_b * sin_a
    length = torch.stack([cos, sin], dim=1) * half_b[:, :1]
    width = torch.stack([-sin, cos], dim=1) * half_b[:, 1:]
    apart = (centre.abs() >= half_a + length.abs() + width.abs()).any(dim=1)
    # And the separating axes of the second box.
    along, across = _turned(shift, cos_b, sin_b)
    apart |= along.abs() >= half_b[:, 0] + half_a[:, 0] * cos.abs() + half_a[:, 1] * sin.abs()
    apart |= across.abs() >= half_b[:, 1] + half_a[:, 0] * sin.abs() + half_a[:, 1] * cos.abs()
    start = torch.stack(
        [
            centre + length + width,
            centre + length - width,
            centre - length - width,
            centre - length + width,
        ]
    )
    area = _area_within(start, half_a)
    return torch.where(apart, 0.0, area.clamp_min(0))


def paired_bev_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union [N] of boxes [N, 7+] seen from above, pair by pair."""
    return _over_union(paired_bev_intersection(a, b), a[:, 3] * a[:, 4], b[:, 3] * b[:, 4])


def paired_iou_3d(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union [N] of boxes [N, 7+] in space, pair by pair."""
    volume = paired_bev_intersection(a, b) * _shared_height(a, b)
    return _over_union(volume, a[:, 3:6].prod(1), b[:, 3:6].prod(1))


def bev_intersection(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Area [N, M] in m^2 that boxes a [N, 7+] and b [M, 7+] share seen from above."""
    _check_tables(a, b)
    area = a.new_zeros(len(a), len(b))
    rows, columns = touching(a, b)
    area[rows, columns] = paired_bev_intersection(a[rows], b[columns])
    return area


def bev_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union [N, M] of boxes a [N, 7+] and b [M, 7+] seen from above."""
    _check_tables(a, b)
    iou = a.new_zeros(len(a), len(b))
    rows, columns = touching(a, b)
    iou[rows, columns] = paired_bev_iou(a[rows], b[columns])
    return iou


def iou_3d(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union [N, M] of boxes a [N, 7+] and b [M, 7+] in space."""
    _check_tables(a, b)
    iou = a.new_zeros(len(a), len(b))
    rows, columns = touching(a, b)
    iou[rows, columns] = paired_iou_3d(a[rows], b[columns])
    return iou


def touching(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column indices [K] of pairs whose circles, around the boxes seen from above, meet.

    Every pair that overlaps is among them; most others are not.
    """
    rows: list[torch.Tensor] = []
    columns: list[torch.Tensor] = []
    # A little more than the circles, for rounding.
    reach_a, reach_b = (torch.linalg.vector_norm(v[:, 3:5], dim=1) * 0.50001 for v in (a, b))
    step = max(1, _BLOCK // max(1, len(b)))
    for first in range(0, len(a), step):
        part = slice(first, first + step)
        near = (a[part, None, 0] - b[:, 0]).square_()
        near += (a[part, None, 1] - b[:, 1]).square_()
        row, column = (near <= (reach_a[part, None] + reach_b).square_()).nonzero(as_tuple=True)
        rows.append(row + first)
        columns.append(column)
    if not rows:
        nothing = torch.zeros(0, dtype=torch.int64, device=a.device)
        return nothing, nothing
    return torch.cat(rows), torch.cat(columns)


def _turned(vector: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors [N, 2] in a frame whose x axis is (cos, sin)."""
    return vector[:, 0] * cos + vector[:, 1] * sin, vector[:, 1] * cos - vector[:, 0] * sin


def _area_within(corner: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
    """Area [N] of clockwise polygons, corners [K, N, 2], inside the rectangles |x| <= half[:, 0], |y| <= half[:, 1]."""
    x0, y0 = corner.unbind(-1)
    x1, y1 = corner.roll(-1, dims=0).unbind(-1)
    length, width = half[:, 0], half[:, 1]
    begin, end = x0.clamp(-length, length), x1.clamp(-length, length)
    dx = x1 - x0
    # Shares of the edge, not slopes: these stay bounded where the edge stands upright.
    cut_begin = torch.where(dx == 0, 0.0, (begin - x0) / dx)
    cut_end = torch.where(dx == 0, 0.0, (end - x1) / dx)
    dy = y1 - y0
    y0, y1 = y0 + cut_begin * dy, y1 + cut_end * dy
    low, high = torch.minimum(y0, y1), torch.maximum(y0, y1)
    rise = high - low
    # Mean of clamp(y) on a straight piece: the shares below, inside and above the rectangle.
    below = torch.minimum(high, -width).sub_(low).clamp_min_(0)
    above = high.sub(torch.maximum(low, width)).clamp_min_(0)
    inside = rise - below - above
    low, high = low.clamp(-width, width), high.clamp(-width, width)
    total = (above - below) * width + inside * (low + high) / 2
    mean = torch.where(rise == 0, low, total / rise)
    return ((end - begin) * mean).sum(dim=0)


def _shared_height(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    top = torch.minimum(a[:, 2] + a[:, 5] / 2, b[:, 2] + b[:, 5] / 2)
    bottom = torch.maximum(a[:, 2] - a[:, 5] / 2, b[:, 2] - b[:, 5] / 2)
    return (top - bottom).clamp_min(0)


def _over_union(intersection: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    union = a + b - intersection
    return torch.where(union > 0, intersection / union, 0.0)


def _check_tables(a: torch.Tensor, b: torch.Tensor) -> None:
    check_boxes(a, "the first boxes")
    check_boxes(b, "the second boxes")
    if a.dtype != b.dtype:
        raise ValueError(f"boxes are of one precision, got {a.dtype} and {b.dtype}")


def _check_pairs(a: torch.Tensor, b: torch.Tensor) -> None:
    _check_tables(a, b)
    if len(a) != len(b):
        raise ValueError(f"as many first boxes as second ones, got {len(a)} and {len(b)}")
