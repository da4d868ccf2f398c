"""Pair tables: for every tap of a kernel, which input row meets which output row.

A sparse convolution is a sum over its pairs. A table lists them tap by tap, and also the order in which the
products are summed per output row (and, for the gradient, per input row). With both orders at hand forward
and backward only gather: no scatter, no atomics, the same bits whatever the number of threads.
"""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import prod

import torch

from lidar.sparse.sites import Shape, Sites, linear_keys, split_keys


@dataclass(frozen=True)
class Bags:
    """Groups of pairs to be summed: group n holds pairs[offsets[n]:offsets[n + 1]].

    Attributes:
        pairs: [P] int64 pair numbers.
        offsets: [N + 1] int64.
    """

    pairs: torch.Tensor
    offsets: torch.Tensor

    @classmethod
    def by_row(cls, rows: torch.Tensor, count: int) -> "Bags":
        """Group the pairs by their row number [P]; inside a group the pair order is kept."""
        ordered, pairs = torch.sort(rows, stable=True)
        return cls(pairs, torch.searchsorted(ordered, torch.arange(count + 1, device=rows.device)))


@dataclass(frozen=True, kw_only=True)
class PairTable:
    """The pairs of one convolution geometry on one set of sites.

    Attributes:
        inputs: [P] int64 input row of each pair, tap after tap.
        outputs: [P] int64 output row of each pair.
        taps: (tap, start, stop) of each tap that has pairs; tap counts through the kernel in z, y, x order.
        source: the sites of the input.
        target: the sites of the output.
        kernel: kernel size along z, y, x.
        submanifold: source and target are the same sites and the first tap listed is the kernel's centre,
            whose pairs are (n, n): it needs no gather.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    taps: tuple[tuple[int, int, int], ...]
    source: Sites
    target: Sites
    kernel: Shape
    submanifold: bool
    _bags: Bags | None = field(default=None, repr=False)

    @cached_property
    def by_output(self) -> Bags:
        """Pairs grouped by output row: the sums of the forward pass."""
        return self._bags or Bags.by_row(self.outputs, len(self.target))

    @cached_property
    def by_input(self) -> Bags:
        """Pairs grouped by input row: the sums of the input gradient."""
        return Bags.by_row(self.inputs, len(self.source))


def submanifold_table(sites: Sites, kernel: Shape) -> PairTable:
    """Table of a submanifold convolution: the output lives on the sites of the input.

    The pairs of a tap and of its mirror image are the same with input and output exchanged, so half of the
    taps are searched. Neighbours along x follow each other in key order: one search finds a whole x run. Keys
    carry guard cells as wide as the kernel's radius, so a neighbour outside the grid is simply not found.

    Raises:
        ValueError: if a kernel size is even.
    """
    if any(size % 2 == 0 or size < 1 for size in kernel):
        raise ValueError(f"a submanifold convolution needs an odd kernel, got {kernel}")
    radius = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    depth, height, width = sites.shape
    guarded = (depth + radius[0], height + radius[1], width + radius[2])
    keys = linear_keys(sites.coordinates, guarded)
    count, device = len(sites), keys.device
    rows = torch.arange(count, device=device)
    # A key past every neighbour: reading one place beyond the end finds it.
    keys_padded = torch.cat([keys, keys.new_full((1,), torch.iinfo(torch.int64).max)])

    found: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    for dz, dy in product(range(-radius[0], radius[0] + 1), range(-radius[1], radius[1] + 1)):
        if (dz, dy) < (0, 0):
            continue
        shifts = range(1 if (dz, dy) == (0, 0) else -radius[2], radius[2] + 1)
        if len(shifts) == 0:
            continue
        step = (dz * guarded[1] + dy) * guarded[2]
        first = keys + (step + shifts[0])
        place = rows + 1 if (dz, dy) == (0, 0) else torch.searchsorted(keys, first)
        for shift in shifts:
            hit = keys_padded.index_select(0, place) == first + (shift - shifts[0])
            output = hit.nonzero().squeeze(1)
            tap = ((dz + radius[0]) * kernel[1] + dy + radius[1]) * kernel[2] + shift + radius[2]
            found.append((tap, place.index_select(0, output), output))
            place = place + hit

    last = prod(kernel) - 1
    ahead = torch.cat([rows[:0], *(inputs for _, inputs, _ in found)])
    behind = torch.cat([rows[:0], *(outputs for _, _, outputs in found)])
    numbers = [last // 2, *(tap for tap, _, _ in found), *(last - tap for tap, _, _ in found)]
    counts = [count, *(2 * [len(inputs) for _, inputs, _ in found])]
    return PairTable(
        inputs=torch.cat([rows, ahead, behind]),
        outputs=torch.cat([rows, behind, ahead]),
        taps=_spans(numbers, counts),
        source=sites,
        target=sites,
        kernel=kernel,
        submanifold=True,
    )


def strided_table(sites: Sites, *, kernel: Shape, stride: Shape, padding: Shape) -> PairTable:
    """Table of a regular sparse convolution: an output site is active where its window meets an input site.

    Raises:
        ValueError: if an axis of the output has no cell.
    """
    shape = output_shape(sites.shape, kernel=kernel, stride=stride, padding=padding)
    sample, *position = split_keys(sites.keys, sites.shape)
    axes = [_axis_taps(*axis) for axis in zip(position, shape, kernel, stride, padding, strict=True)]
    rows, keys, numbers, counts = [sites.keys[:0]], [sites.keys[:0]], [], []
    for tap, (kz, ky, kx) in enumerate(product(*map(range, kernel))):
        (z, z_in), (y, y_in), (x, x_in) = axes[0][kz], axes[1][ky], axes[2][kx]
        row = (z_in & y_in & x_in).nonzero().squeeze(1)
        key = ((sample * shape[0] + z) * shape[1] + y) * shape[2] + x
        rows.append(row)
        keys.append(key.index_select(0, row))
        numbers.append(tap)
        counts.append(len(row))
    inputs = torch.cat(rows)
    ordered, pairs = torch.sort(torch.cat(keys), stable=True)
    target, place, lengths = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    return PairTable(
        inputs=inputs,
        outputs=torch.empty_like(place).index_copy_(0, pairs, place),
        taps=_spans(numbers, counts),
        source=sites,
        target=Sites(keys=target, shape=shape, batch_size=sites.batch_size),
        kernel=kernel,
        submanifold=False,
        _bags=Bags(pairs, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])),
    )


def output_shape(shape: Shape, *, kernel: Shape, stride: Shape, padding: Shape) -> Shape:
    """Grid after a strided convolution: floor((n + 2 p - k) / s) + 1 cells per axis.

    Raises:
        ValueError: if an axis shrinks to nothing.
    """
    out = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape, kernel, stride, padding, strict=True))
    for axis, before, after in zip("zyx", shape, out, strict=True):
        if after < 1:
            raise ValueError(
                f"a convolution with kernel {kernel}, stride {stride}, padding {padding} leaves no cell "
                f"along {axis}: the grid {shape} (z, y, x) has {before} there. Take a voxel grid with "
                f"more cells along {axis} (a smaller voxel or a larger range), or fewer strided stages"
            )
    return out  # type: ignore[return-value]


def _axis_taps(
    position: torch.Tensor, cells: int, kernel: int, stride: int, padding: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each tap of one axis: the output cell that each input meets there, and whether it exists."""
    taps = []
    for tap in range(kernel):
        shifted = position + (padding - tap)
        cell = shifted.div(stride, rounding_mode="floor")
        taps.append((cell, (cell * stride == shifted) & (cell >= 0) & (cell < cells)))
    return taps


def _spans(numbers: list[int], counts: list[int]) -> tuple[tuple[int, int, int], ...]:
    """(tap, start, stop) of the taps that have pairs, laid one after the other."""
    spans, start = [], 0
    for tap, count in zip(numbers, counts, strict=True):
        if count:
            spans.append((tap, start, start + count))
        start += count
    return tuple(spans)
