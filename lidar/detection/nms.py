"""Suppression of duplicates among rotated boxes."""

import torch

from lidar.detection.boxes import check_boxes
from lidar.detection.overlap import likely, paired_bev_iou, touching

# Boxes decided at a time, at first: what they suppress further down is never compared among itself. Where they suppress
# little, that saves little, and blocks grow.
_BLOCK = 256


@torch.no_grad()
def rotated_nms(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    *,
    threshold: float,
    before: int | None = None,
    after: int | None = None,
) -> torch.Tensor:
    """Greedy non-maximum suppression: best first, a box is kept unless it overlaps a kept one by more than a threshold.

    Args:
        boxes: [N, 7+].
        scores: [N]; among equal ones the earlier box comes first.
        threshold: greatest IoU seen from above of two boxes that are both kept.
        before: look at so many of the best boxes only.
        after: keep so many at most.

    Returns:
        Indices [K] int64 of the kept boxes, best first.

    Raises:
        ValueError: on wrong shapes or numbers that are not finite.
    """
    check_boxes(boxes)
    if scores.shape != boxes.shape[:1]:
        raise ValueError(f"one score per box, got {tuple(scores.shape)} for {len(boxes)} boxes")
    if not (boxes[:, :7].isfinite().all() and scores.isfinite().all()):
        raise ValueError("boxes or scores hold NaN or infinity: the detector's output is broken")
    order = scores.argsort(descending=True, stable=True)[:before]
    ranked = boxes[order, :7]
    undecided = torch.arange(len(order), device=order.device)
    kept: list[torch.Tensor] = []
    count, size = 0, _BLOCK
    while len(undecided) and (after is None or count < after):
        block, undecided = undecided[:size], undecided[size:]
        better, worse = touching(ranked[block], ranked[block], over=threshold)
        above = better < worse
        pairs = better[above], worse[above]
        over = _over(ranked[block], ranked[block], pairs, threshold)
        kept.append(block[_greedy(*over, len(block))])
        count += len(kept[-1])
        size *= 1 + (2 * len(kept[-1]) > len(block))
        best, rest = ranked[kept[-1]], ranked[undecided]
        _, gone = _over(best, rest, touching(best, rest, over=threshold), threshold)
        alive = torch.ones_like(undecided, dtype=torch.bool)
        alive[gone] = False
        undecided = undecided[alive]
    return order[torch.cat(kept)][:after] if kept else order


def _over(
    a: torch.Tensor, b: torch.Tensor, pairs: tuple[torch.Tensor, torch.Tensor], threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of the pairs (row of a, row of b) whose overlap exceeds the threshold."""
    rows, columns = likely(a, b, pairs, over=threshold)
    over = paired_bev_iou(a.index_select(0, rows), b.index_select(0, columns)) > threshold
    return rows[over], columns[over]


def _greedy(better: torch.Tensor, worse: torch.Tensor, count: int) -> torch.Tensor:
    """Which of `count` ranked boxes [count] survive, given every pair that excludes one another.

    Who survives depends on better ones only, so that repeating the rule settles from the top in as many rounds as the
    longest chain of suppressions.
    """
    alive = torch.ones(count, dtype=torch.bool, device=better.device)
    while True:
        settled = torch.ones_like(alive)
        settled[worse[alive[better]]] = False
        if torch.equal(settled, alive):
            return alive
        alive = settled
