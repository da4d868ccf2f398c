"""Detectors and labelled data as settings describe them, and trained runs to evaluate."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pretraining_data import simulated_folder
from runs import locate

from lidar.augment import Augmentation
from lidar.datasets import KittiObject, PointFolder, split_scenes
from lidar.datasets.errors import FrameError
from lidar.datasets.nuscenes import NuScenesKeyFrames, official_scenes
from lidar.datasets.sources import FrameRef
from lidar.detection import models, pv_rcnn_models
from lidar.detection.augmentation import DetectionAugmentation
from lidar.detection.balanced import balanced_frames, class_presence
from lidar.detection.benchmarks import LabelledKitti, LabelledNuScenes
from lidar.detection.checkpoints import load_detector
from lidar.detection.folder_labels import LabelledFolder
from lidar.detection.gt_cutting import build_database
from lidar.detection.gt_database import GroundTruthDatabase
from lidar.detection.gt_sampling import GroundTruthSampling
from lidar.detection.labelled import LabelledFrames
from lidar.detection.labels import ClassNames, LabelledSource, label_fraction
from lidar.detection.voxel_detector import VoxelDetector
from lidar.grid import VoxelGrid
from worldmodel.distributed import barrier, rank
from worldmodel.training.run_folder import RunFolderError

Settings = dict[str, Any]
DETECTORS: dict[str, Callable[..., VoxelDetector]] = {
    maker.__name__: maker
    for maker in (
        models.second_small, models.second_kitti, models.second_once, models.center_point_small,
        models.center_point_kitti, models.center_point_nuscenes, models.center_point_waymo,
        pv_rcnn_models.pv_rcnn_small, pv_rcnn_models.pv_rcnn_kitti,
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LabelledSplit:
    """Frames of one side, and what reads them."""

    source: LabelledSource
    refs: tuple[FrameRef, ...]


def detector(settings: Settings) -> VoxelDetector:
    """The `detector` group, its weights drawn from the seed.

    Raises:
        ValueError: for an unknown name or option.
    """
    given = settings["detector"]
    if given["name"] not in DETECTORS:
        raise ValueError(f"detector.name is one of {', '.join(DETECTORS)}, got {given['name']!r}")
    options = {**given["options"], "classes": tuple(given["classes"]), "seed": settings["seed"]}
    if given["grid"]:
        options["grid"] = VoxelGrid(**{key: tuple(value) for key, value in given["grid"].items()})
    try:
        return DETECTORS[given["name"]](**options)
    except TypeError as error:
        raise ValueError(f"detector.options do not fit {given['name']}: {error}") from error


def class_names(settings: Settings) -> ClassNames:
    """Classes and aliases of the `detector` group."""
    given = settings["detector"]
    return ClassNames(names=tuple(given["classes"]), aliases=given["aliases"])


def split(settings: Settings, side: str) -> LabelledSplit:
    """One side of the `detection_data` group: "split" for training, "heldout" for the rest."""
    data = settings["detection_data"]
    name, chosen = data["name"], data[side]
    root = Path(str(data["root"])).expanduser()
    if name in ("kitti", "simulated"):
        if name == "simulated":
            root = simulated_folder(data, root, progress=settings["trainer"]["progress"])
        scans = KittiObject(
            root=root, split=chosen if chosen or side == "split" else data["split"], view=data["view"]
        )
        source: LabelledSource = LabelledKitti(scans=scans)
    elif name == "nuscenes":
        scenes = official_scenes(chosen)
        frames = NuScenesKeyFrames(root=root, version=data["version"], sweeps=data["sweeps"], scenes=scenes)
        source = LabelledNuScenes(scans=frames)
    elif name == "folder":
        points = PointFolder(root=root, columns=data["columns"], intensity_scale=data["intensity_scale"])
        source = LabelledFolder(points=points, labels_at=data["labels"], velocities=data["velocities"])
        sides = split_scenes(
            source, 1 - data["split"], 0
        )  # part of the data: it does not follow the run's seed
        return LabelledSplit(source=source, refs=sides[0 if side == "split" else 1])
    else:
        raise ValueError(f"detection_data is kitti, simulated, nuscenes or folder, got {name!r}")
    return LabelledSplit(source=source, refs=source.frames)


def training_frames(settings: Settings, made: VoxelDetector) -> LabelledFrames:
    """The training side: its fraction, augmented."""
    data, classes = settings["detection_data"], class_names(settings)
    whole = split(settings, "split")
    refs = label_fraction(whole.refs, data["fraction"], seed=data["fraction_seed"])
    given = dict(data["augment"])
    translation = tuple(given.pop("translation_std"))
    geometry = Augmentation(**{**given, "scaling": tuple(given["scaling"])})
    augment = DetectionAugmentation(
        geometry=geometry,
        translation_std=translation,
        sampling=sampling(settings, whole.source, refs, classes),
    )
    if data["balanced"]:
        present = class_presence(whole.source, refs, classes)
        refs = tuple(refs[i] for i in balanced_frames(present, seed=settings["seed"], epoch=0))
    return LabelledFrames(
        source=whole.source, refs=refs, point_range=made.training_voxels.grid.point_range, classes=classes,
        augment=augment, training=True, min_points=data["min_points"], on_error=data["on_error"], seed=settings["seed"],
        allow_absent=data["fraction"] < 1,
    )  # fmt: skip


def sampling(
    settings: Settings, source: LabelledSource, refs: Sequence[FrameRef], classes: ClassNames
) -> GroundTruthSampling | None:
    """Pasting from a database of exactly these frames, which is made once and then found again.

    Names that are no class of the detector are left out, and so are, of a fraction of the labels, classes of which it
    has nothing to paste. Which ones is printed.

    Raises:
        ValueError: for a name that is no class of the detector and in no label either.
    """
    data = settings["detection_data"]
    given = data["sampling"]
    asked = {name: count for name, count in (given["counts"] or {}).items() if count}
    counts = {name: count for name, count in asked.items() if name in classes.names}
    unknown = set(asked) - set(counts)
    for ref in source.frames:
        if not unknown:
            break
        with suppress(FrameError):  # of the frames that are trained on it is raised when they are cut
            unknown -= set(source.labels(ref).names)
    if unknown:
        raise ValueError(
            f"gt-sampling counts {', '.join(sorted(unknown))}, but the classes are {classes.names} and no label has "
            f"that name: leave it out with ~detection_data.sampling.counts.NAME"
        )
    if not counts:
        return None
    told = json.dumps([source.name, [str(ref.path) for ref in refs], classes.names, dict(classes.aliases)])
    path = Path(given["cache"]) / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.gt"
    part = data["fraction"] < 1
    if rank() == 0 and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        workers = min(len(os.sched_getaffinity(0)), 1 + len(refs) // 500)
        build_database(
            path, source=source, refs=refs, classes=classes, workers=workers, on_error=data["on_error"],
            allow_absent=part, progress=settings["trainer"]["progress"],
        )  # fmt: skip
    barrier()
    database, least = GroundTruthDatabase(path), given["min_points"]
    if part:
        counts = {n: count for n, count in counts.items() if len(database.pool(n, min_points=least))}
    if rank() == 0 and (left_out := sorted(set(asked) - set(counts))):
        print(
            f"not pasted: {', '.join(left_out)} (no class of the detector, or no object in these frames)",
            flush=True,
        )
    if not counts:
        return None
    return GroundTruthSampling(
        database=database, classes=classes.names, counts=counts, subtract_present=given["subtract_present"],
        min_points=least,
    )  # fmt: skip


def heldout_frames(settings: Settings, made: VoxelDetector, *, count: int | None = None) -> LabelledFrames:
    """The held-out side as recorded, evenly thinned to `count` frames.

    Raises:
        ValueError: if nothing is held out.
    """
    whole = split(settings, "heldout")
    refs = whole.refs
    if not refs:
        raise ValueError(
            "nothing is held out: choose detection_data.heldout, or a smaller detection_data.split"
        )
    if count is not None and count < len(refs):
        refs = tuple(refs[i] for i in np.linspace(0, len(refs) - 1, count).round().astype(int))
    return LabelledFrames(
        source=whole.source, refs=refs, point_range=made.test_voxels.grid.point_range, classes=class_names(settings),
        training=False, allow_absent=True,
    )  # fmt: skip


def load_run(path: Path) -> tuple[VoxelDetector, Settings, Path]:
    """A trained detector in evaluation mode, the settings of its run and its checkpoint.

    Raises:
        RunFolderError: if it is no run of train_detector.py.
        CheckpointError: if the checkpoint does not fit.
    """
    run, checkpoint = locate(path)
    try:
        settings = json.loads(run.config.read_text())
        made = detector(settings)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{run.config} does not describe a detector of this version ({type(error).__name__}: {error})"
        ) from error
    load_detector(made, checkpoint / "model.safetensors")
    return made.eval().requires_grad_(False), settings, checkpoint
