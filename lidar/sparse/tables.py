"""Tables: for every tap of a kernel, which input row meets which output row."""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

import torch

from lidar.sparse.runs import Block, TapPairs, build_blocks
from lidar.sparse.sites import Shape, Sites, linear_keys, split_keys


@dataclass(frozen=True, kw_only=True)
class PairTable:
    """The pairs of one convolution geometry on one set of sites.

    Attributes:
        pairs: for each tap that has any: its number (z, y, x order), the output rows and the input rows.
        source: the sites of the input.
        target: the sites of the output.
        kernel: kernel size along z, y, x.
        mirrored: the pairs of a tap are those of its mirror image with input and output exchanged, as in a
            submanifold convolution.
    """

    pairs: TapPairs
    source: Sites
    target: Sites
    kernel: Shape
    mirrored: bool

    @cached_property
    def forward(self) -> tuple[Block, ...]:
        """Runs of input rows around each output row."""
        return self._blocks(self.pairs, len(self.target))

    @cached_property
    def backward(self) -> tuple[Block, ...]:
        """Runs of output rows around each input row. Taps count backwards: tap t here is tap K - 1 - t."""
        if self.mirrored:
            return self.forward
        last = prod(self.kernel) - 1
        return self._blocks([(last - tap, row, out) for tap, out, row in self.pairs], len(self.source))

    def _blocks(self, pairs: TapPairs, centres: int) -> tuple[Block, ...]:
        return build_blocks(pairs, kernel=self.kernel, centres=centres, device=self.source.keys.device)


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

    middle = prod(kernel) // 2
    pairs: TapPairs = [(middle, rows, rows)]
    for dz, dy in product(range(-radius[0], radius[0] + 1), range(-radius[1], radius[1] + 1)):
        if (dz, dy) < (0, 0):
            continue
        shifts = range(1 if (dz, dy) == (0, 0) else -radius[2], radius[2] + 1)
        if len(shifts) == 0:
            continue
        step = (dz * guarded[1] + dy) * guarded[2]
        wanted = keys + (step + shifts[0])
        place = rows + 1 if (dz, dy) == (0, 0) else torch.searchsorted(keys, wanted)
        for shift in shifts:
            hit = keys_padded.index_select(0, place) == wanted
            output = hit.nonzero().squeeze(1)
            pairs.append((middle + (dz * kernel[1] + dy) * kernel[2] + shift, output, place[output]))
            place, wanted = place + hit, wanted + 1
    # Along a tap the input rows ascend with the output rows, so the exchanged lists ascend as well.
    pairs += [(2 * middle - tap, inputs, outputs) for tap, outputs, inputs in pairs[1:]]
    return PairTable(pairs=pairs, source=sites, target=sites, kernel=kernel, mirrored=True)


def strided_table(sites: Sites, *, kernel: Shape, stride: Shape, padding: Shape) -> PairTable:
    """Table of a regular sparse convolution: an output site is active where its window meets an input site.

    Raises:
        ValueError: if an axis of the output has no cell.
    """
    shape = output_shape(sites.shape, kernel=kernel, stride=stride, padding=padding)
    sample, *position = split_keys(sites.keys, sites.shape)
    axes = [_axis_taps(*axis) for axis in zip(position, shape, kernel, stride, padding, strict=True)]
    taps, rows, keys = [], [], []
    for tap, (kz, ky, kx) in enumerate(product(*map(range, kernel))):
        (z, z_in), (y, y_in), (x, x_in) = axes[0][kz], axes[1][ky], axes[2][kx]
        row = (z_in & y_in & x_in).nonzero().squeeze(1)
        key = ((sample * shape[0] + z) * shape[1] + y) * shape[2] + x
        taps.append(tap)
        rows.append(row)
        keys.append(key.index_select(0, row))
    target, outputs = torch.unique(torch.cat(keys), return_inverse=True)
    out_rows = outputs.split([len(row) for row in rows])
    return PairTable(
        pairs=list(zip(taps, out_rows, rows, strict=True)),
        source=sites,
        target=Sites(keys=target, shape=shape, batch_size=sites.batch_size),
        kernel=kernel,
        mirrored=False,
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
