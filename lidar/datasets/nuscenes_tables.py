"""nuScenes' tables, reduced to what LiDAR detection needs: LIDAR_TOP files, where they were taken, and boxes.

The tables are read record by record, since sample_data.json alone takes gigabytes as Python objects, and end as arrays:
about 100 MB for v1.0-trainval, which loader processes share where they are forked.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from lidar.datasets.errors import DatasetError, reason

CHANNEL = "LIDAR_TOP"
NONE = -1
MAX_GAP_S = (
    1.5  # of annotations a velocity is taken from, one-sided; twice that with neighbours on both sides
)
# Categories of the detection task; the others keep their name in the tables and belong to no class.
DETECTION_NAMES = {
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
}
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class NuScenesTables:
    """Arrays over S LiDAR sweeps, K key frames (samples) and N annotated boxes.

    Attributes:
        file: [S] bytes, path below the root.
        time: [S] int64 microseconds.
        to_global: [S, 3, 4] float64, sensor frame to the world.
        previous: [S] int64 place of the sweep before, -1 for the first of a scene.
        key_sweep: [K] int64 sweep of each sample.
        key_token: [K] sample tokens.
        key_scene: [K] scene names.
        first_box: [K + 1] int64: boxes first_box[k] to first_box[k + 1] belong to sample k.
        boxes: [N, 9] float32 in the sensor frame of the sample, velocity NaN where it is not known.
        box_points: [N] int64 LiDAR points in the box, as annotated.
        box_name: [N] int64 place in `names`.
        names: class names: of the detection task, or the category.
    """

    file: np.ndarray
    time: np.ndarray
    to_global: np.ndarray
    previous: np.ndarray
    key_sweep: np.ndarray
    key_token: tuple[str, ...]
    key_scene: tuple[str, ...]
    first_box: np.ndarray
    boxes: np.ndarray
    box_points: np.ndarray
    box_name: np.ndarray
    names: tuple[str, ...]


def read_tables(folder: str | Path) -> NuScenesTables:
    """Read the .json tables of one version of nuScenes, e.g. ROOT/v1.0-trainval.

    Raises:
        DatasetError: if a table is missing, damaged, or lacks what another one refers to.
    """
    folder = Path(folder)
    try:
        return _read(folder)
    except (KeyError, IndexError, TypeError) as error:
        raise DatasetError(
            f"{folder}: the nuScenes tables do not belong together ({reason(error)} is missing). "
            f"Unpack the metadata of one version again."
        ) from error


def _read(folder: Path) -> NuScenesTables:
    lidars = {r["token"] for r in records(folder / "sensor.json") if r["channel"] == CHANNEL}
    mounts = {
        r["token"]: r for r in records(folder / "calibrated_sensor.json") if r["sensor_token"] in lidars
    }
    sweeps = [
        (r["token"], r["sample_token"], r["ego_pose_token"], r["calibrated_sensor_token"],
         r["timestamp"], r["filename"], r["prev"], r["is_key_frame"])
        for r in records(folder / "sample_data.json") if r["calibrated_sensor_token"] in mounts
    ]  # fmt: skip
    if not sweeps:
        raise DatasetError(f"{folder}: no {CHANNEL} frames in sample_data.json. Is this a nuScenes version?")
    place = {sweep[0]: i for i, sweep in enumerate(sweeps)}
    wanted = {sweep[2] for sweep in sweeps}
    egos = {
        r["token"]: (r["translation"], r["rotation"])
        for r in records(folder / "ego_pose.json")
        if r["token"] in wanted
    }
    to_ego = transforms([(mounts[s[3]]["translation"], mounts[s[3]]["rotation"]) for s in sweeps])
    to_world = transforms([egos[s[2]] for s in sweeps])
    to_global = (to_world @ to_ego)[:, :3]

    scenes = {r["token"]: r["name"] for r in records(folder / "scene.json")}
    key_of = {s[1]: i for i, s in enumerate(sweeps) if s[7]}
    samples = [
        (r["token"], scenes[r["scene_token"]], r["timestamp"]) for r in records(folder / "sample.json")
    ]
    samples = sorted((s for s in samples if s[0] in key_of), key=lambda s: (s[1], s[2]))
    key_sweep = np.array([key_of[token] for token, _, _ in samples], np.int64)
    first_box, boxes, box_points, box_name, names = _boxes(folder, samples, to_global[key_sweep])
    return NuScenesTables(
        file=np.array([s[5].encode() for s in sweeps]),
        time=np.array([s[4] for s in sweeps], np.int64),
        to_global=to_global,
        previous=np.array([place.get(s[6], NONE) for s in sweeps], np.int64),
        key_sweep=key_sweep,
        key_token=tuple(token for token, _, _ in samples),
        key_scene=tuple(scene for _, scene, _ in samples),
        first_box=first_box,
        boxes=boxes,
        box_points=box_points,
        box_name=box_name,
        names=names,
    )


def _boxes(
    folder: Path, samples: list[tuple[str, str, int]], to_global: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """first_box, boxes, box_points, box_name and names, boxes sorted by sample."""
    categories = {
        r["token"]: DETECTION_NAMES.get(r["name"], r["name"]) for r in records(folder / "category.json")
    }
    names = tuple(sorted(set(categories.values())))
    number = {name: i for i, name in enumerate(names)}
    kind = {r["token"]: number[categories[r["category_token"]]] for r in records(folder / "instance.json")}
    order = {token: k for k, (token, _, _) in enumerate(samples)}
    found = [
        (order[r["sample_token"]], r["translation"], r["size"], r["rotation"], kind[r["instance_token"]],
         r["num_lidar_pts"], r["token"], r["prev"], r["next"])
        for r in records(folder / "sample_annotation.json") if r["sample_token"] in order
    ]  # fmt: skip
    found.sort(key=lambda r: r[0])
    sample = np.array([r[0] for r in found], np.int64)
    first_box = np.searchsorted(sample, np.arange(len(samples) + 1))
    centre = np.array([r[1] for r in found], np.float64).reshape(-1, 3)
    size = np.array([r[2] for r in found], np.float64).reshape(-1, 3)
    place = {r[6]: i for i, r in enumerate(found)}
    before, after = (np.array([place.get(r[c], NONE) for r in found], np.int64) for c in (7, 8))
    seconds = np.array([t for _, _, t in samples], np.float64)[sample] * 1e-6
    velocity = velocities(centre, seconds, before=before, after=after)

    # World to sensor: the inverse of a rigid transform.
    rotation, origin = to_global[sample, :, :3], to_global[sample, :, 3]
    towards = rotation.transpose(0, 2, 1)
    boxes = np.empty((len(found), 9), np.float32)
    boxes[:, :3] = np.einsum("nij,nj->ni", towards, centre - origin)
    boxes[:, 3:6] = size[:, [1, 0, 2]]  # w, l, h
    forward = towards @ _matrices([r[3] for r in found])
    boxes[:, 6] = np.arctan2(forward[:, 1, 0], forward[:, 0, 0])
    boxes[:, 7:] = np.einsum("nij,nj->ni", towards, velocity)[:, :2]
    points = np.array([r[5] for r in found], np.int64)
    return first_box, boxes, points, np.array([r[4] for r in found], np.int64), names


def velocities(
    centre: np.ndarray, seconds: np.ndarray, *, before: np.ndarray, after: np.ndarray
) -> np.ndarray:
    """Velocities [N, 3] of annotated objects in m/s, by the devkit's rule.

    Central difference over the neighbouring annotations of the instance, one-sided where one is missing; NaN where both
    are, or the annotations are further apart than 1.5 s (3 s if there are both).

    Args:
        centre: [N, 3] positions in the world.
        seconds: [N] times.
        before, after: [N] place of the neighbouring annotation, -1 where there is none.
    """
    own = np.arange(len(centre))
    first, last = np.where(before == NONE, own, before), np.where(after == NONE, own, after)
    elapsed = seconds[last] - seconds[first]
    both = (before != NONE) & (after != NONE)
    known = (elapsed > 0) & (elapsed <= np.where(both, 2, 1) * MAX_GAP_S)
    moved = centre[last] - centre[first]
    return np.where(known[:, None], moved / np.where(known, elapsed, 1.0)[:, None], np.nan)


def transforms(poses: list[tuple[list[float], list[float]]]) -> np.ndarray:
    """Rigid transforms [N, 4, 4] of (translation xyz, rotation wxyz)."""
    matrices = np.tile(np.eye(4), (len(poses), 1, 1))
    matrices[:, :3, :3] = _matrices([rotation for _, rotation in poses])
    matrices[:, :3, 3] = [translation for translation, _ in poses]
    return matrices


def _matrices(quaternions: list[list[float]]) -> np.ndarray:
    """Rotation matrices [N, 3, 3] of quaternions w, x, y, z."""
    if not quaternions:
        return np.empty((0, 3, 3))
    return Rotation.from_quat(np.array(quaternions)[:, [1, 2, 3, 0]]).as_matrix()


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a table, a JSON array of objects, without holding the table.

    Raises:
        DatasetError: if the file is missing, or is not such an array to its end.
    """
    decoder = json.JSONDecoder()
    try:
        with path.open() as file:
            text, at, begun = file.read(_BLOCK), 0, False
            while True:
                while at < len(text) and text[at] in " \t\r\n,[":
                    begun |= text[at] == "["
                    at += 1
                if begun and text[at : at + 1] == "]":
                    return
                if not begun and at < len(text):
                    raise DatasetError(
                        f"{path}: not a nuScenes table (a JSON array of objects). Unpack it again."
                    )
                try:
                    record, at = decoder.raw_decode(text, at)
                except ValueError as error:
                    more = file.read(_BLOCK)
                    if not more:
                        raise DatasetError(
                            f"{path}: truncated or damaged after {len(text) - at} unread characters "
                            f"({reason(error)}). Unpack it again."
                        ) from error
                    text, at = text[at:] + more, 0
                    continue
                yield record
    except OSError as error:
        raise DatasetError(
            f"{path}: a nuScenes table is missing ({error.strerror}). "
            f"data.root holds samples/, sweeps/ and the tables in v1.0-trainval/ (or data.version)."
        ) from error
