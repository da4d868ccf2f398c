"""A small nuScenes: scenes of the official mini splits, with tables, sweeps and moving objects of all ten classes."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lidar.datasets.nuscenes_tables import DETECTION_NAMES

VERSION = "v1.0-mini"
SPEED = 4.0  # m/s of the ego vehicle, along x of the world
STEP = 50_000  # microseconds between sweeps
PER_KEY = 10  # sweeps from key frame to key frame
KEYS = 2
HEIGHT = 1.8  # of the sensor above the ego frame


Tables = dict[str, list[dict[str, Any]]]


def common_tables(categories: tuple[str, ...], *, height: float) -> Tables:
    """All tables the devkit reads: one LiDAR `height` above the ego frame, and what does not depend on the scenes."""
    return {
        "category": [{"token": c, "name": c, "description": ""} for c in categories],
        "attribute": [{"token": "moving", "name": "vehicle.moving", "description": ""}],
        "visibility": [{"token": "4", "level": "v80-100", "description": ""}],
        "sensor": [{"token": "lidar", "channel": "LIDAR_TOP", "modality": "lidar"}],
        "calibrated_sensor": [
            {"token": "mount", "sensor_token": "lidar", "translation": [0, 0, height], "rotation": [1, 0, 0, 0],
             "camera_intrinsic": []}
        ],
        "log": [{"token": "log", "logfile": "", "vehicle": "", "date_captured": "", "location": ""}],
        "map": [{"token": "map", "log_tokens": ["log"], "category": "", "filename": ""}],
        "scene": [], "sample": [], "sample_data": [], "ego_pose": [], "instance": [], "sample_annotation": [],
    }  # fmt: skip


def write(root: Path, tables: Tables) -> None:
    """The files of the version."""
    (root / VERSION).mkdir(parents=True)
    for name, rows in tables.items():
        (root / VERSION / f"{name}.json").write_text(json.dumps(rows))


def write_drives(root: Path, scenes: tuple[str, ...]) -> None:
    """Every scene: key frames half a second apart, one object of each class ahead, each with its velocity."""
    rng = np.random.default_rng(0)
    names = {name: category for category, name in DETECTION_NAMES.items()}
    tables = common_tables(tuple(names.values()), height=HEIGHT)
    (root / "samples" / "LIDAR_TOP").mkdir(parents=True)
    for scene in scenes:
        start = rng.uniform(-5, 5, (len(names), 2)) + np.array([15.0, 0.0])
        velocity = rng.normal(0, 2, (len(names), 2))
        samples = [f"{scene}-{k}" for k in range(KEYS)]
        tables["scene"].append(
            {"token": scene, "log_token": "log", "nbr_samples": KEYS, "name": scene, "description": "",
             "first_sample_token": samples[0], "last_sample_token": samples[-1]}
        )  # fmt: skip
        for k, token in enumerate(samples):
            tables["sample"].append(
                {"token": token, "timestamp": k * PER_KEY * STEP, "scene_token": scene, **_chain(samples, k)}
            )
        sweeps = [f"{scene}-s{n}" for n in range((KEYS - 1) * PER_KEY + 1)]
        for n, token in enumerate(sweeps):
            ego = np.array([SPEED * n * STEP * 1e-6, 0.0, 0.0])
            name = f"samples/LIDAR_TOP/{token}.pcd.bin"
            centres = start + velocity * n * STEP * 1e-6
            _points(centres, ego, rng).tofile(root / name)
            tables["ego_pose"].append(
                {"token": token, "timestamp": n * STEP, "rotation": [1, 0, 0, 0], "translation": ego.tolist()}
            )
            tables["sample_data"].append(
                {"token": token, "sample_token": samples[n // PER_KEY], "ego_pose_token": token,
                 "calibrated_sensor_token": "mount", "timestamp": n * STEP, "fileformat": "bin",
                 "is_key_frame": n % PER_KEY == 0, "filename": name, **_chain(sweeps, n)}
            )  # fmt: skip
        for number, category in enumerate(names.values()):
            marks = [f"{scene}-{number}-{k}" for k in range(KEYS)]
            thing = f"{scene}-{number}"
            tables["instance"].append(
                {"token": thing, "category_token": category, "nbr_annotations": KEYS,
                 "first_annotation_token": marks[0], "last_annotation_token": marks[-1]}
            )  # fmt: skip
            for k, mark in enumerate(marks):
                x, y = start[number] + velocity[number] * k * PER_KEY * STEP * 1e-6
                tables["sample_annotation"].append(
                    {"token": mark, "sample_token": samples[k], "instance_token": thing, "visibility_token": "4",
                     "attribute_tokens": ["moving"] if category.startswith("vehicle") else [],
                     "translation": [x, y, 1], "size": [1.8, 4.0, 1.6], "rotation": [1, 0, 0, 0],
                     **_chain(marks, k), "num_lidar_pts": 20, "num_radar_pts": 0}
                )  # fmt: skip
    write(root, tables)


def _chain(tokens: list[str], k: int) -> dict[str, str]:
    return {"prev": tokens[k - 1] if k else "", "next": tokens[k + 1] if k + 1 < len(tokens) else ""}


def _points(centres: np.ndarray, ego: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32 [P, 5] in the sensor frame: twenty on every object, the ground around."""
    things = np.repeat(np.column_stack([centres, np.ones(len(centres))]), 20, axis=0)
    things += rng.uniform(-0.5, 0.5, things.shape) * (4.0, 1.8, 1.6)
    ground = np.column_stack([rng.uniform(5, 25, 300), rng.uniform(-10, 10, 300), np.zeros(300)])
    seen = np.vstack([things - ego, ground]) - (0, 0, HEIGHT)
    rest = np.column_stack([rng.uniform(0, 255, len(seen)), np.zeros(len(seen))])
    return np.column_stack([seen, rest]).astype("<f4")
