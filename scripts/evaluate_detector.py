"""Detect objects in the held-out frames of a trained detector's data and evaluate what was found.

python scripts/evaluate_detector.py RUN                        the held-out side of the run's own data
python scripts/evaluate_detector.py RUN --set detection_data.root=DIR detection_data.heldout=null
python scripts/evaluate_detector.py RUN --out DIR              everything goes there (default: RUN/evaluation)

KITTI and the simulated set are evaluated as the KITTI benchmark does, with one result file per frame in its format;
nuScenes by its devkit, with a submission file; other data in the sensor's frame, by KITTI's average precision of 3-D
boxes. KITTI counts every labelled object; of other data, objects outside the detector's range count neither way.
results.json has, but for nuScenes, also figures in the sensor's frame: by overlap, and by the distance of centres.

Beside results.json come report.html, with the worst failures, and failures.html, the frames they are in, to turn.
"""

import argparse
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detection import heldout_frames, load_run
from detection_rules import Outcome, SeenFrame, evaluate, judged, seen_frame
from omegaconf import OmegaConf
from settings import USER_ERRORS
from tqdm import tqdm

from lidar.detection.inference import detect_frames
from lidar.detection.labelled import LabelledFrames
from lidar.detection.marked import judged_picture
from lidar.detection.report import Evaluated, write_report
from lidar.detection.viewer_html import write_viewer
from worldmodel.training.checkpoints import fingerprint, write_json
from worldmodel.training.provenance import provenance

SHOWN = 16  # frames of the viewer beside the report


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


def run(args: argparse.Namespace) -> Outcome:
    """One evaluation."""
    detector, settings, checkpoint = load_run(args.run)
    settings = settings_with(settings, args.set)
    frames: LabelledFrames = heldout_frames(settings, detector, count=args.frames)
    source, point_range = frames.source, frames.point_range
    counted = None if settings["detection_data"]["name"] == "kitti" else point_range
    detector.to(args.device)
    todo = detect_frames(
        detector, frames, batch_size=args.batch_size, workers=args.workers, device=args.device
    )
    seen = [
        seen_frame(frame, source=source, classes=frames.classes, point_range=counted)
        for frame in tqdm(todo, total=len(frames), unit="frame", desc="detecting", disable=args.quiet)
    ]
    out = args.out or args.run / "evaluation"
    out.mkdir(parents=True, exist_ok=True)
    outcome = evaluate(
        source, seen, classes=detector.classes, point_range=point_range, settings=settings, out=out
    )
    about = {
        "run": str(args.run), "weights": fingerprint(checkpoint), "frames": len(seen), "settings": settings,
        "detections_per_frame": float(np.mean([len(f.found.detections) for f in seen])), **provenance(),
    }  # fmt: skip
    figures = {"evaluation": outcome.result.json()}
    if outcome.sensor_frame is not None:
        figures["sensor_frame"] = outcome.sensor_frame.json()
    write_json(out / "results.json", {**figures, **about})
    if not args.no_report:
        report(outcome, seen, frames, out=out, about=about, score=args.score)
    return outcome


def report(
    outcome: Outcome, seen: list[SeenFrame], frames: LabelledFrames, *, out: Path, about: dict[str, Any], score: float
) -> None:  # fmt: skip
    """report.html, and beside it failures.html: the frames of the worst failures, to turn and zoom."""
    classes = frames.classes.names
    marked = [judged(frame, classes=classes, matching=outcome.matching, score=score) for frame in seen]

    @lru_cache(maxsize=2 * SHOWN)
    def points_of(place: int) -> np.ndarray:
        return frames[(place, 0)].cloud.points.numpy()

    told = ("run", "weights", "frames", "commit", "machine", "torch", "date", "command")
    page = Evaluated(
        title=f"{about['settings']['detector']['name']} on {frames.source.name}",
        rules=outcome.rules, table=outcome.result.table(), curves=outcome.curves, frames=marked, score=score,
        matching=outcome.matching, classes=classes, points_of=points_of, viewer="failures.html",
        about={name: about[name] for name in told},
    )  # fmt: skip
    worst = write_report(out / "report.html", page) or list(range(len(marked)))
    pictures = [judged_picture(marked[k], points_of(k), classes=classes) for k in worst[:SHOWN]]
    write_viewer(out / "failures.html", pictures, title=page.title)


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
    parser.add_argument(
        "--no-report", action="store_true", help="figures only: no report.html, no failures.html"
    )
    parser.add_argument(
        "--score", type=float, default=0.3, help="least score of detections in the report's pictures"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(arguments)
    try:
        outcome = run(args)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    print(outcome.result.table())
    if not args.no_report:
        print(f"\nwhere it fails: {(args.out or args.run / 'evaluation') / 'report.html'}")


if __name__ == "__main__":
    main()
