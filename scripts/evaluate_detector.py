"""Detect objects in the held-out frames of a trained detector's data and evaluate what was found.

python scripts/evaluate_detector.py RUN                        the held-out side of the run's own data
python scripts/evaluate_detector.py RUN --set detection_data.root=DIR detection_data.heldout=null
python scripts/evaluate_detector.py RUN --out DIR              results and JSON go there (default: RUN/evaluation)

KITTI and the simulated set are evaluated as the KITTI benchmark does, with one result file per frame in its format;
other data in the sensor's frame, by KITTI's average precision of 3-D boxes. KITTI counts every labelled object; of the
simulated set, objects outside the detector's range count neither way.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detection import heldout_frames, load_run
from omegaconf import OmegaConf
from settings import USER_ERRORS
from tqdm import tqdm

from lidar.datasets.kitti_calib import KittiCalib
from lidar.datasets.kitti_labels import label_paths
from lidar.datasets.kitti_results import DONT_CARE, ObjectRows, boxes_of, read_labels, result_rows, write_rows
from lidar.datasets.sources import FrameRef
from lidar.detection.benchmarks import LabelledKitti
from lidar.detection.boxes import points_in_boxes
from lidar.detection.inference import FoundFrame, detect_frames
from lidar.detection.labelled import LabelledFrames
from lidar.detection.labels import LabelledSource
from lidar.detection.voxel_detector import VoxelDetector
from lidar.evaluation.boxes import BoxEvaluation, BoxFrame, evaluate_boxes
from lidar.evaluation.kitti import KittiEvaluation, evaluate_kitti
from lidar.grid import Range, inside
from worldmodel.training.checkpoints import fingerprint, write_json
from worldmodel.training.provenance import provenance

UNKNOWN = 3  # occlusion, in KITTI's labels
LARGE = 3.0  # metres; longer objects are matched at an overlap of 0.7, others at 0.5, as in KITTI


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


def evaluate(
    source: LabelledSource, found: list[FoundFrame], detector: VoxelDetector, out: Path, *, in_range: bool
) -> KittiEvaluation | BoxEvaluation:
    """By the rules that go with the data; result files are written for KITTI.

    Args:
        in_range: KITTI objects outside the detector's range count neither way.
    """
    classes = detector.classes
    if isinstance(source, LabelledKitti):
        (out / "data").mkdir(parents=True, exist_ok=True)
        rows = [kitti_result(source, frame, classes) for frame in found]
        for frame, table in zip(found, rows, strict=True):
            write_rows(out / "data" / f"{frame.ref.frame_id}.txt", table)
        point_range = detector.test_voxels.grid.point_range if in_range else None
        labels = [kitti_labels(frame.ref, point_range) for frame in found]
        return evaluate_kitti(labels, rows, frames=[frame.ref.frame_id for frame in found])
    frames = [
        BoxFrame(
            detections=f.detections,
            boxes=f.boxes,
            labels=f.labels,
            counts=points_in_boxes(f.points, f.boxes).sum(dim=1),
        )
        for f in found
    ]
    lengths = {
        name: torch.cat([f.boxes[f.labels == label, 3] for f in found]) for label, name in enumerate(classes)
    }
    least = {n: 0.7 if len(v) and float(v.median()) > LARGE else 0.5 for n, v in lengths.items()}
    return evaluate_boxes(frames, classes=classes, least=least)


def settings_with(settings: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """Settings of a run with KEY=VALUE words applied; keys that are not there are an error.

    Raises:
        ValueError: naming the key.
    """
    config = OmegaConf.create(settings)
    for word in changes:
        key, equals, value = word.partition("=")
        if not equals or OmegaConf.select(config, key, default="?") == "?":
            raise ValueError(f"--set takes KEY=VALUE with a key of the run's config.json, got {word!r}")
        OmegaConf.update(config, key, OmegaConf.create({"v": value}).v if value != "null" else None)
    made = OmegaConf.to_container(config, resolve=True)
    assert isinstance(made, dict)
    return made  # type: ignore[return-value]


def run(args: argparse.Namespace) -> KittiEvaluation | BoxEvaluation:
    """One evaluation."""
    detector, settings, checkpoint = load_run(args.run)
    settings = settings_with(settings, args.set)
    frames: LabelledFrames = heldout_frames(settings, detector, count=args.frames)
    detector.to(args.device)
    todo = detect_frames(
        detector, frames, batch_size=args.batch_size, workers=args.workers, device=args.device
    )
    found = list(tqdm(todo, total=len(frames), unit="frame", desc="detecting", disable=args.quiet))
    out = args.out or args.run / "evaluation"
    out.mkdir(parents=True, exist_ok=True)
    simulated = settings["detection_data"]["name"] == "simulated"
    result = evaluate(frames.source, found, detector, out, in_range=simulated)
    about = {
        "run": str(args.run), "weights": fingerprint(checkpoint), "frames": len(found), "settings": settings,
        "detections_per_frame": float(np.mean([len(f.detections) for f in found])), **provenance(),
    }  # fmt: skip
    write_json(out / "results.json", {"evaluation": result.json(), **about})
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder of train_detector.py, or one of its checkpoints")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="in place of the run's settings"
    )
    parser.add_argument("--frames", type=int, help="so many, evenly spread; default: all")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(arguments)
    try:
        result = run(args)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    print(result.table())


if __name__ == "__main__":
    main()
