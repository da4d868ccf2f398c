"""Official figures of detections: KITTI average precision, nuScenes mAP and NDS, from the files of any detector.

python scripts/evaluate_detections.py format=kitti results=DIR labels=DIR output=FILE.json
python scripts/evaluate_detections.py format=kitti results=DIR labels=training/label_2 frames=ImageSets/val.txt
python scripts/evaluate_detections.py format=nuscenes results=submission.json labels=truth.json
python scripts/evaluate_detections.py format=nuscenes results=submission.json labels=DATAROOT split=val
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import matplotlib.pyplot as plt
import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from settings import USER_ERRORS

from lidar.detection.report import precision_recall
from lidar.evaluation.kitti import CLASSES, DIFFICULTIES, METRICS, KittiEvaluation, evaluate_kitti_folders
from lidar.evaluation.nuscenes import NuScenesEvaluation, evaluate_nuscenes_files, evaluate_nuscenes_tables
from worldmodel.training.checkpoints import write_json

FORMATS = ("kitti", "nuscenes")


def missing_note(evaluation: KittiEvaluation) -> str:
    """What is to be said about frames without a result file; nothing if there are none."""
    if not evaluation.missing:
        return ""
    names = ", ".join(evaluation.missing[:20]) + (", ..." if len(evaluation.missing) > 20 else "")
    return (
        f"warning: {len(evaluation.missing)} of {evaluation.frames} frames have no result file and count as frames in "
        f"which nothing was detected (the official program would leave them out): {names}"
    )


def kitti(settings: Mapping[str, Any]) -> tuple[dict[str, Any], str, dict[str, dict[str, np.ndarray]]]:
    """Figures, text and curves of a folder of result files."""
    frames = None
    if settings["frames"] is not None:
        frames = Path(settings["frames"]).read_text().split()
        if not frames:
            raise ValueError(f"{settings['frames']}: no frames are listed")
    evaluation = evaluate_kitti_folders(
        settings["results"], settings["labels"], frames=frames, iou=settings["iou"], progress=True
    )
    text = [f"KITTI, {evaluation.frames} frames, overlaps: {evaluation.iou}", "", evaluation.table()]
    if note := missing_note(evaluation):
        text += ["", note]
    curves = {
        f"{name}, {metric}": {
            difficulty: evaluation.curves[name][metric][place]
            for place, difficulty in enumerate(DIFFICULTIES)
        }
        for metric in METRICS
        for name in CLASSES
    }
    return evaluation.json(), "\n".join(text), curves


def nuscenes(settings: Mapping[str, Any]) -> tuple[dict[str, Any], str, dict[str, dict[str, np.ndarray]]]:
    """Figures, text and curves of a submission."""
    if Path(settings["labels"]).is_dir():
        evaluation: NuScenesEvaluation = evaluate_nuscenes_tables(
            settings["results"], settings["labels"], version=settings["version"], split=settings["split"]
        )
    else:
        evaluation = evaluate_nuscenes_files(settings["results"], settings["labels"], poses=settings["poses"])
    curves = {
        name: {f"{distance:g} m": curve for distance, curve in of_class.items()}
        for name, of_class in evaluation.curves.items()
    }
    text = f"nuScenes, {evaluation.samples} samples\n\n{evaluation.table()}"
    return evaluation.json(), text, curves


def run(settings: Mapping[str, Any]) -> None:
    """One evaluation."""
    if settings["format"] not in FORMATS:
        raise ValueError(f"format is one of {', '.join(FORMATS)}, got {settings['format']!r}")
    output = Path(settings["output"])
    if output.suffix != ".json":
        raise ValueError(f"output is a .json file, got {output}")
    start = time.perf_counter()
    print(f"evaluating {settings['results']} against {settings['labels']}", file=sys.stderr, flush=True)
    figures, text, curves = (kitti if settings["format"] == "kitti" else nuscenes)(settings)
    print(text)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, figures)
    output.with_suffix(".md").write_text(f"```\n{text}\n```\n")
    figure = precision_recall(curves, columns=3 if settings["format"] == "kitti" else 5)
    figure.savefig(output.with_suffix(".png"), dpi=130)
    plt.close(figure)
    seconds = time.perf_counter() - start
    print(f"\n{seconds:.1f} s; written: {output}, {output.stem}.md, {output.stem}.png", file=sys.stderr)


@hydra.main(version_base="1.3", config_path="../configs", config_name="evaluate_detections")
def main(config: DictConfig) -> None:
    try:
        settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert isinstance(settings, dict)
        run(settings)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        sys.exit(130)
    except MissingMandatoryValue as error:
        sys.exit(f"error: {error.full_key} must be given: python scripts/evaluate_detections.py --help")
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
