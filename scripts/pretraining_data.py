"""Which frames a pretraining run reads, from its `data` settings. Simulated frames are made here on first use."""

import os
from pathlib import Path
from typing import Any

from envs.driving.kitti_export import DatasetSpec, build_dataset
from lidar.augment import Augmentation
from lidar.datasets import FrameSource, KittiObject, KittiSequences, NuScenesSweeps, PointFolder, split_scenes
from lidar.experiment import DataChecks, PretrainingData, with_labels
from worldmodel.distributed import barrier, rank


def data_checks(settings: dict[str, Any]) -> DataChecks:
    """How frames are validated and augmented."""
    augment = {**settings["augment"], "scaling": tuple(settings["augment"]["scaling"])}
    return DataChecks(
        on_error=settings["on_error"], preflight=settings["preflight"], augment=Augmentation(**augment)
    )


def pretraining_data(settings: dict[str, Any], *, progress: bool) -> PretrainingData:
    """Open the data set that data=NAME and data.root=DIR name."""
    if settings["root"] is None:
        raise ValueError("data.root is not set: data.root=DIR, the folder of your frames")
    name, root = settings["name"], Path(str(settings["root"])).expanduser()
    if name == "simulated":
        return _simulated(settings, root, progress=progress)
    if name == "kitti":
        source: FrameSource = KittiObject(root=root, split=settings["split"], view=settings["view"])
    elif name == "kitti_sequences":
        source = KittiSequences(root=root)
    elif name == "nuscenes_sweeps":
        source = NuScenesSweeps(root=root)
    else:
        source = PointFolder(
            root=root,
            columns=settings["columns"],
            intensity_scale=settings["intensity_scale"],
            recursive=settings["recursive"],
        )
    if len(source.frames) == 1:
        note = "one frame only: it is trained on, nothing is held out and nothing is monitored"
        return PretrainingData(source=source, train=source.frames, heldout=(), notes=(note,))
    # The split is part of the data: it does not follow the run's seed.
    train, heldout = split_scenes(source, settings["val_fraction"], 0)
    pool, validation = (with_labels(train), with_labels(heldout)) if name == "kitti" else ((), ())
    return PretrainingData(
        source=source,
        train=train,
        heldout=heldout,
        probe_pool=pool,
        probe_validation=validation,
        labelled_view=KittiObject(root=root, view="camera") if pool and validation else None,
    )


def simulated_folder(settings: dict[str, Any], root: Path, *, progress: bool) -> Path:
    """The folder of the simulated set that data=simulated describes, in KITTI layout, made on first use."""
    azimuth = settings["azimuth"]
    spec = DatasetSpec(
        sensor=settings["sensor"],
        azimuth_range=tuple(azimuth) if azimuth else None,
        seed=settings["seed"],
        **settings["scenes"],
    )
    if rank() == 0:
        build_dataset(
            root, spec=spec, workers=settings["workers"] or len(os.sched_getaffinity(0)), progress=progress
        )
    barrier()
    return build_dataset(root, spec=spec, workers=1, progress=False)


def _simulated(settings: dict[str, Any], root: Path, *, progress: bool) -> PretrainingData:
    folder = simulated_folder(settings, root, progress=progress)
    parts = {
        split: KittiObject(root=folder, split=split, view=settings["view"])
        for split, count in settings["scenes"].items()
        if count
    }
    frames = {split: parts[split].frames if split in parts else () for split in ("train", "probe", "val")}
    return PretrainingData(
        source=next(iter(parts.values())),
        train=frames["train"],
        heldout=frames["val"],
        probe_pool=frames["probe"],
        probe_validation=frames["val"],
        notes=(f"simulated {settings['sensor']} scans in {folder}",),
    )
