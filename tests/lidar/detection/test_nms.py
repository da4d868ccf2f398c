"""Suppression of duplicates against its definition."""

import pytest
import torch

from lidar.detection.nms import rotated_nms
from lidar.detection.overlap import bev_iou


def clustered(count: int, objects: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes as a detector gives them: many around each object."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(objects, 7, generator=generator) * torch.tensor([70.0, 80, 2, 0, 0, 0, 6.28])
    centres += torch.tensor([0, -40, -2, 3.9, 1.6, 1.5, 0])
    noise = torch.randn(count, 7, generator=generator) * torch.tensor([0.4, 0.4, 0.1, 0.2, 0.1, 0.1, 0.1])
    which = torch.randint(objects, (count,), generator=generator)
    return centres[which] + noise, torch.rand(count, generator=generator)


def by_definition(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    overlap = bev_iou(boxes, boxes)
    kept: list[int] = []
    for candidate in scores.argsort(descending=True, stable=True).tolist():
        if not kept or float(overlap[kept, candidate].max()) <= threshold:
            kept.append(candidate)
    return kept


@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.7])
@pytest.mark.parametrize("objects", [8, 900])
def test_equals_the_definition(threshold: float, objects: int) -> None:
    boxes, scores = clustered(900, objects, seed=objects)  # more than one block
    assert rotated_nms(boxes, scores, threshold=threshold).tolist() == by_definition(boxes, scores, threshold)


def test_order_of_the_input_does_not_matter() -> None:
    boxes, scores = clustered(500, 20, seed=1)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(2))
    shuffled = rotated_nms(boxes[order], scores[order], threshold=0.1)
    assert torch.equal(order[shuffled], rotated_nms(boxes, scores, threshold=0.1))


def test_limits_before_and_after() -> None:
    boxes, scores = clustered(400, 400, seed=3)
    best = scores.argsort(descending=True)[:50]
    expected = best[rotated_nms(boxes[best], scores[best], threshold=0.1)]
    assert torch.equal(rotated_nms(boxes, scores, threshold=0.1, before=50), expected)
    everything = rotated_nms(boxes, scores, threshold=0.1)
    assert torch.equal(rotated_nms(boxes, scores, threshold=0.1, after=7), everything[:7])


def test_a_suppressed_box_suppresses_nobody() -> None:
    boxes = torch.zeros(3, 7)
    boxes[:, 0] = torch.tensor([0.0, 1.0, 2.0])
    boxes[:, 3:6] = torch.tensor([2.0, 1.0, 1.0])  # neighbours overlap by a third, the ends only touch
    assert rotated_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), threshold=0.3).tolist() == [0, 2]
    assert rotated_nms(boxes, torch.tensor([0.8, 0.9, 0.7]), threshold=0.3).tolist() == [1]


def test_equal_scores_keep_the_first() -> None:
    boxes = torch.tensor([[0, 0, 0, 2, 1, 1, 0.0]]).repeat(3, 1)
    assert rotated_nms(boxes, torch.ones(3), threshold=0.5).tolist() == [0]


def test_no_boxes() -> None:
    assert rotated_nms(torch.zeros(0, 7), torch.zeros(0), threshold=0.5).tolist() == []


def test_broken_input_is_refused() -> None:
    with pytest.raises(ValueError, match="one score per box"):
        rotated_nms(torch.zeros(2, 7), torch.zeros(3), threshold=0.5)
    with pytest.raises(ValueError, match="NaN"):
        rotated_nms(torch.full((1, 7), float("nan")), torch.zeros(1), threshold=0.5)
    with pytest.raises(ValueError, match="NaN"):
        rotated_nms(torch.zeros(1, 7), torch.full((1,), float("inf")), threshold=0.5)
