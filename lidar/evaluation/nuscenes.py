"""nuScenes detection score, computed by the official devkit; without its tables where the truth is given as boxes."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lidar.evaluation.nuscenes_submission import CLASSES, check_submission

CONFIG = "detection_cvpr_2019"
ERRORS = {
    "trans_err": "ATE", "scale_err": "ASE", "orient_err": "AOE", "vel_err": "AVE", "attr_err": "AAE",
}  # fmt: skip
_FIT = 1e-3  # metres by which places relative to the ego vehicle may disagree


@dataclass(frozen=True, kw_only=True, eq=False)
class NuScenesEvaluation:
    """What the benchmark says about a submission.

    Attributes:
        metrics: as the devkit writes them to metrics_summary.json: mean_ap, nd_score, label_aps, tp_errors, ...
        curves: by class and distance in metres, [101] precision at recalls 0, 0.01, ..., 1.
        samples: number of samples.
    """

    metrics: Mapping[str, Any]
    curves: Mapping[str, Mapping[float, np.ndarray]]
    samples: int

    def json(self) -> dict[str, Any]:
        """The metrics; what is undefined (cones have no orientation) is null."""
        return _plain(self.metrics)

    def table(self) -> str:
        """Aligned text: the score, then a row for every class."""
        m = self.metrics
        means = "  ".join(f"m{short} {m['tp_errors'][name]:.4f}" for name, short in ERRORS.items())
        distances = sorted(next(iter(m["label_aps"].values())))
        lines = [f"mAP {m['mean_ap']:.4f}  NDS {m['nd_score']:.4f}  {means}", ""]
        titles = ["AP", *(f"AP {d:g} m" for d in distances), *ERRORS.values()]
        lines.append(f"{'':21}" + "".join(f"{title:>10}" for title in titles))
        for name in m["label_aps"]:
            values = [m["mean_dist_aps"][name], *(m["label_aps"][name][d] for d in distances)]
            values += [m["label_tp_errors"][name][error] for error in ERRORS]
            cells = "".join(f"{'-':>10}" if np.isnan(v) else f"{v:10.4f}" for v in values)
            lines.append(f"{name:21}{cells}")
        return "\n".join(lines)


def evaluate_nuscenes(
    submission: Mapping[str, Any],
    truth: Mapping[str, list[dict[str, Any]]],
    *,
    ego: Mapping[str, np.ndarray] | None = None,
) -> NuScenesEvaluation:
    """Evaluate a submission against boxes of the truth.

    Filters (range by class in the global xy plane, boxes without points), matching and figures are the devkit's. What
    boxes alone cannot give is left out: without annotated bicycle racks, bicycles and motorcycles in them count.

    Args:
        submission: {"meta": ..., "results": {sample token: [box, ...]}}.
        truth: {sample token: [box, ...]}, the devkit's serialised EvalBoxes.
        ego: [3] global position of the ego vehicle by sample; by default from the boxes (`ego_positions`).

    Raises:
        ImportError: if the devkit is not installed.
        ValueError: if the submission or the truth is not usable.
    """
    data, box_class = _devkit("eval.common.data_classes"), _devkit("eval.detection.data_classes").DetectionBox
    if not isinstance(truth, Mapping) or not all(isinstance(boxes, list) for boxes in truth.values()):
        raise ValueError("the truth is {sample token: [box, ...]}, as the devkit serialises EvalBoxes")
    check_submission(submission, truth)
    positions = ego_positions(truth) if ego is None else ego
    unknown = sorted(set(truth) - set(positions))
    if unknown:
        raise ValueError(f"no ego position for {len(unknown)} samples ({', '.join(unknown[:3])}, ...)")
    found = data.EvalBoxes.deserialize(submission["results"], box_class)
    try:
        labels = data.EvalBoxes.deserialize(truth, box_class)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the truth is not serialised EvalBoxes of the devkit ({type(error).__name__}: {error})"
        ) from error
    return _evaluated(_Tables(positions), found, labels)


def evaluate_nuscenes_files(
    submission: str | Path, truth: str | Path, *, poses: str | Path | None = None
) -> NuScenesEvaluation:
    """Evaluate a submission file against a file of serialised EvalBoxes.

    Args:
        poses: file with {sample token: [x, y, z]} of the ego vehicle, if the truth does not tell.

    Raises:
        ImportError: if the devkit is not installed.
        ValueError: naming the file that is not usable.
        FileNotFoundError: naming the file that is missing.
    """
    ego = None if poses is None else {k: np.array(v, np.float64) for k, v in _read(poses).items()}
    return evaluate_nuscenes(_read(submission), _read(truth), ego=ego)


def evaluate_nuscenes_tables(
    submission: str | Path, dataroot: str | Path, *, version: str, split: str
) -> NuScenesEvaluation:
    """Evaluate a submission file against the tables of nuScenes, bicycle racks included: the devkit as it is.

    Args:
        dataroot: the folder that holds the tables' folder, e.g. v1.0-trainval.
        version: name of that folder.
        split: val, mini_val, ...

    Raises:
        ImportError: if the devkit is not installed.
        ValueError: if the submission or the tables are not usable.
    """
    loaders, data = _devkit("eval.common.loaders"), _devkit("eval.common.data_classes")
    box_class = _devkit("eval.detection.data_classes").DetectionBox
    content = _read(submission)
    try:
        tables = _devkit("nuscenes").NuScenes(version=version, dataroot=str(dataroot), verbose=False)
        labels = loaders.load_gt(tables, split, box_class)
    except (AssertionError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{dataroot}: split {split} of {version} cannot be loaded ({error})") from error
    check_submission(content, labels.sample_tokens, source=str(submission))
    return _evaluated(tables, data.EvalBoxes.deserialize(content["results"], box_class), labels)


def ego_positions(truth: Mapping[str, list[dict[str, Any]]]) -> dict[str, np.ndarray]:
    """Global position [3] of the ego vehicle in each sample, from where boxes lie and where they lie relative to it.

    The devkit writes `ego_translation` along the global axes, other tools along those of the vehicle. Either way it and
    the global `translation` differ by a rigid motion, whose origin is the vehicle.

    Raises:
        ValueError: if the boxes of a sample do not tell: no box, no `ego_translation`, or too few for a rotation.
    """
    places = {
        token: tuple(
            np.array([box.get(key, (0, 0, 0)) for box in boxes], np.float64).reshape(-1, 3)
            for key in ("translation", "ego_translation")
        )
        for token, boxes in truth.items()
    }
    if not any(relative.any() for _, relative in places.values()):
        raise ValueError("the truth has no ego_translation: give the ego positions (poses=FILE.json)")
    along_global_axes = all(np.ptp(a - b, axis=0).max() < _FIT for a, b in places.values() if len(a))
    positions = {}
    for token, (place, relative) in places.items():
        if len(place) == 0 or not (along_global_axes or _spans_a_plane(relative)):
            raise ValueError(
                f"sample {token}: its {len(place)} boxes do not tell where the ego vehicle was: give poses=FILE.json"
            )
        turn = np.eye(3) if along_global_axes else _rotation(relative, place)
        position = (place - relative @ turn.T).mean(axis=0)
        if np.abs(relative @ turn.T + position - place).max() > _FIT:
            raise ValueError(
                f"sample {token}: translation and ego_translation of its boxes contradict each other"
            )
        positions[token] = position
    return positions


class _Tables:
    """Answers what the devkit's filters ask its tables for: where the ego vehicle was, and no annotations."""

    def __init__(self, positions: Mapping[str, np.ndarray]) -> None:
        self._positions = positions

    def get(self, table: str, token: str) -> dict[str, Any]:
        answers: dict[str, dict[str, Any]] = {
            "sample": {"data": {"LIDAR_TOP": token}, "anns": []},
            "sample_data": {"ego_pose_token": token},
            "ego_pose": {"translation": self._positions[token]},
        }
        return answers[table]


def _evaluated(tables: Any, found: Any, labels: Any) -> NuScenesEvaluation:
    loaders, config = _devkit("eval.common.loaders"), _devkit("eval.common.config").config_factory(CONFIG)
    for boxes in (found, labels):
        loaders.add_center_dist(tables, boxes)
        if boxes.all:  # the filter wants to see one
            loaders.filter_eval_boxes(tables, boxes, config.class_range)
    # The constructor reads tables and files; the evaluation itself needs boxes and settings alone.
    official = _devkit("eval.detection.evaluate").DetectionEval
    evaluation = official.__new__(official)
    evaluation.cfg, evaluation.verbose = config, False
    evaluation.pred_boxes, evaluation.gt_boxes = found, labels
    metrics, data = evaluation.evaluate()
    curves = {
        name: {distance: np.array(data[(name, distance)].precision) for distance in config.dist_ths}
        for name in CLASSES
    }
    return NuScenesEvaluation(metrics=metrics.serialize(), curves=curves, samples=len(labels.sample_tokens))


def _spans_a_plane(points: np.ndarray) -> bool:
    return len(points) > 2 and bool(np.linalg.svd(points - points.mean(0), compute_uv=False)[1] > 10 * _FIT)


def _rotation(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation [3, 3] that takes source [N, 3] nearest to target [N, 3] around their means (Kabsch)."""
    u, _, v = np.linalg.svd((source - source.mean(0)).T @ (target - target.mean(0)))
    flip = np.diag([1, 1, np.sign(np.linalg.det(v.T @ u.T))])
    return v.T @ flip @ u.T


def _devkit(module: str) -> Any:
    try:
        return importlib.import_module(f"nuscenes.{module}")
    except ImportError as error:
        raise ImportError("nuscenes-devkit is missing: pip install 'robot-worldmodel[nuscenes]'") from error


def _read(path: str | Path) -> Any:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and np.isnan(value) else value
