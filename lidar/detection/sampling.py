"""Farthest-point sampling: few points that cover a cloud evenly (Eldar et al. 1997; PV-RCNN's keypoints)."""

import numpy as np
import torch

from lidar.detection.point_set import PointSet


def farthest_points(points: PointSet, *, count: int) -> torch.Tensor:
    """Choose points of each sample one after another, each farthest from those chosen before it.

    The first point of a sample is its first choice. Among points that are equally far any one may be chosen. A sample
    with fewer points than asked for gives all of them and then the same again in the same order, as in OpenPCDet; a
    sample without points gives none.

    Args:
        points: where to choose from.
        count: how many of each sample.

    Returns:
        Rows of `points`, int64, `count` after one another for each sample that has points.

    Raises:
        ValueError: if the count is not positive or a coordinate is not finite.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if not bool(points.xyz.isfinite().all()):
        raise ValueError(
            "farthest-point sampling met coordinates that are NaN or infinite: drop these points"
        )
    present = [(start, size) for start, size in points.spans() if size]
    if not present:
        return torch.zeros(0, dtype=torch.int64, device=points.xyz.device)
    clouds = [points.xyz[start : start + size] for start, size in present]
    chosen = _on_cpu(clouds, count) if points.xyz.device.type == "cpu" else _padded(clouds, count)
    rows = []
    for choice, (start, size) in zip(chosen, present, strict=True):
        first = choice[: min(size, count)]
        rows.append(start + first.repeat(-(-count // len(first)))[:count])
    return torch.cat(rows)


def _on_cpu(clouds: list[torch.Tensor], count: int) -> list[torch.Tensor]:
    return [torch.from_numpy(_in_strips(cloud.detach().numpy(), min(count, len(cloud)))) for cloud in clouds]


def _in_strips(xyz: np.ndarray, count: int) -> np.ndarray:
    """Indices [count] of one cloud [N, 3].

    A new point is nearer than all before it only to points within the distance it was itself chosen at. With the
    points sorted along the longer horizontal axis these are a short slice, so that most steps touch a few per cent of
    the cloud; numpy because its calls cost a third of torch's at this size.
    """
    axis = int(np.ptp(xyz[:, :2], axis=0).argmax())
    order = np.argsort(xyz[:, axis], kind="stable")
    columns = np.ascontiguousarray(xyz[order].T)
    along = columns[axis]
    nearest = np.full(len(xyz), np.inf, xyz.dtype)
    squares, scratch = np.empty_like(nearest), np.empty_like(nearest)
    chosen = np.empty(count, np.int64)
    last = int(np.flatnonzero(order == 0)[0])
    for step in range(count):
        chosen[step] = last
        # A little more than the distance, for rounding.
        reach = float(nearest[last]) ** 0.5 * 1.001
        if np.isinf(reach):
            low, high = 0, len(along)
        else:
            # Bounds of the array's own type: other ones would have it converted each time.
            low, high = along.searchsorted(np.array((along[last] - reach, along[last] + reach), xyz.dtype))
            high = max(high, last + 1)
        total, part = squares[low:high], scratch[low:high]
        for k, column in enumerate(columns):
            np.subtract(column[low:high], column[last], out=part)
            np.multiply(part, part, out=part if k else total)
            if k:
                np.add(total, part, out=total)
        here = nearest[low:high]
        np.minimum(here, total, out=here)
        nearest[last] = -1  # chosen: never again, not even where all that is left is a copy of it
        last = int(nearest.argmax())
    return order[chosen]


def _padded(clouds: list[torch.Tensor], count: int) -> list[torch.Tensor]:
    """All clouds at once and without waiting for the device: what a GPU wants."""
    device, size = clouds[0].device, max(map(len, clouds))
    xyz = torch.nn.utils.rnn.pad_sequence(clouds, batch_first=True).permute(2, 0, 1).contiguous()
    there = torch.arange(size, device=device) < torch.tensor([len(c) for c in clouds], device=device)[:, None]
    nearest = torch.where(there, torch.inf, -torch.inf)
    chosen = torch.zeros(len(clouds), count, dtype=torch.int64, device=device)
    last = chosen[:, :1]
    for step in range(min(count, size)):
        chosen[:, step : step + 1] = last
        offset = xyz - xyz.gather(2, last.expand(3, -1, -1))
        nearest = torch.minimum(nearest, offset.square_().sum(0)).scatter_(1, last, -1.0)
        last = nearest.argmax(1, keepdim=True)
    return list(chosen)
