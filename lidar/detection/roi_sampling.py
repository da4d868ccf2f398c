"""Regions of interest to learn from: which proposals, and what each is to become (OpenPCDet's ProposalTargetLayer)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lidar.detection.batch import GroundTruth
from lidar.detection.overlap import iou_3d


@dataclass(frozen=True, kw_only=True)
class RoIs:
    """Regions of interest of a batch.

    Attributes:
        boxes: [R, 7], without gradient.
        labels: [R] int64 class.
        sample: [R] int64, non-decreasing.
    """

    boxes: torch.Tensor
    labels: torch.Tensor
    sample: torch.Tensor

    def __len__(self) -> int:
        return len(self.sample)


@dataclass(frozen=True, kw_only=True)
class RoITargets:
    """What RoIs are to become.

    Attributes:
        boxes: [R, 7] the object of the RoI's class that overlaps it most; the RoI itself where none does.
        iou: [R] 3-D overlap with it, 0 where none does.
    """

    boxes: torch.Tensor
    iou: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class RoISampling:
    """How RoIs are chosen for training, and what they are judged by.

    Args:
        count: RoIs of each sample.
        foreground_share: at most so many of them are foreground.
        foreground: 3-D IoU from which a RoI is foreground; above it, it is regressed.
        easy: IoU below which background is easy.
        hard_share: share of the background that is hard, where there is any.
        score: IoU where the score target begins to rise from 0, and where it reaches 1.
    """

    count: int = 128
    foreground_share: float = 0.5
    foreground: float = 0.55
    easy: float = 0.1
    hard_share: float = 0.8
    score: tuple[float, float] = (0.25, 0.75)

    def score_target(self, iou: torch.Tensor) -> torch.Tensor:
        """Score [R] in 0..1 a RoI of this overlap is to get."""
        low, high = self.score
        return ((iou - low) / (high - low)).clamp(0, 1)

    def regressed(self, iou: torch.Tensor) -> torch.Tensor:
        """bool [R]: RoIs that are near enough to their object to be moved there."""
        return iou > self.foreground

    def choose(self, iou: torch.Tensor, source: torch.Generator) -> torch.Tensor:
        """Indices [count] int64 of the chosen among the RoIs of one sample, foreground first.

        Foreground is drawn without replacement, unless there is nothing else; background always with replacement, as
        in OpenPCDet.

        Args:
            iou: [n] overlaps, n > 0.
            source: of the draws, on the CPU.
        """
        iou = iou.cpu()
        foreground = (iou >= self.foreground).nonzero().flatten()
        hard = ((iou >= self.easy) & (iou < self.foreground)).nonzero().flatten()
        easy = (iou < self.easy).nonzero().flatten()
        if len(hard) + len(easy) == 0:
            return _drawn(foreground, self.count, source)
        number = min(round(self.foreground_share * self.count), len(foreground))
        chosen = foreground[torch.randperm(len(foreground), generator=source)[:number]]
        rest = self.count - number
        wanted = min(int(rest * self.hard_share), len(hard)) if len(easy) else rest
        return torch.cat([chosen, _drawn(hard, wanted, source), _drawn(easy, rest - wanted, source)])


def match(rois: RoIs, truth: GroundTruth) -> RoITargets:
    """The object of its own class that every RoI overlaps most."""
    boxes, iou = rois.boxes.clone(), rois.boxes.new_zeros(len(rois))
    for sample in range(len(truth.labels)):
        objects, labels = truth.of(sample)
        here = (rois.sample == sample).nonzero().flatten()
        if len(objects) == 0 or len(here) == 0:
            continue
        overlap = iou_3d(rois.boxes[here], objects[:, :7].to(rois.boxes))
        overlap = torch.where(rois.labels[here, None] == labels, overlap, 0.0)
        best, which = overlap.max(dim=1)
        iou[here] = best
        boxes[here] = torch.where(best[:, None] > 0, objects[which, :7].to(boxes), rois.boxes[here])
    return RoITargets(boxes=boxes, iou=iou)


def sample_rois(
    rois: RoIs, truth: GroundTruth, *, sampling: RoISampling, sources: Sequence[torch.Generator]
) -> tuple[RoIs, RoITargets]:
    """RoIs to learn from, `sampling.count` of each sample that has any, with their targets.

    Args:
        rois: proposals.
        truth: ground truth of the batch.
        sampling: the rules.
        sources: one generator per sample, on the CPU.
    """
    targets = match(rois, truth)
    rows = [rois.sample.new_zeros(0)]
    for sample, source in enumerate(sources):
        here = (rois.sample == sample).nonzero().flatten()
        if len(here):
            rows.append(here[sampling.choose(targets.iou[here], source).to(here.device)])
    chosen = torch.cat(rows)
    return (
        RoIs(boxes=rois.boxes[chosen], labels=rois.labels[chosen], sample=rois.sample[chosen]),
        RoITargets(boxes=targets.boxes[chosen], iou=targets.iou[chosen]),
    )


def _drawn(rows: torch.Tensor, count: int, source: torch.Generator) -> torch.Tensor:
    """`count` of the rows with replacement; none if there are none."""
    if len(rows) == 0:
        return rows
    return rows[torch.randint(len(rows), (count,), generator=source)]
