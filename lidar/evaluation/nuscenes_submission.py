"""Submissions to the nuScenes detection benchmark: from boxes in the LiDAR frame, and checks of any such file."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from lidar.detection.batch import Detections

CLASSES = (
    "car", "truck", "bus", "trailer", "construction_vehicle",
    "pedestrian", "motorcycle", "bicycle", "traffic_cone", "barrier",
)  # fmt: skip
ATTRIBUTES = (
    "pedestrian.moving", "pedestrian.sitting_lying_down", "pedestrian.standing",
    "cycle.with_rider", "cycle.without_rider", "vehicle.moving", "vehicle.parked", "vehicle.stopped",
)  # fmt: skip
MAX_BOXES = 500  # of a sample
MOVING_SPEED = 0.2  # m/s

# Attribute of a class when it moves, and when it stands.
_ATTRIBUTES = {
    "car": ("vehicle.moving", "vehicle.parked"),
    "truck": ("vehicle.moving", "vehicle.parked"),
    "bus": ("vehicle.moving", "vehicle.stopped"),
    "trailer": ("vehicle.moving", "vehicle.parked"),
    "construction_vehicle": ("vehicle.moving", "vehicle.parked"),
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
    "motorcycle": ("cycle.with_rider", "cycle.without_rider"),
    "bicycle": ("cycle.with_rider", "cycle.without_rider"),
    "traffic_cone": ("", ""),
    "barrier": ("", ""),
}
_LENGTHS = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2}


def attribute(name: str, speed: float) -> str:
    """The attribute most likely of a class at a speed in m/s, "" for cones and barriers; NaN stands for unknown.

    The rule of OpenPCDet and mmdetection3d. An unknown speed gives the class's most frequent attribute.
    """
    if name == "pedestrian" and np.isnan(speed):
        return "pedestrian.moving"
    moving, standing = _ATTRIBUTES[name]
    return moving if speed > MOVING_SPEED else standing


def sample_boxes(
    detections: Detections, *, sample_token: str, classes: Sequence[str], to_global: np.ndarray
) -> list[dict[str, Any]]:
    """The boxes of one sample as a submission has them: global frame, best 500.

    Args:
        detections: in the LiDAR frame of the sample (x right, y forward), best first. Without velocities, or where one
            is not known, 0 is written: the format has no other way to say so, and the velocity error then is the mean
            speed of what was found.
        sample_token: of the key frame.
        classes: names by label.
        to_global: [3, 4] or [4, 4], the LiDAR frame to the world: the ego pose of the LIDAR_TOP record times the
            sensor's mounting.

    Raises:
        ValueError: on an unknown class, a box without extent, or numbers that are not finite.
    """
    strange = sorted(set(classes) - set(CLASSES))
    if strange:
        raise ValueError(f"nuScenes has the classes {', '.join(CLASSES)}, not {', '.join(strange)}")
    boxes = detections.boxes[:MAX_BOXES].detach().cpu().double().numpy()
    scores = detections.scores[:MAX_BOXES].detach().cpu().double().numpy()
    names = [classes[label] for label in detections.labels[:MAX_BOXES].tolist()]
    if not (np.isfinite(boxes[:, :7]).all() and np.isfinite(scores).all()):
        raise ValueError(f"sample {sample_token}: boxes or scores hold NaN or infinity")
    if not (boxes[:, 3:6] > 0).all():
        raise ValueError(f"sample {sample_token}: a box has a length, width or height of 0 or less")
    turn, shift = to_global[:3, :3], to_global[:3, 3]
    centres = boxes[:, :3] @ turn.T + shift
    headings = Rotation.from_euler("z", boxes[:, 6:7])
    rotations = (Rotation.from_matrix(turn) * headings).as_quat()[:, [3, 0, 1, 2]]
    speeds, velocities = np.full(len(boxes), np.nan), np.zeros((len(boxes), 2))
    if boxes.shape[1] >= 9:
        speeds = np.hypot(boxes[:, 7], boxes[:, 8])
        velocities = np.nan_to_num(boxes[:, 7:9] @ turn[:2, :2].T)
    return [
        {
            "sample_token": sample_token,
            "translation": centre.tolist(),
            "size": [width, length, height],
            "rotation": rotation.tolist(),
            "velocity": velocity.tolist(),
            "detection_name": name,
            "detection_score": float(score),
            "attribute_name": attribute(name, float(speed)),
        }
        for centre, (length, width, height), rotation, velocity, name, score, speed in zip(
            centres, boxes[:, 3:6].tolist(), rotations, velocities, names, scores, speeds, strict=True
        )
    ]


def submission(samples: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The whole file of a detector that sees LiDAR alone; every sample of the split is in it, empty or not."""
    meta = {f"use_{source}": source == "lidar" for source in ("camera", "lidar", "radar", "map", "external")}
    return {"meta": meta, "results": dict(samples)}


def write_submission(path: str | Path, samples: Mapping[str, list[dict[str, Any]]]) -> None:
    """Write the boxes of all samples to a file that is either whole or not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the order given, which decides among equal scores, and without spaces: there are millions of numbers.
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(submission(samples), separators=(",", ":"), allow_nan=False))
    temporary.replace(path)


def check_submission(content: Any, tokens: Iterable[str], *, source: str = "the submission") -> None:
    """Make sure that a submission can be evaluated against the samples of a split.

    Args:
        content: as read from JSON.
        tokens: of all samples.
        source: its name, for errors.

    Raises:
        ValueError: saying what is wrong, and with which sample.
    """
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise ValueError(f'{source}: not a submission: {{"meta": {{...}}, "results": {{token: [box, ...]}}}}')
    if not isinstance(content.get("meta"), dict):
        raise ValueError(f'{source}: "meta" is missing: say there which sensors were used')
    results, wanted = content["results"], set(tokens)
    missing, stray = sorted(wanted - set(results)), sorted(set(results) - wanted)
    for found, what in ((missing, "are missing: give [] where nothing was found"), (stray, "have no labels")):
        if found:
            more = ", ..." if len(found) > 3 else ""
            raise ValueError(f"{source}: {len(found)} samples ({', '.join(found[:3])}{more}) {what}")
    for token, boxes in results.items():
        if not isinstance(boxes, list) or len(boxes) > MAX_BOXES:
            raise ValueError(f"{source}: sample {token} has no list of at most {MAX_BOXES} boxes")
        for number, box in enumerate(boxes):
            problem = _problem(box, token)
            if problem:
                raise ValueError(f"{source}: sample {token}, box {number}: {problem}")


def _problem(box: Any, token: str) -> str | None:
    """What is wrong with a box, if anything."""
    if not isinstance(box, dict):
        return "not an object of named values"
    for name, length in _LENGTHS.items():
        values = box.get(name)
        if not isinstance(values, list) or len(values) != length:
            return f"{name} is a list of {length} numbers, got {values!r}"
        try:
            finite = bool(np.isfinite(np.array(values, np.float64)).all())
        except (TypeError, ValueError):
            return f"{name} is a list of {length} numbers, got {values!r}"
        if not finite and name != "velocity":
            return f"{name} holds NaN or infinity"
    if not min(box["size"]) > 0:
        return f"width, length and height are above 0, got {box['size']}"
    if box.get("detection_name") not in CLASSES:
        return f"detection_name is one of {', '.join(CLASSES)}, got {box.get('detection_name')!r}"
    score = box.get("detection_score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not np.isfinite(score):
        return f"detection_score is a finite number, got {score!r}"
    if box.get("sample_token") != token:
        return f"its sample_token is {box.get('sample_token')!r}"
    if box.get("attribute_name") not in ("", *ATTRIBUTES):
        return f"attribute_name is one of {', '.join(ATTRIBUTES)} or empty, got {box.get('attribute_name')!r}"
    return None
