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
from worldmodel.distributed import at_least_fp32

# Pairs at a time in the search for those that can touch: what stays in a CPU's cache, what fills a GPU.
_BLOCK = {"cpu": 1 << 17}
_BLOCK_ELSEWHERE = 1 << 24
# Only pairs within reach along x are looked at where that leaves fewer than one in so many: a look at one of them
# costs several times what it does in a table of all pairs.
_SPARSE = 6

# Signs of half the length and half the width at the corners.
_CLOCKWISE = ((1, 1), (1, -1), (-1, -1), (-1, 1))


def paired_bev_intersection(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Area [N] in m^2 that boxes a [N, 7+] and b [N, 7+] share seen from above, pair by pair.

    Exactly 0 where an edge of one separates it from the other.
    """
    _check_pairs(a, b)
    x, y = b[:, 0] - a[:, 0], b[:, 1] - a[:, 1]
    length_a, width_a, length_b, width_b = a[:, 3] / 2, a[:, 4] / 2, b[:, 3] / 2, b[:, 4] / 2
    turn = b[:, 6] - a[:, 6]
    cos, sin = turn.cos(), turn.sin()
    wide, narrow = cos.abs(), sin.abs()
    # The centre of each box in the frame of the other; a box is apart if its shadow on an axis ends before the other.
    centre = _turned(x, y, a[:, 6])
    apart = centre[0].abs() >= length_a + length_b * wide + width_b * narrow
    apart |= centre[1].abs() >= width_a + length_b * narrow + width_b * wide
    back = _turned(x, y, b[:, 6])
    apart |= back[0].abs() >= length_b + length_a * wide + width_a * narrow
    apart |= back[1].abs() >= width_b + length_a * narrow + width_a * wide
    meet = (~apart).nonzero()[:, 0]
    x, y, cos, sin, length_a, width_a, length_b, width_b = torch.stack(
        [*centre, cos, sin, length_a, width_a, length_b, width_b]
    )[:, meet]
    forward, left = (length_b * cos, length_b * sin), (-width_b * sin, width_b * cos)
    corner_x = torch.stack([x + s * forward[0] + t * left[0] for s, t in _CLOCKWISE])
    corner_y = torch.stack([y + s * forward[1] + t * left[1] for s, t in _CLOCKWISE])
    area = a.new_zeros(len(a))
    area[meet] = _area_within(corner_x, corner_y, length_a, width_a).clamp_min(0)
    return area


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


def touching(a: torch.Tensor, b: torch.Tensor, *, over: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column indices [K] of pairs that may have an IoU above `over` seen from above, told by their distance.

    Every pair that has one is among them; most others are not. Circles around the boxes must meet. And with an IoU
    above t the centres are no farther apart than r (1 - t) / t, r half the diagonal of either box. In the frame of one,
    A with length L, let the other, B, be off by c_x along it. B is its own mirror image about its centre, so it shares
    the area I with A and as much with A moved by 2 c_x. If those two are apart (2 |c_x| >= L), the widths of B between
    them are no smaller than within them, and |B| >= I (1 + 2 |c_x| / L), while |B| < I / t. If they meet, their common
    part is |A| (1 - 2 |c_x| / L) at most and 2 I - |B| at least, which is above (2 - 1 / t) |A| by I (1 + t) >
    t (|A| + |B|) and |B| < |A| / t. Either way 2 |c_x| / L < 1 / t - 1, and so across.
    """
    if not len(a) or not len(b):
        nothing = torch.zeros(0, dtype=torch.int64, device=a.device)
        return nothing, nothing
    factor = max(0.0, (1 - over) / over) if over > 1 / 3 else None
    # x, y and half the diagonal, a little more for rounding: [3, N].
    of_a, of_b = (
        torch.stack([v[:, 0], v[:, 1], torch.linalg.vector_norm(v[:, 3:5], dim=1) * 0.50001]) for v in (a, b)
    )
    window = of_a[2] + of_b[2].nan_to_num(0).max() if factor is None else of_a[2] * factor
    window = window + 2 * torch.finfo(a.dtype).eps * of_a[0].abs()  # of which the sums below are rounded
    order = of_b[0].argsort()
    along = of_b[0, order]
    first = torch.searchsorted(along, of_a[0] - window)
    counts = torch.searchsorted(along, of_a[0] + window, right=True) - first
    total = int(counts.sum())
    block = _BLOCK.get(a.device.type, _BLOCK_ELSEWHERE)
    if total <= min(4 * block, len(a) * len(b) // _SPARSE):
        repeated = of_a.repeat_interleave(counts, dim=1, output_size=total)
        ends = counts.cumsum(0)
        places = torch.arange(total, device=a.device)
        places += (first - (ends - counts)).repeat_interleave(counts, output_size=total)
        near = _close(repeated, of_b[:, order].index_select(1, places), factor).nonzero()[:, 0]
        return torch.searchsorted(ends, near, right=True), order[places[near]]
    step = max(1, block // len(b))
    found = []
    for start in range(0, len(a), step):
        part = of_a[:, start : start + step, None]
        row, column = _close(part, of_b[:, None], factor).nonzero(as_tuple=True)
        found.append(torch.stack([row + start, column]))
    rows, columns = torch.cat(found, dim=1)
    return rows, columns


def likely(
    a: torch.Tensor, b: torch.Tensor, pairs: tuple[torch.Tensor, torch.Tensor], *, over: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of the pairs (row of a [N, 7+], row of b [M, 7+]) that bounds cheaper than their IoU do not rule out.

    Row and column indices [K]. None with an IoU above `over` seen from above is lost. It needs an intersection above
    (|A| + |B|) over / (1 + over). Two boxes share no more than two strips do, one along a side of each: those of widths
    u and v that cross at an angle d share u v / |sin d|.
    """
    # Cosine, sine, length, width and what the box adds to the intersection needed, less for rounding: [5, N].
    share = 0.9999 * max(over, 0.0) / (1 + max(over, 0.0))
    of_a, of_b = (
        torch.stack([v[:, 6].cos(), v[:, 6].sin(), v[:, 3], v[:, 4], v[:, 3] * v[:, 4] * share])
        for v in (at_least_fp32(a), at_least_fp32(b))
    )
    rows, columns = pairs
    cos_a, sin_a, length_a, width_a, needed = of_a.index_select(1, rows)
    cos_b, sin_b, length_b, width_b, needed_b = of_b.index_select(1, columns)
    needed = needed + needed_b
    sin, cos = (sin_b * cos_a - cos_b * sin_a).abs(), (cos_b * cos_a + sin_b * sin_a).abs()
    both = (sin - 1e-5) * needed <= torch.minimum(width_a * width_b, length_a * length_b)
    both &= (cos - 1e-5) * needed <= torch.minimum(width_a * length_b, length_a * width_b)
    return rows[both], columns[both]


def _close(a: torch.Tensor, b: torch.Tensor, factor: float | None) -> torch.Tensor:
    """Whether circles (x, y, radius) meet, or the centres are within `factor` times the smaller radius."""
    reach = a[2] + b[2] if factor is None else torch.minimum(a[2], b[2]).mul_(factor)
    return (a[0] - b[0]).square_().add_((a[1] - b[1]).square_()) <= reach.square_()


def _turned(x: torch.Tensor, y: torch.Tensor, heading: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors (x, y), [N] each, in a frame whose x axis has this heading."""
    cos, sin = heading.cos(), heading.sin()
    return x * cos + y * sin, y * cos - x * sin


def _area_within(x: torch.Tensor, y: torch.Tensor, length: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """Area [N] of clockwise polygons, corners x, y [K, N], within |x| <= length [N] and |y| <= width [N]."""
    begin = torch.minimum(torch.maximum(x, -length), length)
    end = begin.roll(-1, dims=0)
    # Shares of the edge, not slopes: these stay bounded where the edge stands upright.
    dx, dy = x.roll(-1, dims=0) - x, y.roll(-1, dims=0) - y
    upright = dx == 0
    y0 = y + dy * ((begin - x) / dx).masked_fill_(upright, 0).clamp_(0, 1)
    y1 = y + dy * ((end - x) / dx).masked_fill_(upright, 1).clamp_(0, 1)
    low, high = torch.minimum(y0, y1), torch.maximum(y0, y1)
    rise = high - low
    # Mean of clamp(y) on a straight piece: the shares below, inside and above the rectangle.
    below = (torch.minimum(high, -width) - low).clamp_min_(0)
    above = (high - torch.maximum(low, width)).clamp_min_(0)
    low, high = (torch.minimum(torch.maximum(v, -width), width) for v in (low, high))
    total = (above - below) * width + (rise - below - above) * (low + high) / 2
    mean = torch.where(rise == 0, low, total / rise)
    return ((end - begin) * mean).sum(dim=0)


def _shared_height(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    z, half_a, half_b = b[:, 2] - a[:, 2], a[:, 5] / 2, b[:, 5] / 2
    return (torch.minimum(half_a, z + half_b) - torch.maximum(-half_a, z - half_b)).clamp_min(0)


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
