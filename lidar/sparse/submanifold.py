"""Neighbours of every active site inside a submanifold kernel's window."""

from math import prod

import torch

from lidar.sparse.runs import Windows
from lidar.sparse.sites import Shape, Sites, linear_keys

# Grids up to this many cells get a row number per cell (16 MB); larger ones are searched by bisection.
DENSE_CELLS = 2**22


def submanifold_windows(sites: Sites, kernel: Shape) -> Windows:
    """The window of each site, on the sites themselves.

    Keys carry guard cells as wide as the kernel's radius, so a neighbour outside the grid is simply not found.

    Raises:
        ValueError: if a kernel size is even.
    """
    if any(size % 2 == 0 or size < 1 for size in kernel):
        raise ValueError(f"a submanifold convolution needs an odd kernel, got {kernel}")
    radius = [size // 2 for size in kernel]
    depth, height, width = (cells + r for cells, r in zip(sites.shape, radius, strict=True))
    keys = linear_keys(sites.coordinates, (depth, height, width))
    # From a centre to the lowest tap of each x stretch.
    stretch = torch.arange(kernel[0] * kernel[1], device=keys.device)
    dz, dy = stretch // kernel[1] - radius[0], stretch % kernel[1] - radius[1]
    steps = ((dz * height + dy) * width - radius[2])[:, None]
    windows = Windows.empty(kernel=kernel, centres=len(sites), device=keys.device)
    cells = sites.batch_size * prod((depth, height, width))
    if cells <= DENSE_CELLS:
        _look_up(windows, keys, steps, cells=cells)
    else:
        _search(windows, keys, steps)
    return windows


def _look_up(windows: Windows, keys: torch.Tensor, steps: torch.Tensor, *, cells: int) -> None:
    """Read each neighbour's row from a table over all cells."""
    count, width = len(keys), windows.kernel[2]
    reach = -int(steps[0])
    row_of = torch.full((cells + 2 * reach,), -1, dtype=torch.int32, device=keys.device)
    row_of.index_copy_(0, keys + reach, torch.arange(count, dtype=torch.int32, device=keys.device))
    lowest = keys + (steps + reach)
    present = windows.present[:, :count]
    first = row_of.new_zeros(lowest.shape)
    for slot in reversed(range(width)):
        row = row_of.index_select(0, (lowest + slot).view(-1)).view_as(lowest)
        hit = row >= 0
        present += hit.to(present.dtype) << slot
        first = torch.where(hit, row, first)
    windows.first[:, :count] = first


def _search(windows: Windows, keys: torch.Tensor, steps: torch.Tensor) -> None:
    """Bisect the sorted keys.

    Neighbours along x follow each other in key order: one search finds a whole stretch. The pairs of a tap and of
    its mirror image are the same with the two ends exchanged, so half of the stretches are searched.
    """
    count, width = len(keys), windows.kernel[2]
    stretches, own = len(steps), len(steps) // 2
    rows = torch.arange(count, device=keys.device)
    present, first = windows.present[:, :count], windows.first[:, :count]
    # A key past every neighbour: reading one place beyond the end finds it.
    keys_padded = torch.cat([keys, keys.new_full((1,), torch.iinfo(torch.int64).max)])

    def look(low: int, place: torch.Tensor, slots: range) -> None:
        """Note the neighbours of stretches low, low + 1, ... at `place` [T, N] and after, slot by slot."""
        here = torch.arange(low, low + len(place), device=keys.device)[:, None]
        mirror = (stretches - 1 - here) * (count + 1)
        centres = rows.expand_as(place).reshape(-1)
        for slot in slots:
            wanted = keys + (steps[low : low + len(place)] + slot)
            hit = keys_padded.index_select(0, place.view(-1)).view_as(place) == wanted
            present[low : low + len(place)] += hit.to(present.dtype) << slot
            # Slots ascend here, so they descend at the other end.
            windows.add(width - 1 - slot, (mirror + torch.where(hit, place, count)).view(-1), centres)
            place = place + hit

    present[own] = 1 << width // 2
    first[own] = rows
    look(own, (rows + 1)[None], range(width // 2 + 1, width))
    if stretches > 1:
        place = torch.searchsorted(keys, keys + steps[own + 1 :])
        first[own + 1 :] = place
        look(own + 1, place, range(width))
