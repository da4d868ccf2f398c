"""Tables: for every tap of a kernel, which input row meets which output row."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

import torch

from lidar.sparse.runs import Block, pair_blocks
from lidar.sparse.sites import Shape, Sites, split_keys
from lidar.sparse.submanifold import submanifold_windows


@dataclass(frozen=True, kw_only=True)
class PairTable:
    """The pairs of one convolution geometry on one set of sites, laid out when they are first asked for.

    Attributes:
        make_forward: lays out the input rows around each output row.
        make_backward: lays out the output rows around each input row, taps counted backwards (tap t there is tap
            K - 1 - t here); None for a submanifold convolution, where the two are the same.
        source: the sites of the input.
        target: the sites of the output.
        kernel: kernel size along z, y, x.
    """

    make_forward: Callable[[], tuple[Block, ...]]
    make_backward: Callable[[], tuple[Block, ...]] | None
    source: Sites
    target: Sites
    kernel: Shape

    @cached_property
    def forward(self) -> tuple[Block, ...]:
        """Input rows around each output row."""
        return self.make_forward()

    @cached_property
    def backward(self) -> tuple[Block, ...]:
        """Output rows around each input row; taps count backwards."""
        return self.forward if self.make_backward is None else self.make_backward()


def submanifold_table(sites: Sites, kernel: Shape) -> PairTable:
    """Table of a submanifold convolution: the output lives on the sites of the input.

    Raises:
        ValueError: if a kernel size is even.
    """
    windows = submanifold_windows(sites, kernel)
    return PairTable(
        make_forward=windows.blocks, make_backward=None, source=sites, target=sites, kernel=kernel
    )


def strided_table(sites: Sites, *, kernel: Shape, stride: Shape, padding: Shape) -> PairTable:
    """Table of a regular sparse convolution: an output site is active where its window meets an input site.

    Raises:
        ValueError: if an axis of the output has no cell.
    """
    shape = output_shape(sites.shape, kernel=kernel, stride=stride, padding=padding)
    sample, *position = split_keys(sites.keys, sites.shape)
    # Input i meets output (i + p - t) / s at tap t, where that is whole and inside.
    whole, meets = [], []
    for cells, n, k, s, p in zip(position, shape, kernel, stride, padding, strict=True):
        shifted = cells + p
        quotient = shifted.div(s, rounding_mode="floor")
        rest = shifted - quotient * s
        whole.append(quotient)
        meets.append([(rest == t % s) & (quotient >= t // s) & (quotient < n + t // s) for t in range(k)])
    base = ((sample * shape[0] + whole[0]) * shape[1] + whole[1]) * shape[2] + whole[2]
    rows, keys = [], []
    for z, y in product(range(kernel[0]), range(kernel[1])):
        meets_zy = meets[0][z] & meets[1][y]
        for x in range(kernel[2]):
            row = (meets_zy & meets[2][x]).nonzero().squeeze(1)
            back = ((z // stride[0]) * shape[1] + y // stride[1]) * shape[2] + x // stride[2]
            rows.append(row)
            keys.append(base.index_select(0, row) - back)
    ordered, order = torch.sort(_narrow(torch.cat(keys), sites.batch_size * prod(shape)))
    target, place = torch.unique_consecutive(ordered, return_inverse=True)
    outputs = torch.empty_like(place).scatter_(0, order, place).split([len(row) for row in rows])
    last = prod(kernel) - 1
    pairs = [(tap, out, row) for tap, (out, row) in enumerate(zip(outputs, rows, strict=True)) if len(row)]
    mirrored = [(last - tap, row, out) for tap, out, row in pairs]
    return PairTable(
        make_forward=lambda: pair_blocks(pairs, centres=len(target)),
        make_backward=lambda: pair_blocks(mirrored, centres=len(sites)),
        source=sites,
        target=Sites(keys=target.long(), shape=shape, batch_size=sites.batch_size),
        kernel=kernel,
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


def _narrow(keys: torch.Tensor, limit: int) -> torch.Tensor:
    """The keys in 32 bits where they fit: they sort in half the time."""
    return keys.int() if limit <= torch.iinfo(torch.int32).max else keys
