"""Can the detectors learn what they are shown? SECOND, CenterPoint and PV-RCNN on eight real labelled frames.

python scripts/study_overfit.py --kitti DIR                     all three, at most half an hour each on one core
python scripts/study_overfit.py --kitti DIR --detectors second_small --steps 300

Trained without augmentation and judged on the same frames: at 3-D IoU 0.7 every car with at least 20 points in range is
to be found, with a precision of at least 0.9 at one score threshold. (Average precision over so few objects is capped
far below 100.) DIR holds training/velodyne, label_2 and calib; the first frames with such a car are taken.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detection import heldout_frames, load_run
from studies import called

from lidar.datasets import KittiObject
from lidar.detection.benchmarks import LabelledKitti
from lidar.detection.boxes import points_in_boxes
from lidar.detection.inference import detect_frames
from lidar.detection.scene import membership
from lidar.evaluation.boxes import BoxFrame
from lidar.evaluation.operating_point import best_operating_point
from lidar.grid import VoxelGrid, inside
from worldmodel.training.checkpoints import write_json
from worldmodel.training.provenance import provenance

LEAST, POINTS, PRECISION = 0.7, 20, 0.9
# 51.2 m ahead and 25.6 m to either side; the heads see cells of 0.4 m, as those of the detectors for all of KITTI.
GRID = VoxelGrid(point_range=(0, -25.6, -3, 51.2, 25.6, 1), voxel_size=(0.2, 0.2, 0.2))
DETECTORS = {"second_small": 800, "center_point_small": 800, "pv_rcnn_small": 800}  # and steps


def chosen(root: Path, count: int) -> list[str]:
    """The first frames with a car of enough points in range.

    Raises:
        SystemExit: if there are fewer.
    """
    source = LabelledKitti(scans=KittiObject(root=root, view="camera"))
    found: list[str] = []
    for ref in source.frames:
        labels = source.labels(ref)
        cars = labels.boxes[[name == "Car" for name in labels.names]]
        if (
            len(cars)
            and (inside(cars, GRID.point_range) & (membership(source.read(ref), cars).sum(1) >= POINTS)).any()
        ):
            found.append(ref.frame_id)
        if len(found) == count:
            return found
    raise SystemExit(
        f"error: {root} has {len(found)} frames with a car of {POINTS} points in range, asked were {count}"
    )


def linked(root: Path, frames: list[str], folder: Path) -> None:
    """A KITTI folder of these frames alone."""
    part = root / "training" if (root / "training").is_dir() else root
    (folder / "ImageSets").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "chosen.txt").write_text("\n".join(frames) + "\n")
    if not (folder / "training").is_symlink():
        (folder / "training").symlink_to(part.resolve())


def judge(folder: Path) -> dict[str, Any]:
    """The operating point of a run on the frames it was trained on."""
    detector, settings, _ = load_run(folder)
    frames = heldout_frames(settings, detector)
    label = detector.classes.index("Car")
    judged = []
    for found in detect_frames(detector, frames, batch_size=1):
        here = [
            i
            for i, box in enumerate(found.boxes)
            if inside(box[None].numpy(), detector.test_voxels.grid.point_range)[0]
        ]
        boxes = found.boxes[here]
        judged.append(
            BoxFrame(
                detections=found.detections, boxes=boxes, labels=found.labels[here],
                counted=points_in_boxes(found.points, boxes).sum(dim=1) >= POINTS,
            )
        )  # fmt: skip
    point = best_operating_point(judged, label=label, least=LEAST)
    passed = point.recall == 1.0 and point.precision >= PRECISION
    return {**asdict(point), "passed": passed, "parameters": sum(p.numel() for p in detector.parameters())}


def report(rows: dict[str, dict[str, Any]], frames: list[str]) -> str:
    """A row for every detector."""
    low, high, size = GRID.point_range[:3], GRID.point_range[3:], GRID.voxel_size
    lines = [
        "# Overfitting eight real frames", "",
        f"KITTI frames {', '.join(frames)}, camera view, x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}, "
        f"voxels of {size[0]:g} m, no augmentation. Cars with at least {POINTS} points, 3-D IoU above {LEAST}; "
        f"the bar is all of them at a precision of {PRECISION}.", "",
        "| detector | parameters | steps of 4 | CPU min | cars | recall | precision | at score | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in rows.items():
        verdict = "pass" if row["passed"] else "fail"
        lines.append(
            f"| {name} | {row['parameters']:,} | {row['steps']} | {row['cpu_s'] / 60:.0f} | {row['objects']} | "
            f"{row['recall']:.3f} | {row['precision']:.3f} | {row['threshold']:.2f} | {verdict} |"
        )
    return "\n".join([*lines, ""])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kitti", type=Path, required=True, metavar="DIR")
    parser.add_argument("--detectors", nargs="*", choices=sorted(DETECTORS), default=list(DETECTORS))
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--steps", type=int, help="default: each detector's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/overfit"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    args = parser.parse_args(arguments)
    frames = chosen(args.kitti, args.frames)
    grid = json.dumps({"point_range": GRID.point_range, "voxel_size": GRID.voxel_size}).replace('"', "")
    rows = {}
    linked(args.kitti, frames, args.runs / "kitti")
    for name in args.detectors:
        steps = args.steps or DETECTORS[name]
        folder = args.runs / f"{name}-{steps}-{args.seed}"
        result = folder / "overfit.json"
        made_as = {"frames": frames, "grid": json.loads(json.dumps(asdict(GRID)))}
        if not result.is_file():
            usage = called(
                "train_detector.py", f"detector={name}", f"detector.grid={grid}", "detector.classes=[Car]",
                "detection_data=kitti", f"detection_data.root={args.runs / 'kitti'}", "detection_data.split=chosen",
                "detection_data.heldout=chosen", "detection_data.sampling.counts=null",
                "detection_data.augment.flip_y=false", "detection_data.augment.rotation=0.0",
                "detection_data.augment.scaling=[1.0, 1.0]", f"seed={args.seed}", f"trainer.max_steps={steps}",
                f"trainer.eval_every={steps}", "trainer.progress=false", "resume=true", f"run.dir={folder}",
            )  # fmt: skip
            write_json(result, {"made_as": made_as, **judge(folder), "steps": steps, **usage, **provenance()})
        rows[name] = json.loads(result.read_text())
        if rows[name]["made_as"] != made_as:
            raise SystemExit(f"error: {folder} is of other frames or another grid: choose other --runs")
        print(f"{name}: {rows[name]}", flush=True)
    text = report(rows, frames)
    args.out.mkdir(parents=True, exist_ok=True)
    content = {"frames": frames, "grid": asdict(GRID), "detectors": rows, "seed": args.seed, **provenance()}
    write_json(args.out / "overfit.json", content)
    (args.out / "overfit.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
