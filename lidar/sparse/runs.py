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

# Centres per block, which bounds the memory of the products, and items per gather, so that a gathered piece is
# still in the processor's cache when it is multiplied. Measured on a CPU; a GPU wants few large products instead.
CPU_BLOCK, CPU_GROUP = 16384, 2048
GPU_BLOCK, GPU_GROUP = 2**20, 2**20


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Which taps of each centre's window hold a neighbour.

    Attributes:
        present: [S, N + 1] uint8 or int16: for each x stretch of the kernel (z, y order) and each centre, one bit
            per tap. The last column takes the writes of pairs that do not exist.
        first: [S, N + 1] int64: row of the neighbour at the lowest tap present.
        kernel: kernel size along z, y, x.
    """

    present: torch.Tensor
    first: torch.Tensor
    kernel: Shape

    @classmethod
    def empty(cls, *, kernel: Shape, centres: int, device: torch.device) -> "Windows":
        """No neighbour anywhere.

        Raises:
            ValueError: if the kernel is wider along x than the bits can tell.
        """
        if kernel[2] > 9:
            raise ValueError(f"kernels up to 9 wide along x are supported, got {kernel} (z, y, x)")
        size = (kernel[0] * kernel[1], centres + 1)
        # Few bits sort fast: see `_block`.
        bits = torch.uint8 if size[0] << kernel[2] <= 256 else torch.int16
        return cls(
            present=torch.zeros(size, dtype=bits, device=device),
            first=torch.zeros(size, dtype=torch.int64, device=device),
            kernel=kernel,
        )

    def add(self, slot: int, places: torch.Tensor, neighbours: torch.Tensor) -> None:
        """Note the pairs at one place of the stretches; slots must come in descending order: the lowest stays first.

        Args:
            slot: tap along x.
            places: [P] stretch * (N + 1) + centre, none twice but those of the last column.
            neighbours: [P] rows.
        """
        bit = self.present.new_full((1,), 1 << slot).expand(len(places))
        self.present.view(-1).scatter_add_(0, places, bit)
        self.first.view(-1).scatter_(0, places, neighbours)

    def blocks(self) -> tuple["Block", ...]:
        """The items, in blocks of centres."""
        centres = self.present.shape[1] - 1
        block, group = _limits(self.present.device)
        return tuple(
            self._block(start, min(start + block, centres), longest=group)
            for start in range(0, centres, block)
        )

    def _block(self, start: int, stop: int, *, longest: int) -> "Block":
        count, width = stop - start, self.kernel[2]
        present = self.present[:, start:stop]
        stretches = len(present)
        numbers = torch.arange(stretches, dtype=present.dtype, device=present.device) << width
        group = torch.where(present > 0, present + numbers[:, None], 0).view(-1)
        _, place = torch.sort(group, stable=True)
        missing, *sizes = torch.bincount(group, minlength=stretches << width).tolist()
        place = place[missing:]  # (stretch, centre) of each item, group after group
        firsts = self.first[:, start:stop].reshape(-1).index_select(0, place)
        centres = place % count
        taps, lengths = [], []
        for number, size in enumerate(sizes, start=1):
            whole, rest = divmod(size, longest)
            pieces = [longest] * whole + [rest] * (rest > 0)
            taps += [_taps(number, width)] * len(pieces)
            lengths += pieces
        return Block(
            count=count,
            taps=tuple(taps),
            sizes=tuple(lengths),
            firsts=firsts.split(lengths) if lengths else (),
            centres=(centres + start).split(lengths) if lengths else (),
            **_by_centre(centres, count),
        )


def pair_blocks(pairs: list[tuple[int, torch.Tensor, torch.Tensor]], *, centres: int) -> tuple["Block", ...]:
    """Blocks in which every pair is an item of its own, for windows whose neighbours are seldom side by side.

    Args:
        pairs: for each tap its number, the centre rows (ascending) and the neighbour rows.
        centres: number of centre rows.
    """
    if centres == 0 or not pairs:
        return ()
    block, longest = _limits(pairs[0][1].device)
    starts = list(range(0, centres, block))
    groups: list[list[tuple[int, torch.Tensor, torch.Tensor]]] = [[] for _ in starts]
    for tap, centre, neighbour in pairs:
        number = (
            torch.bincount(centre // block, minlength=len(starts)).tolist() if starts[1:] else [len(centre)]
        )
        for members, here, there in zip(groups, centre.split(number), neighbour.split(number), strict=True):
            pieces = zip(here.split(longest), there.split(longest), strict=True)
            members += [(tap, *piece) for piece in pieces if len(here)]
    blocks = []
    for start, members in zip(starts, groups, strict=True):
        count = min(block, centres - start)
        rows = torch.cat([pairs[0][1][:0], *(here for _, here, _ in members)])
        blocks.append(
            Block(
                count=count,
                taps=tuple((tap,) for tap, _, _ in members),
                sizes=tuple(len(here) for _, here, _ in members),
                firsts=tuple(there for _, _, there in members),
                centres=tuple(here for _, here, _ in members),
                **_by_centre(rows - start, count),
            )
        )
    return tuple(blocks)


def _by_centre(centres: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
    """The items in the order of their centres [I], and where each centre's begin."""
    # 16 bits where they do: half the passes of the radix sort.
    small = centres.to(torch.int16 if count <= torch.iinfo(torch.int16).max else torch.int32)
    _, pairs = torch.sort(small, stable=True)
    per_centre = torch.bincount(centres, minlength=count)
    return {"pairs": pairs, "offsets": torch.cat([per_centre.new_zeros(1), per_centre.cumsum(0)])}


def _limits(device: torch.device) -> tuple[int, int]:
    """Centres per block and items per group."""
    return (CPU_BLOCK, CPU_GROUP) if device.type == "cpu" else (GPU_BLOCK, GPU_GROUP)


def _taps(group: int, width: int) -> tuple[int, ...]:
    stretch, bits = group >> width, group & ((1 << width) - 1)
    return tuple(stretch * width + slot for slot in range(width) if bits >> slot & 1)


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

    def groups(self) -> Iterator[tuple[tuple[int, ...], torch.Tensor, torch.Tensor]]:
        """(taps, first neighbour rows, centre rows) of each group."""
        return zip(self.taps, self.firsts, self.centres, strict=True)


class RunReader:
    """Reads runs of n consecutive rows out of a matrix [N, C], each as one row of n * C numbers."""

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows.contiguous()
        self._windows: dict[int, torch.Tensor] = {}

    def read(self, first: torch.Tensor, length: int) -> torch.Tensor:
        """[len(first), length * C]: rows first .. first + length - 1."""
        window = self._windows.get(length)
        if window is None:
            count, channels = self._rows.shape
            size, stride = (count - length + 1, length * channels), (channels, 1)
            window = self._windows[length] = self._rows.as_strided(size, stride)
        return window.index_select(0, first)
