"""Runs: the neighbours of a row, cut into stretches that are contiguous in memory.

Rows are sorted by cell with x fastest, so the active neighbours of a site inside one x stretch of its window lie
one after the other in the feature matrix. One gather of `first .. first + n` fetches all of them, one matrix
product of width n * C replaces n products, and one row is left to be summed instead of n.

Every (centre, x stretch) with at least one neighbour is an item. Items whose neighbours sit at the same taps form
a group: one gather and one product each. Items of a block of centres are laid out group after group; `pairs`
lists them again centre by centre, in the order in which their products are summed. So nothing is scattered, and
the bits do not depend on the number of threads.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lidar.sparse.sites import Shape

# Centres per block: bounds the memory of the products (a few MB) and keeps them in the processor's cache.
BLOCK = 16384

TapPairs = list[tuple[int, torch.Tensor, torch.Tensor]]
"""For each tap that has any: its number, the centre rows and the neighbour rows, centres ascending."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """The items of one block of centres.

    Attributes:
        count: centres in the block.
        taps: for each group, the taps its neighbours sit at, ascending.
        sizes: for each group, its number of items.
        firsts: for each group, the first neighbour row of each item.
        centres: for each group, the centre row of each item.
        pairs: [I] int64 item numbers, centre by centre.
        offsets: [count + 1] int64: pairs[offsets[n]:offsets[n + 1]] belong to centre n of the block.
    """

    count: int
    taps: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    firsts: tuple[torch.Tensor, ...]
    centres: tuple[torch.Tensor, ...]
    pairs: torch.Tensor
    offsets: torch.Tensor


def build_blocks(pairs: TapPairs, *, kernel: Shape, centres: int, device: torch.device) -> tuple[Block, ...]:
    """Group the pairs of a convolution into runs.

    Args:
        pairs: the pairs of each tap; neighbours must ascend with the tap inside an x stretch.
        kernel: kernel size along z, y, x.
        centres: number of centre rows.
        device: where the pairs lie.

    Returns:
        Blocks of at most `BLOCK` centres, in order.
    """
    width = kernel[2]
    stretches = kernel[0] * kernel[1]
    # Which taps of a stretch are present, as bits, and the first neighbour.
    present = torch.zeros(stretches, centres, dtype=torch.int16, device=device)
    first = torch.zeros(stretches, centres, dtype=torch.int64, device=device)
    for tap, centre, neighbour in sorted(pairs, key=lambda pair: -pair[0]):
        stretch, slot = divmod(tap, width)
        bit = present.new_full((1,), 1 << slot).expand(len(centre))
        present[stretch].scatter_add_(0, centre, bit)
        first[stretch].scatter_(0, centre, neighbour)  # the lowest tap comes last and stays
    return tuple(
        _block(present[:, start : start + BLOCK], first[:, start : start + BLOCK], start=start, width=width)
        for start in range(0, centres, BLOCK)
    )


def _block(present: torch.Tensor, first: torch.Tensor, *, start: int, width: int) -> Block:
    stretches, count = present.shape
    by_centre = present.t().contiguous()
    item = by_centre.view(-1).nonzero().squeeze(1)
    centre = item.div(stretches, rounding_mode="floor")
    stretch = item - centre * stretches
    group = by_centre.view(-1).index_select(0, item) + (stretch << width).to(torch.int16)
    group, order = torch.sort(group, stable=True)
    sizes = torch.bincount(group, minlength=stretches << width).tolist()
    centre_sorted = centre.index_select(0, order)
    place = stretch.index_select(0, order) * count + centre_sorted
    firsts = first.reshape(-1).index_select(0, place)
    used = [number for number, size in enumerate(sizes) if size]
    lengths = [sizes[number] for number in used]
    return Block(
        count=count,
        taps=tuple(_taps(number, width) for number in used),
        sizes=tuple(lengths),
        firsts=firsts.split(lengths) if used else (),
        centres=(centre_sorted + start).split(lengths) if used else (),
        pairs=torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device)),
        offsets=torch.cat([order.new_zeros(1), (by_centre != 0).sum(1).cumsum(0)]),
    )


def _taps(group: int, width: int) -> tuple[int, ...]:
    stretch, bits = group >> width, group & ((1 << width) - 1)
    return tuple(stretch * width + slot for slot in range(width) if bits >> slot & 1)


class RunReader:
    """Reads runs of n consecutive rows out of a matrix [N, C], each as one row of n * C numbers."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows.contiguous()

    def read(self, first: torch.Tensor, length: int) -> torch.Tensor:
        """[len(first), length * C]: rows first .. first + length - 1."""
        count, channels = self.rows.shape
        window = self.rows.as_strided((count - length + 1, length * channels), (channels, 1))
        return window.index_select(0, first)


def groups(block: Block) -> Iterator[tuple[tuple[int, ...], torch.Tensor, torch.Tensor]]:
    """(taps, first neighbour rows, centre rows) of each group."""
    return zip(block.taps, block.firsts, block.centres, strict=True)
