"""Ball query: the first few points within a radius of each centre, in the order of the points (PointNet++)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lidar.detection.point_set import PointSet

# Candidate pairs that are held at once: bounds the memory, and keeps a chunk in the cache of a CPU.
CHUNK = 2**20
# Cells along x per radius: finer cells leave fewer candidates outside the ball, and cost nothing.
FINE = 8
# Cells are a little larger than a radius, so that rounding cannot put a neighbour two cells away.
MARGIN = 1.01


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """What lies in a ball around each of M centres.

    Attributes:
        rows: [M, n] int64: the first n points within the radius by row, the rest filled with the first of them; 0
            where the ball is empty.
        empty: [M] bool: no point lies within the radius.
    """

    rows: torch.Tensor
    empty: torch.Tensor


@torch.no_grad()
def ball_query(
    points: PointSet, centres: PointSet, *, radii: Sequence[float], counts: Sequence[int]
) -> tuple[Neighbours, ...]:
    """The first points of the same sample closer than a radius to each centre; one search serves several radii.

    Points are sorted into cells, and a centre is compared with the 3 x 3 rows of cells around it: its cost is what
    lies near it. The matrix of all distances is never made.

    Args:
        points: what to find, P positions.
        centres: around what, M positions.
        radii: in metres; a point at the radius itself is outside.
        counts: n of each radius.

    Raises:
        ValueError: if the sets are of different batches, a number is not positive, or a point is not finite.
    """
    if len(radii) != len(counts) or not radii or min(radii) <= 0 or min(counts) < 1:
        raise ValueError(
            f"a ball query takes positive radii with a count each, got {[*radii]} and {[*counts]}"
        )
    if points.batch_size != centres.batch_size:
        raise ValueError(f"points of {points.batch_size} samples, centres of {centres.batch_size}")
    if not bool(points.xyz.isfinite().all() and centres.xyz.isfinite().all()):
        raise ValueError("a ball query met coordinates that are NaN or infinite: drop these points")
    rows = [centres.sample.new_full((len(centres), count), -1) for count in counts]
    for centre, row, squared in _pairs(points, centres, max(radii)):
        for radius, table in zip(radii, rows, strict=True):
            # In the type of the distances: float64 would move the edge of the ball.
            near = squared < squared.new_tensor(radius).square()
            _write_first(table, centre[near], row[near])
    return tuple(_filled(table) for table in rows)


def _write_first(table: torch.Tensor, centre: torch.Tensor, row: torch.Tensor) -> None:
    """Put the first n rows of each centre into table [M, n]; pairs are sorted by centre."""
    counts = torch.bincount(centre, minlength=len(table))
    rank = torch.arange(len(centre), device=centre.device) - (counts.cumsum(0) - counts)[centre]
    first = rank < table.shape[1]
    table[centre[first], rank[first]] = row[first]


def _filled(table: torch.Tensor) -> Neighbours:
    empty = table[:, 0] < 0
    return Neighbours(rows=torch.where(table < 0, table[:, :1], table).clamp_min_(0), empty=empty)


def _pairs(
    points: PointSet, centres: PointSet, radius: float
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Pairs within the radius, some centres at a time: centre, row of the point, squared distance, each [K].

    Sorted by centre, then by row.
    """
    if not (len(points) and len(centres)):
        return
    order, first, last = _runs(points, centres, radius)
    # Column by column: gathers of single numbers are faster than of rows of three.
    columns = list(zip(points.xyz[order].t().contiguous(), centres.xyz.t().contiguous(), strict=True))
    counts = (last - first).clamp_min_(0)
    total = counts.sum(1).cumsum(0)
    edges = torch.searchsorted(
        total, torch.arange(CHUNK, int(total[-1]) + CHUNK, CHUNK, device=total.device), right=True
    )
    begin = 0
    for end in [*edges.tolist(), len(centres)]:
        # A centre with more candidates than a chunk holds is a chunk of its own.
        end = min(max(end, begin + 1), len(centres))
        if begin >= len(centres):
            return
        run_counts = counts[begin:end].flatten()
        shift = first[begin:end].flatten() - (run_counts.cumsum(0) - run_counts)
        place = torch.repeat_interleave(shift, run_counts)
        place += torch.arange(len(place), device=place.device)
        centre = torch.arange(begin, end, device=place.device).repeat_interleave(counts[begin:end].sum(1))
        squared = sum(
            (xyz.index_select(0, place) - c.index_select(0, centre)).square_() for xyz, c in columns
        )
        assert isinstance(squared, torch.Tensor)
        near = (squared < squared.new_tensor(radius).square()).nonzero().squeeze(1)
        centre, row = centre.index_select(0, near), order.index_select(0, place.index_select(0, near))
        squared = squared.index_select(0, near)
        by_row = torch.argsort(centre * len(points) + row)
        yield centre[by_row], row[by_row], squared[by_row]
        begin = end


def _runs(
    points: PointSet, centres: PointSet, radius: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points in the order of their cells [P], and the runs in it that lie around each centre: first and last [M, 9]."""
    edge = radius * MARGIN
    size = points.xyz.new_tensor((edge / FINE, edge, edge))
    low = points.xyz.amin(0)
    width, height, depth = (((points.xyz.amax(0) - low) / size).floor().long() + 1).tolist()
    if points.batch_size * depth * height * width >= 2**63:
        raise ValueError(
            f"points spread over {width} x {height} x {depth} cells of a ball query of {radius} m: "
            f"crop them to the range"
        )

    def key(sample: torch.Tensor, z: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return ((sample * depth + z) * height + y) * width + x

    x, y, z = ((points.xyz - low) / size).floor().long().unbind(1)
    keys, order = torch.sort(key(points.sample, z, y, x))
    position = (centres.xyz - low) / size
    y, z = position[:, 1:].floor().long().unbind(1)
    steps = torch.arange(-1, 2, device=y.device)
    # [M, 9]: z slow, y fast.
    z, y = (z[:, None] + steps).repeat_interleave(3, 1), (y[:, None] + steps).repeat(1, 3)
    start = (position[:, :1] - FINE).floor().long().clamp_min_(0)
    stop = (position[:, :1] + FINE).floor().long().clamp_max_(width - 1)
    there = (z >= 0) & (z < depth) & (y >= 0) & (y < height) & (start <= stop)
    sample = centres.sample[:, None]
    first = torch.searchsorted(keys, key(sample, z, y, start))
    last = torch.searchsorted(keys, key(sample, z, y, stop), right=True)
    return order, first, torch.where(there, last, first)
