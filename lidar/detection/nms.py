"""Suppression of duplicates among rotated boxes."""

import torch

from lidar.detection.boxes import check_boxes
from lidar.detection.overlap import paired_bev_iou, touching


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
    first, second = touching(ranked, ranked)
    better = first < second
    first, second = first[better], second[better]
    over = paired_bev_iou(ranked[first], ranked[second]) > threshold
    return order[_greedy(first[over], second[over], len(order))][:after]


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
