"""Tables: for every tap of a kernel, which input row meets which output row."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from operator import itemgetter

import torch

from lidar.sparse.runs import Block, Windows
from lidar.sparse.sites import Shape, Sites, linear_keys, split_keys


@dataclass(frozen=True, kw_only=True)
class PairTable:
    """The pairs of one convolution geometry on one set of sites.

    Attributes:
        windows: input rows around each output row.
        mirrored: output rows around each input row, taps counted backwards (tap t there is tap K - 1 - t here), or
            None for a submanifold convolution, where both are the same.
        source: the sites of the input.
        target: the sites of the output.
        kernel: kernel size along z, y, x.
    """

    windows: Windows
    mirrored: Callable[[], Windows] | None
    source: Sites
    target: Sites
    kernel: Shape

    @cached_property
    def forward(self) -> tuple[Block, ...]:
        """Runs of input rows around each output row."""
        return self.windows.blocks()

    @cached_property
    def backward(self) -> tuple[Block, ...]:
        """Runs of output rows around each input row; taps count backwards."""
        return self.forward if self.mirrored is None else self.mirrored().blocks()


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

    windows = Windows.empty(kernel=kernel, centres=count, device=device)
    present, first = windows.present[:, :count], windows.first[:, :count]
    middle, width = prod(kernel) // 2, kernel[2]
    own = len(present) // 2
    present[own] = 1 << radius[2]
    first[own] = rows
    for stretch in range(own, len(present)):
        dz, dy = divmod(stretch, kernel[1])
        step = ((dz - radius[0]) * guarded[1] + dy - radius[1]) * guarded[2]
        if stretch == own:
            slots, place = range(radius[2] + 1, width), rows + 1
        else:
            slots = range(width)
            place = torch.searchsorted(keys, keys + (step - radius[2]))
            first[stretch] = place
        for slot in slots:
            hit = keys_padded.index_select(0, place) == keys + (step + slot - radius[2])
            present[stretch] += hit.to(torch.int16) << slot
            # The same pairs seen from the other end. Slots ascend here, so they descend there.
            windows.add(2 * middle - stretch * width - slot, torch.where(hit, place, count), rows)
            place = place + hit
    return PairTable(windows=windows, mirrored=None, source=sites, target=sites, kernel=kernel)


def strided_table(sites: Sites, *, kernel: Shape, stride: Shape, padding: Shape) -> PairTable:
    """Table of a regular sparse convolution: an output site is active where its window meets an input site.

    Raises:
        ValueError: if an axis of the output has no cell.
    """
    shape = output_shape(sites.shape, kernel=kernel, stride=stride, padding=padding)
    sample, *position = split_keys(sites.keys, sites.shape)
    # Input i meets output (i + p - t) / s at tap t: only taps with the remainder of i + p, at a fixed distance.
    shifted = [cells + p for cells, p in zip(position, padding, strict=True)]
    whole = [cells.div(s, rounding_mode="floor") for cells, s in zip(shifted, stride, strict=True)]
    rest = [cells - q * s for cells, q, s in zip(shifted, whole, stride, strict=True)]
    base = ((sample * shape[0] + whole[0]) * shape[1] + whole[1]) * shape[2] + whole[2]
    remainder = (rest[0] * stride[1] + rest[1]) * stride[2] + rest[2]

    taps, rows, keys = [], [sites.keys[:0]], [sites.keys[:0]]
    for number, rests in enumerate(product(*map(range, stride))):
        members = (remainder == number).nonzero().squeeze(1)
        base_here = base.index_select(0, members)
        choices = []
        for q, r, s, k, cells in zip(whole, rests, stride, kernel, shape, strict=True):
            q_here = q.index_select(0, members)
            steps = range((k - r + s - 1) // s)
            choices.append([(r + d * s, d, (q_here >= d) & (q_here < cells + d)) for d in steps])
        for (kz, dz, z_in), (ky, dy, y_in), (kx, dx, x_in) in product(*choices):
            inside = (z_in & y_in & x_in).nonzero().squeeze(1)
            taps.append((kz * kernel[1] + ky) * kernel[2] + kx)
            rows.append(members.index_select(0, inside))
            keys.append(base_here.index_select(0, inside) - ((dz * shape[1] + dy) * shape[2] + dx))
    ordered, order = torch.sort(_narrow(torch.cat(keys), sites.batch_size * prod(shape)))
    target, place = torch.unique_consecutive(ordered, return_inverse=True)
    outputs = torch.empty_like(place).scatter_(0, order, place).split([len(row) for row in rows])
    pairs = sorted(zip(taps, outputs[1:], rows[1:], strict=True), key=itemgetter(0), reverse=True)
    target_sites = Sites(keys=target.long(), shape=shape, batch_size=sites.batch_size)

    windows = Windows.empty(kernel=kernel, centres=len(target), device=target.device)
    for tap, out, row in pairs:
        windows.add(tap, out, row)

    def mirrored() -> Windows:
        windows = Windows.empty(kernel=kernel, centres=len(sites), device=target.device)
        for tap, out, row in reversed(pairs):
            windows.add(prod(kernel) - 1 - tap, row, out)
        return windows

    return PairTable(windows=windows, mirrored=mirrored, source=sites, target=target_sites, kernel=kernel)


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


def _narrow(keys: torch.Tensor, limit: int) -> torch.Tensor:
    """The keys in 32 bits where they fit: they sort in half the time."""
    return keys.int() if limit <= torch.iinfo(torch.int32).max else keys
