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

METRICS = ("3d", "bev", "centre")


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxFrame:
    """One frame.

    Attributes:
        detections: found.
        boxes, labels: [M, 7+] and [M] there.
        counted: [M] bool: objects that count; the others may be found or missed.
    """

    detections: Detections
    boxes: torch.Tensor
    labels: torch.Tensor
    counted: torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxEvaluation:
    """Curves [41] by class and metric, NaN where no object counts; of every class the objects that count, least overlap
    and reach."""

    curves: Mapping[str, Mapping[str, np.ndarray]]
    valid: Mapping[str, int]
    least: Mapping[str, float]
    reach: Mapping[str, float]
    frames: int

    def average(self, name: str, metric: str, points: str = "R40") -> float:
        """Average precision in percent."""
        return float(100 * self.curves[name][metric][AVERAGES[points]].mean())

    def json(self) -> dict[str, Any]:
        """{class: {"objects", "iou", "reach", metric: {"R40", "R11", "precision": [41]}}}; undefined is null."""
        return {
            name: {
                "objects": self.valid[name],
                "iou": self.least[name],
                "reach": self.reach[name],
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
        heads = "".join(f"{f'{metric} {points}':>12}" for metric in METRICS for points in AVERAGES)
        lines = [f"{'class':22}{'IoU':>6}{'reach, m':>10}{'objects':>9}{heads}"]
        for name in self.curves:
            values = [self.average(name, metric, points) for metric in METRICS for points in AVERAGES]
            shown = "".join(f"{'-' if np.isnan(v) else f'{v:.2f}':>12}" for v in values)
            lines.append(
                f"{name:22}{self.least[name]:>6g}{self.reach[name]:>10g}{self.valid[name]:>9}{shown}"
            )
        return "\n".join(lines)


def evaluate_boxes(
    frames: Sequence[BoxFrame],
    *,
    classes: Sequence[str],
    least: Mapping[str, float],
    reach: Mapping[str, float],
) -> BoxEvaluation:
    """KITTI's average precision of detections against objects in the sensor frame.

    Matches are by overlap in space ("3d") or from above ("bev"), or by the distance of centres seen from above
    ("centre"), which asks for no heading and no size.

    Args:
        classes: names; the place is the label.
        least: overlap that a match exceeds, by class.
        reach: metres between centres that a match stays below, by class.

    Raises:
        ValueError: if there are no frames, or a class has no least overlap or reach.
    """
    missing = [name for name in classes if name not in least or name not in reach]
    if not frames or missing:
        raise ValueError(
            f"evaluation needs frames, a least overlap and a reach for {', '.join(missing) or 'every class'}"
        )
    boxes, truth_frame = _joined([f.boxes[:, :7] for f in frames])
    found, found_frame = _joined([f.detections.boxes[:, :7] for f in frames])
    labels = torch.cat([f.labels for f in frames]).numpy()
    counted = torch.cat([f.counted for f in frames]).numpy()
    scores = torch.cat([f.detections.scores for f in frames]).double().numpy()
    named = torch.cat([f.detections.labels for f in frames]).numpy()
    i, j = same_frame(truth_frame, found_frame)
    # Others match under no metric; with many detections they are nearly all, and overlaps take memory.
    alike = labels[i] == named[j]
    i, j = i[alike], j[alike]
    a, b = boxes[i], found[j]
    overlaps = {"3d": paired_iou_3d(a, b).numpy(), "bev": paired_bev_iou(a, b).numpy()}
    apart = torch.linalg.vector_norm(a[:, :2] - b[:, :2], dim=1).numpy()
    mine = np.where(counted, VALID, IGNORED)
    curves: dict[str, dict[str, np.ndarray]] = {name: {} for name in classes}
    valid = {}
    for label, name in enumerate(classes):
        roles = Roles(
            truth=np.where(labels == label, mine, DROPPED),
            detection=np.where(named == label, VALID, DROPPED),
        )
        closeness = {**overlaps, "centre": 1 - apart / reach[name]}
        for metric in METRICS:
            there = closeness[metric] > 0
            curve = precision_curve(
                Pairs(truth=i[there], detection=j[there], overlap=closeness[metric][there]),
                roles=roles,
                least=0 if metric == "centre" else least[name],
                frame=truth_frame,
                scores=scores,
                alignment=np.ones(int(there.sum())),
                excused=np.zeros(len(scores), bool),
            )
            curves[name][metric], valid[name] = curve.precision, curve.valid
    return BoxEvaluation(curves=curves, valid=valid, least=dict(least), reach=dict(reach), frames=len(frames))


def _joined(boxes: Sequence[torch.Tensor]) -> tuple[torch.Tensor, np.ndarray]:
    place = np.repeat(np.arange(len(boxes)), [len(b) for b in boxes])
    return torch.cat(list(boxes)).double(), place


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
