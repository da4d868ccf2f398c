"""Average precision of the KITTI object benchmark, equal to the official program to the digits it prints.

Cars, pedestrians and cyclists; boxes in the image (bbox), seen from above (bev), in space (3d), and orientation (aos);
easy, moderate and hard; means over 40 recalls (R40, the benchmark's own since 2019) and over 11 (R11, of older tables).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lidar.datasets.errors import DatasetError
from lidar.datasets.kitti_results import DONT_CARE, ObjectRows, read_labels, read_results, row_files
from lidar.evaluation.kitti_matching import (
    DROPPED,
    IGNORED,
    POINTS,
    VALID,
    Roles,
    precision_curve,
)
from lidar.evaluation.kitti_overlap import OVERLAPS, Rows, covered, overlapping

CLASSES = ("Car", "Pedestrian", "Cyclist")
METRICS = ("3d", "bev", "bbox", "aos")
DIFFICULTIES = ("easy", "moderate", "hard")
AVERAGES = {"R40": slice(1, None), "R11": slice(0, None, 4)}

# Objects so alike that finding one in place of a class is no mistake.
NEIGHBOURS = {"Car": "Van", "Pedestrian": "Person_sitting"}
_LEAST_HEIGHT = (40, 25, 25)  # pixels
_MOST_OCCLUDED = (0, 1, 2)
_MOST_TRUNCATED = (0.15, 0.3, 0.5)
_NO_ALPHA = -10

# Overlap that a match exceeds, by class and kind of overlap. "strict" is the benchmark's; "loose" is the second set
# that OpenPCDet prints. Figures of the two must not be mixed.
IOU_SETS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "strict": {
        "Car": {"bbox": 0.7, "bev": 0.7, "3d": 0.7},
        "Pedestrian": {"bbox": 0.5, "bev": 0.5, "3d": 0.5},
        "Cyclist": {"bbox": 0.5, "bev": 0.5, "3d": 0.5},
    },
    "loose": {
        "Car": {"bbox": 0.7, "bev": 0.5, "3d": 0.5},
        "Pedestrian": {"bbox": 0.5, "bev": 0.25, "3d": 0.25},
        "Cyclist": {"bbox": 0.5, "bev": 0.25, "3d": 0.25},
    },
}


@dataclass(frozen=True, kw_only=True, eq=False)
class KittiEvaluation:
    """What the benchmark says about a set of results.

    Attributes:
        curves: by class and metric, [3, 41] precision (aos: similarity) by difficulty and recall; NaN where no object
            counts, or where results without alpha leave the orientation unknown.
        valid: by class, [3] objects that count, by difficulty.
        frames: number of frames.
        missing: frames without a result file, taken as frames in which nothing was detected.
        iou: name of the set of least overlaps.
    """

    curves: Mapping[str, Mapping[str, np.ndarray]]
    valid: Mapping[str, np.ndarray]
    frames: int
    missing: tuple[str, ...]
    iou: str

    def average(self, name: str, metric: str, points: str = "R40") -> np.ndarray:
        """Average precision [3] in percent of easy, moderate and hard; NaN where it is undefined."""
        return 100 * self.curves[name][metric][:, AVERAGES[points]].mean(axis=1)

    def json(self) -> dict[str, Any]:
        """{class: {metric: {"R40": [easy, moderate, hard], "R11": [...], "precision": [3 lists of 41]}}}.

        What is undefined is null.
        """
        return {
            name: {
                metric: {
                    **{points: _plain(self.average(name, metric, points)) for points in AVERAGES},
                    "precision": [_plain(curve) for curve in self.curves[name][metric]],
                }
                for metric in METRICS
            }
            for name in CLASSES
        }

    def table(self) -> str:
        """Aligned text: a row for every class and metric, R40 and R11 beside each other."""
        lines = [f"{'':22}{'R40':^27}{'R11':^27}{'objects that count':^24}"]
        lines += [
            f"{'':22}"
            + "".join(f"{d:>9}" for d in (*DIFFICULTIES, *DIFFICULTIES))
            + "   easy / moderate / hard"
        ]
        for name in CLASSES:
            for metric in METRICS:
                kind = "bbox" if metric == "aos" else metric
                title = f"{name} {metric} @{IOU_SETS[self.iou][name][kind]:g}"
                numbers = [v for points in AVERAGES for v in self.average(name, metric, points)]
                cells = "".join(f"{'-':>9}" if np.isnan(v) else f"{v:9.4f}" for v in numbers)
                counts = " / ".join(str(n) for n in self.valid[name]) if metric == METRICS[0] else ""
                lines.append(f"{title:22}{cells}   {counts}".rstrip())
        return "\n".join(lines)


def evaluate_kitti(
    labels: Sequence[ObjectRows],
    results: Sequence[ObjectRows | None],
    *,
    iou: str = "strict",
    frames: Sequence[str] | None = None,
) -> KittiEvaluation:
    """Evaluate results frame by frame against labels.

    Args:
        labels: of each frame.
        results: of each frame; None where there is no file, which counts as nothing detected: what lies in the frame is
            missed. (The official program leaves such a frame out, which flatters.)
        iou: "strict", the benchmark's least overlaps, or "loose".
        frames: names of the frames, to say which are missing; by default 000000, 000001, ...

    Raises:
        ValueError: if there are no frames, not as many results as labels, or no such set of overlaps.
    """
    if iou not in IOU_SETS:
        raise ValueError(f"iou is one of {', '.join(IOU_SETS)}, got {iou!r}")
    if not labels or len(labels) != len(results):
        raise ValueError(f"results and labels go frame by frame, got {len(results)} and {len(labels)} frames")
    frames = [f"{n:06d}" for n in range(len(labels))] if frames is None else frames
    truth = Rows.joined(labels)
    found = Rows.joined([ObjectRows.none(scores=True) if r is None else r for r in results])
    curves: dict[str, dict[str, np.ndarray]] = {name: {} for name in CLASSES}
    valid = {name: np.zeros(3, np.int64) for name in CLASSES}
    regions = truth.rows.names == DONT_CARE
    in_region = covered(_of(truth, regions), found)
    for kind in OVERLAPS:
        pairs = overlapping(truth, found, kind)
        angle = truth.rows.alpha[pairs.truth] - found.rows.alpha[pairs.detection]
        for name in CLASSES:
            least = IOU_SETS[iou][name][kind]
            excused = np.zeros(len(found.rows), bool)
            if kind == "bbox":
                excused[in_region.detection[in_region.overlap > least]] = True
            by_difficulty = [
                precision_curve(
                    pairs,
                    roles=roles(truth.rows, found.rows, name, difficulty),
                    least=least,
                    frame=truth.frame,
                    scores=found.rows.scores,
                    alignment=(1 + np.cos(angle)) / 2,
                    excused=excused,
                )
                for difficulty in range(3)
            ]
            curves[name][kind] = np.stack([c.precision for c in by_difficulty])
            valid[name] = np.array([c.valid for c in by_difficulty])
            if kind == "bbox":
                known = not (found.rows.alpha == _NO_ALPHA).any()
                similarity = np.stack([c.similarity for c in by_difficulty])
                curves[name]["aos"] = similarity if known else np.full((3, POINTS), np.nan)
    missing = tuple(name for name, rows in zip(frames, results, strict=True) if rows is None)
    return KittiEvaluation(curves=curves, valid=valid, frames=len(labels), missing=missing, iou=iou)


def roles(truth: ObjectRows, found: ObjectRows, name: str, difficulty: int) -> Roles:
    """What counts for a class at a difficulty (0 easy, 1 moderate, 2 hard).

    A detection too small in the image is ignored whatever its class is: as in the official program, a small detection
    of another class can take an object of this one.
    """
    least = _LEAST_HEIGHT[difficulty]
    box = truth.image_boxes
    hard = (
        (truth.occluded > _MOST_OCCLUDED[difficulty])
        | (truth.truncated > _MOST_TRUNCATED[difficulty])
        | (box[:, 3] - box[:, 1] < least)
    )
    objects = np.where(truth.names == name, np.where(hard, IGNORED, VALID), DROPPED)
    objects[truth.names == NEIGHBOURS.get(name, "")] = IGNORED
    box = found.image_boxes
    small = np.abs(box[:, 3] - box[:, 1]) < least
    detections = np.where(small, IGNORED, np.where(found.names == name, VALID, DROPPED))
    return Roles(truth=objects, detection=detections)


def evaluate_kitti_folders(
    results: str | Path,
    labels: str | Path,
    *,
    frames: Sequence[str] | None = None,
    iou: str = "strict",
    progress: bool = False,
) -> KittiEvaluation:
    """Evaluate a folder of result files (or one with them in data/) against a folder of labels (or in label_2/).

    Args:
        frames: names of the frames to evaluate; by default all that have labels.
        iou: "strict" or "loose".
        progress: show a bar while files are read.

    Raises:
        DatasetError: if a folder is not there or holds no such files, or a frame to evaluate (if none are named: a
            result) has no labels.
        FrameError: naming the file and the line that cannot be used.
    """
    truth, found = row_files(labels, "label_2"), row_files(results, "data")
    stray = [name for name in (found if frames is None else frames) if name not in truth]
    if stray:
        raise DatasetError(
            f"{labels}: no labels for {len(stray)} frames ({', '.join(stray[:5])}{', ...' if len(stray) > 5 else ''}). "
            f"Restore them, or name the frames to evaluate."
        )
    frames = list(truth) if frames is None else list(frames)
    tables = [
        (read_labels(truth[name]), read_results(found[name]) if name in found else None)
        for name in tqdm(frames, desc="reading", unit="frame", disable=not progress)
    ]
    return evaluate_kitti([t for t, _ in tables], [r for _, r in tables], iou=iou, frames=frames)


def _of(rows: Rows, kept: np.ndarray) -> Rows:
    table = ObjectRows(names=rows.rows.names[kept], values=rows.rows.values[kept])
    return Rows(rows=table, frame=rows.frame[kept])


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in values]
