"""By which rules detections are evaluated: those that go with the data, for figures and for pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detection import Settings

from lidar.datasets.kitti_calib import KittiCalib
from lidar.datasets.kitti_labels import label_paths
from lidar.datasets.kitti_results import DONT_CARE, ObjectRows, boxes_of, read_labels, result_rows, write_rows
from lidar.datasets.sources import FrameRef
from lidar.detection.batch import Detections
from lidar.detection.benchmarks import LabelledKitti, LabelledNuScenes
from lidar.detection.boxes import points_in_boxes
from lidar.detection.failures import JudgedFrame, Matching, Objects, by_distance, by_overlap, judge
from lidar.detection.inference import FoundFrame
from lidar.detection.labels import OTHER, ClassNames, LabelledSource
from lidar.detection.report import Curves
from lidar.evaluation.boxes import BoxEvaluation, BoxFrame, evaluate_boxes
from lidar.evaluation.kitti import DIFFICULTIES, IOU_SETS, NEIGHBOURS, KittiEvaluation, evaluate_kitti
from lidar.evaluation.nuscenes import NuScenesEvaluation, evaluate_nuscenes, evaluate_nuscenes_tables
from lidar.evaluation.nuscenes_submission import sample_boxes, write_submission
from lidar.grid import Range, inside

UNKNOWN = 3  # occlusion, in KITTI's labels
LARGE = 3.0  # metres; longer objects are matched at an overlap of 0.7 and centres 1 m apart, others at 0.5 and 0.6 m
LEAST_POINTS = 5  # of an object that counts, where the data set has no rule
CLOSE = 2.0  # metres between centres: nuScenes' threshold for the errors of what was found


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenFrame:
    """What was found in a frame and what is there; the points are not kept, a whole data set would not fit.

    Attributes:
        found: without its points.
        objects: all that are labelled.
        detection_points: [D] LiDAR points in each detection.
    """

    found: FoundFrame
    objects: Objects
    detection_points: torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """Figures, the rules they follow in words, their curves, and how pictures tell right from wrong.

    `sensor_frame` has figures by overlap and by centres of the boxes themselves, where the rules are not the devkit's.
    """

    result: KittiEvaluation | BoxEvaluation | NuScenesEvaluation
    sensor_frame: BoxEvaluation | None
    rules: str
    curves: Curves
    matching: Matching


def seen_frame(
    found: FoundFrame, *, source: LabelledSource, classes: ClassNames, point_range: Range | None
) -> SeenFrame:
    """A frame without its points.

    Args:
        point_range: objects whose centre lies outside count neither way; None: all count.
    """
    return SeenFrame(
        found=replace(found, points=found.points[:0]),
        objects=objects_of(source, found.ref, points=found.points, classes=classes, point_range=point_range),
        detection_points=points_in_boxes(found.points, found.detections.boxes).sum(dim=1),
    )


def objects_of(
    source: LabelledSource,
    ref: FrameRef,
    *,
    points: torch.Tensor,
    classes: ClassNames,
    point_range: Range | None = None,
) -> Objects:
    """All labelled objects of a frame; which of them count follows KITTI's difficulty, or else their points."""
    labels = source.labels(ref)
    boxes = torch.from_numpy(labels.boxes)
    held = (
        points_in_boxes(points, boxes).sum(dim=1)
        if labels.counts is None
        else torch.from_numpy(labels.counts)
    )
    own = torch.from_numpy(classes.labels(labels.names))
    if labels.difficulty is not None:
        counted = torch.from_numpy(labels.difficulty >= 0)
    else:
        counted = held >= (LEAST_POINTS if labels.counts is None else 1)
    counted &= own != OTHER
    if point_range is not None:
        counted &= torch.from_numpy(inside(labels.boxes, point_range))
    return Objects(boxes=boxes, names=labels.names, labels=own, points=held, counted=counted)


def judged(seen: SeenFrame, *, classes: Sequence[str], matching: Matching, score: float) -> JudgedFrame:
    """What became of the detections with at least this score, and of the objects."""
    kept = seen.found.detections.scores >= score
    detections = Detections(**{name: values[kept] for name, values in vars(seen.found.detections).items()})
    return judge(
        seen.found.ref.frame_id, objects=seen.objects, detections=detections,
        detection_points=seen.detection_points[kept], classes=classes, matching=matching,
    )  # fmt: skip


def evaluate(
    source: LabelledSource, seen: Sequence[SeenFrame], *, classes: tuple[str, ...], point_range: Range,
    settings: Settings, out: Path,
) -> Outcome:  # fmt: skip
    """By the rules that go with the data; files in the benchmark's format are written to `out`.

    Args:
        point_range: of the detector.
        settings: of the run; `detection_data` says what the data are.
    """
    if isinstance(source, LabelledKitti):
        simulated = settings["detection_data"]["name"] == "simulated"
        return _kitti(source, seen, classes, out, point_range=point_range if simulated else None)
    if isinstance(source, LabelledNuScenes):
        return _nuscenes(source, [frame.found for frame in seen], classes, out, settings["detection_data"])
    return _boxes(seen, classes)


def _kitti(
    source: LabelledKitti, seen: Sequence[SeenFrame], classes: tuple[str, ...], out: Path,
    *, point_range: Range | None,
) -> Outcome:  # fmt: skip
    found = [frame.found for frame in seen]
    (out / "data").mkdir(parents=True, exist_ok=True)
    rows = [kitti_result(source, frame, classes) for frame in found]
    for frame, table in zip(found, rows, strict=True):
        write_rows(out / "data" / f"{frame.ref.frame_id}.txt", table)
    labels = [kitti_labels(frame.ref, point_range) for frame in found]
    result = evaluate_kitti(labels, rows, frames=[frame.ref.frame_id for frame in found])
    curves = {
        f"{name}, {metric}": dict(zip(DIFFICULTIES, result.curves[name][metric], strict=True))
        for metric in ("3d", "bev")
        for name in result.curves
    }
    least = {n: IOU_SETS["strict"][n]["3d"] if n in IOU_SETS["strict"] else 0.5 for n in classes}
    return Outcome(
        result=result,
        sensor_frame=box_evaluation(seen, classes, neighbours=NEIGHBOURS),
        rules="Average precision of the KITTI benchmark in percent, at its least overlaps."
        + (" Objects outside the detector's range count neither way." if point_range else ""),
        curves=curves,
        matching=by_overlap(least),
    )


def kitti_result(source: LabelledKitti, found: FoundFrame, classes: tuple[str, ...]) -> ObjectRows:
    """What was found in one frame as rows of a result file."""
    detections = found.detections
    return result_rows(
        detections.boxes.double().numpy(),
        names=[classes[label] for label in detections.labels.tolist()],
        scores=detections.scores.double().numpy(),
        calib=KittiCalib.read(label_paths(found.ref.path)[1]),
        image_size=source.scans.image_size(found.ref),
    )


def kitti_labels(ref: FrameRef, point_range: Range | None) -> ObjectRows:
    """Labels of a frame; objects outside the range become of unknown visibility, which all difficulties ignore."""
    label_path, calib_path = label_paths(ref.path)
    rows = read_labels(label_path)
    if point_range is None or not len(rows):
        return rows
    centres = boxes_of(rows, KittiCalib.read(calib_path))[:, :3]
    values = rows.values.copy()
    values[~inside(centres.astype(np.float32), point_range) & (rows.names != DONT_CARE), 1] = UNKNOWN
    return ObjectRows(names=rows.names, values=values)


def box_evaluation(
    seen: Sequence[SeenFrame], classes: tuple[str, ...], *, neighbours: Mapping[str, str] | None = None
) -> BoxEvaluation:
    """KITTI's average precision in the sensor's frame, by overlap and by centres, of the objects that count.

    Args:
        neighbours: by class, a name the detector does not learn; finding one in place of the class is no mistake.
    """
    frames, lengths = [], {name: [torch.zeros(0)] for name in classes}
    for frame in seen:
        objects = frame.objects
        for label, name in enumerate(classes):
            lengths[name].append(objects.boxes[objects.labels == label, 3])
        alike = {other: classes.index(name) for name, other in (neighbours or {}).items() if name in classes}
        excused = torch.tensor([alike.get(name, OTHER) for name in objects.names], dtype=torch.int64)
        labels = torch.where(objects.labels == OTHER, excused, objects.labels)
        own = labels != OTHER
        frames.append(
            BoxFrame(
                detections=frame.found.detections,
                boxes=objects.boxes[own],
                labels=labels[own],
                counted=(objects.counted & (objects.labels != OTHER))[own],
            )
        )
    joined = {name: torch.cat(parts) for name, parts in lengths.items()}
    large = {n: bool(len(v) and float(v.median()) > LARGE) for n, v in joined.items()}
    return evaluate_boxes(
        frames, classes=classes, least={n: 0.7 if large[n] else 0.5 for n in classes},
        reach={n: 1.0 if large[n] else 0.6 for n in classes},
    )  # fmt: skip


def _boxes(seen: Sequence[SeenFrame], classes: tuple[str, ...]) -> Outcome:
    result = box_evaluation(seen, classes)
    return Outcome(
        result=result,
        sensor_frame=result,
        rules=f"KITTI's average precision in percent, in the sensor's frame. Objects with fewer than {LEAST_POINTS} "
        f"points or outside the detector's range count neither way.",
        curves=result.curves,
        matching=by_overlap(result.least),
    )


def _nuscenes(
    source: LabelledNuScenes, found: Sequence[FoundFrame], classes: tuple[str, ...], out: Path, data: Mapping[str, Any]
) -> Outcome:  # fmt: skip
    tables = source.scans.tables
    samples = {
        frame.ref.frame_id: sample_boxes(
            frame.detections,
            sample_token=frame.ref.frame_id,
            classes=classes,
            to_global=tables.to_global[tables.key_sweep[source.scans.place(frame.ref)]],
        )
        for frame in found
    }
    write_submission(out / "submission.json", samples)
    root, version, split = Path(str(data["root"])).expanduser(), data["version"], data["heldout"]
    rules = f"nuScenes detection score by the official devkit, split {split} of {version}."
    if len(samples) == len(source.frames):
        result = evaluate_nuscenes_tables(out / "submission.json", root, version=version, split=split)
    else:
        truth, ego = nuscenes_truth(root, version=version, split=split, tokens=list(samples))
        result = evaluate_nuscenes({"meta": {}, "results": samples}, truth, ego=ego)
        rules += f" {len(samples)} of {len(source.frames)} samples only; objects in bicycle racks count."
    curves = {
        name: {f"{distance:g} m": curve for distance, curve in by_class.items()}
        for name, by_class in result.curves.items()
        if name in classes
    }
    return Outcome(
        result=result, sensor_frame=None, rules=rules, curves=curves, matching=by_distance(CLOSE, classes=classes)
    )  # fmt: skip


def nuscenes_truth(
    root: Path, *, version: str, split: str, tokens: Sequence[str]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, np.ndarray]]:
    """Boxes and the position of the ego vehicle of some samples, as the devkit reads them.

    Raises:
        ImportError: without nuscenes-devkit, naming the extra.
    """
    try:
        from nuscenes import NuScenes
        from nuscenes.eval.common.loaders import load_gt
        from nuscenes.eval.detection.data_classes import DetectionBox
    except ImportError as error:
        raise ImportError("nuscenes-devkit is missing: pip install 'robot-worldmodel[nuscenes]'") from error
    tables = NuScenes(version=version, dataroot=str(root), verbose=False)
    boxes = load_gt(tables, split, DetectionBox).serialize()
    ego = {}
    for token in tokens:
        sweep = tables.get("sample_data", tables.get("sample", token)["data"]["LIDAR_TOP"])
        ego[token] = np.array(tables.get("ego_pose", sweep["ego_pose_token"])["translation"])
    return {token: boxes[token] for token in tokens}, ego
