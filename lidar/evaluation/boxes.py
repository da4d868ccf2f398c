"""Average precision of boxes without an image: KITTI's matching and curves for any classes in any sensor's frame."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lidar.detection.batch import Detections
from lidar.detection.overlap import paired_bev_iou, paired_iou_3d
from lidar.evaluation.kitti import AVERAGES
from lidar.evaluation.kitti_matching import DROPPED, IGNORED, VALID, Roles, precision_curve
from lidar.evaluation.kitti_overlap import Pairs, same_frame

METRICS = ("3d", "bev")


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxFrame:
    """One frame.

    Attributes:
        detections: found.
        boxes, labels: [M, 7+] and [M] there.
        counts: [M] LiDAR points of each object.
    """

    detections: Detections
    boxes: torch.Tensor
    labels: torch.Tensor
    counts: torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxEvaluation:
    """Curves [41] by class and metric, NaN where no object counts; objects that count, by class; least overlaps."""

    curves: Mapping[str, Mapping[str, np.ndarray]]
    valid: Mapping[str, int]
    least: Mapping[str, float]
    frames: int

    def average(self, name: str, metric: str, points: str = "R40") -> float:
        """Average precision in percent."""
        return float(100 * self.curves[name][metric][AVERAGES[points]].mean())

    def json(self) -> dict[str, Any]:
        """{class: {"objects": n, "iou": t, metric: {"R40": ap, "R11": ap, "precision": [41]}}}; undefined is null."""
        return {
            name: {
                "objects": self.valid[name],
                "iou": self.least[name],
                **{
                    metric: {
                        **{points: _plain(self.average(name, metric, points)) for points in AVERAGES},
                        "precision": [_plain(v) for v in curve],
                    }
                    for metric, curve in by_metric.items()
                },
            }
            for name, by_metric in self.curves.items()
        }

    def table(self) -> str:
        """Aligned text, a row for every class."""
        lines = [
            f"{'class':22}{'IoU':>6}{'objects':>9}{'3d R40':>9}{'3d R11':>9}{'bev R40':>9}{'bev R11':>9}"
        ]
        for name in self.curves:
            values = [self.average(name, metric, points) for metric in METRICS for points in AVERAGES]
            shown = "".join(f"{'-' if np.isnan(v) else f'{v:.2f}':>9}" for v in values)
            lines.append(f"{name:22}{self.least[name]:>6g}{self.valid[name]:>9}{shown}")
        return "\n".join(lines)


def evaluate_boxes(
    frames: Sequence[BoxFrame], *, classes: Sequence[str], least: Mapping[str, float], min_points: int = 5
) -> BoxEvaluation:
    """KITTI's average precision of detections against objects in the sensor frame.

    Objects with fewer points than `min_points` may be found or missed: they count neither way.

    Args:
        classes: names; the place is the label.
        least: overlap that a match exceeds, by class.

    Raises:
        ValueError: if there are no frames, or a class has no least overlap.
    """
    missing = [name for name in classes if name not in least]
    if not frames or missing:
        raise ValueError(
            f"evaluation needs frames and a least overlap for {', '.join(missing) or 'every class'}"
        )
    boxes, truth_frame = _joined([f.boxes[:, :7] for f in frames])
    found, found_frame = _joined([f.detections.boxes[:, :7] for f in frames])
    labels = torch.cat([f.labels for f in frames]).numpy()
    counts = torch.cat([f.counts for f in frames]).numpy()
    scores = torch.cat([f.detections.scores for f in frames]).double().numpy()
    named = torch.cat([f.detections.labels for f in frames]).numpy()
    i, j = same_frame(truth_frame, found_frame)
    a, b = boxes[i], found[j]
    curves: dict[str, dict[str, np.ndarray]] = {name: {} for name in classes}
    valid = {}
    for metric, paired in (("3d", paired_iou_3d), ("bev", paired_bev_iou)):
        overlap = paired(a, b).numpy()
        there = overlap > 0
        pairs = Pairs(truth=i[there], detection=j[there], overlap=overlap[there])
        for label, name in enumerate(classes):
            mine = np.where(counts >= min_points, VALID, IGNORED)
            curve = precision_curve(
                pairs,
                roles=Roles(
                    truth=np.where(labels == label, mine, DROPPED),
                    detection=np.where(named == label, VALID, DROPPED),
                ),
                least=least[name],
                frame=truth_frame,
                scores=scores,
                alignment=np.ones(int(there.sum())),
                excused=np.zeros(len(scores), bool),
            )
            curves[name][metric], valid[name] = curve.precision, curve.valid
    return BoxEvaluation(curves=curves, valid=valid, least=dict(least), frames=len(frames))


def _joined(boxes: Sequence[torch.Tensor]) -> tuple[torch.Tensor, np.ndarray]:
    place = np.repeat(np.arange(len(boxes)), [len(b) for b in boxes])
    return torch.cat(list(boxes)).double(), place


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
