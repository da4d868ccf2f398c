"""Gaussian peaks on heat maps: how wide an object's peak is, and drawing all peaks of a batch at once (CornerNet)."""

import torch


def gaussian_radius(length: torch.Tensor, width: torch.Tensor, *, overlap: float) -> torch.Tensor:
    """By how many cells a box may be off and still overlap the true one by `overlap`, in three arrangements; the least.

    CornerNet's formula with its slip, kept as all centre heads since have it: the roots of the second and third
    quadratic are divided by 2, not by 2a.

    Args:
        length, width: extents [N] in cells.
        overlap: IoU in (0, 1).
    """
    total, area = length + width, length * width
    r1 = (total + (total**2 - 4 * area * (1 - overlap) / (1 + overlap)).sqrt()) / 2
    r2 = (2 * total + (4 * total**2 - 16 * (1 - overlap) * area).sqrt()) / 2
    b3 = -2 * overlap * total
    r3 = (b3 + (b3**2 - 16 * overlap * (overlap - 1) * area).sqrt()) / 2
    return torch.stack([r1, r2, r3]).amin(dim=0)


def draw_peaks(
    shape: tuple[int, int, int, int],
    *,
    sample: torch.Tensor,
    label: torch.Tensor,
    cell: torch.Tensor,
    radius: torch.Tensor,
) -> torch.Tensor:
    """Heat maps [B, C, H, W] float32 with a peak of height 1 at the cell of each object, the larger where two meet.

    A peak is exp(-d^2 / (2 sigma^2)) with sigma = (2 radius + 1) / 6 in the square of cells up to `radius` away, 0
    outside. CornerNet's cut below machine epsilon never bites: in the corner of the square it is above exp(-9).

    Args:
        shape: B, C, H, W.
        sample, label: [N] int64 of each object.
        cell: [N, 2] int64, y and x, on the map.
        radius: [N] int64 in cells.
    """
    _, channels, height, width = shape
    heat = torch.zeros(shape, device=cell.device)
    if len(cell) == 0:
        return heat
    # One window for all, as wide as the widest: cells outside an object's own square are left at 0.
    reach = torch.arange(-int(radius.max()), int(radius.max()) + 1, device=cell.device)
    y, x = cell[:, :1] + reach, cell[:, 1:] + reach
    sigma = (2 * radius + 1) / 6
    bell = torch.exp(-(reach**2) / (2 * sigma[:, None] ** 2))
    bell = torch.where(reach.abs() <= radius[:, None], bell, 0.0)
    rows = torch.where((y >= 0) & (y < height), bell, 0.0)
    columns = torch.where((x >= 0) & (x < width), bell, 0.0)
    plane = (sample * channels + label).view(-1, 1, 1)
    index = (plane * height + y.clamp(0, height - 1)[:, :, None]) * width + x.clamp(0, width - 1)[:, None]
    values = rows[:, :, None] * columns[:, None]
    heat.view(-1).scatter_reduce_(0, index.flatten(), values.flatten(), reduce="amax")
    return heat
