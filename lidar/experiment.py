"""A pretraining run from frames on disk to a report: load, train, probe, write down."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from lidar.augment import Augmentation
from lidar.batch import PointCloudBatch
from lidar.datasets import FrameError, FrameRef, FrameSource, LidarFrames, collate, preflight
from lidar.datasets.kitti_labels import label_paths, read_kitti_labels
from lidar.grid import Range
from lidar.pretraining import LidarPretraining
from lidar.probe import LabelledScene, ProbeResult, run_probe
from worldmodel.training import FitResult, RunFolder, TrainerConfig, fit

# Points as recorded, in random order: caps in voxelisation are first come, and must not cut a sector out of a scan.
SHUFFLED = Augmentation(flip_x=False, flip_y=False, rotation=0.0, scaling=(1.0, 1.0), shuffle=True)


@dataclass(frozen=True, kw_only=True)
class PretrainingData:
    """Frames of a run.

    Attributes:
        source: reads them.
        train: frames to learn from, without labels.
        heldout: frames for the monitors; no scene of `train` is among them.
        probe_pool, probe_validation: frames whose labels the final probe may read; empty where there are none.
        labelled_view: reads the part of a scan that was annotated, where that is not all of it: KITTI's annotators saw
            the camera image only, and an unlabelled car beside it is no background.
        notes: lines for the report (frames left out, how the split was made).
    """

    source: FrameSource
    train: tuple[FrameRef, ...]
    heldout: tuple[FrameRef, ...]
    probe_pool: tuple[FrameRef, ...] = ()
    probe_validation: tuple[FrameRef, ...] = ()
    labelled_view: FrameSource | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Settings of the frozen probe; see `lidar.probe.run_probe`."""

    enabled: bool
    budgets: Sequence[int]
    draws: int
    pool_scenes: int
    validation_scenes: int
    calibration_frames: int


@dataclass(frozen=True, kw_only=True)
class DataChecks:
    """How frames are treated as they are read: `on_error` raise or skip, `preflight` full, size or off."""

    on_error: str
    preflight: str
    augment: Augmentation = field(default_factory=Augmentation)


def checked(
    data: PretrainingData, checks: DataChecks, point_range: Range, *, progress: bool
) -> PretrainingData:
    """Look at every frame before training; bad ones are an error, or are left out and noted.

    Raises:
        DatasetError: naming the first bad frames and the remedy.
    """
    kept, notes = {}, list(data.notes)
    bad: set[FrameRef] = set()
    for name in ("train", "heldout"):
        refs = getattr(data, name)
        if not refs:
            kept[name] = refs
            continue
        report = preflight(
            data.source, refs, point_range, on_error=checks.on_error, mode=checks.preflight, progress=progress
        )
        kept[name] = report.good
        bad |= set(refs) - set(report.good)
        if report.bad:
            notes.append(f"{name}: {report.summary()}")
    return PretrainingData(
        source=data.source,
        train=kept["train"],
        heldout=kept["heldout"],
        probe_pool=tuple(ref for ref in data.probe_pool if ref not in bad),
        probe_validation=tuple(ref for ref in data.probe_validation if ref not in bad),
        labelled_view=data.labelled_view,
        notes=tuple(notes),
    )


def spread(refs: Sequence[FrameRef], count: int) -> list[FrameRef]:
    """At most `count` evenly spaced frames: the first ones of a recording show one place."""
    count = min(count, len(refs))
    return [refs[i * len(refs) // count] for i in range(count)]


def heldout_batches(
    data: PretrainingData, point_range: Range, *, frames: int, batch_size: int, on_error: str
) -> list[PointCloudBatch]:
    """Held-out frames, evenly spaced, as batches, only shuffled; the seed of a frame is its position."""
    refs = spread(data.heldout, frames)
    if not refs:
        return []
    dataset = LidarFrames(
        source=data.source, refs=refs, point_range=point_range, on_error=on_error, augment=SHUFFLED
    )
    samples = [dataset[(i, i)] for i in range(len(refs))]
    return [collate(samples[i : i + batch_size]) for i in range(0, len(samples), batch_size)]


def labelled_scenes(
    data: PretrainingData, refs: Sequence[FrameRef], point_range: Range
) -> list[LabelledScene]:
    """Full scans with their boxes. The only place of a pretraining run that opens a label, after training."""
    dataset = LidarFrames(source=data.source, refs=refs, point_range=point_range, augment=SHUFFLED)
    scenes = []
    for index, ref in enumerate(refs):
        sample = dataset[(index, index)]
        labels = read_kitti_labels(*label_paths(ref.path))
        seen = None
        if data.labelled_view is not None:
            seen = torch.from_numpy(data.labelled_view.read(ref))
        scenes.append(
            LabelledScene(frame_id=ref.frame_id, points=sample.points, labels=labels, annotated=seen)
        )
    return scenes


def train(
    task: LidarPretraining,
    *,
    data: PretrainingData,
    checks: DataChecks,
    heldout: Sequence[PointCloudBatch],
    run: RunFolder,
    config: TrainerConfig,
    device: torch.device,
) -> FitResult:
    """Pretrain, or continue, in the run folder."""
    dataset = LidarFrames(
        source=data.source,
        refs=data.train,
        point_range=task.voxelizer.grid.point_range,
        on_error=checks.on_error,
        augment=checks.augment,
        seed=config.seed,
    )
    return fit(task, dataset=dataset, collate=collate, heldout=heldout, run=run, config=config, device=device)


def probe(
    task: LidarPretraining,
    *,
    data: PretrainingData,
    config: ProbeConfig,
    seed: int,
    device: torch.device,
) -> tuple[ProbeResult | None, str]:
    """The frozen probe, or None and the reason why there is none."""
    if not config.enabled:
        return None, "switched off (probe.enabled=false)"
    if not data.probe_pool or not data.probe_validation:
        return None, "no labelled frames (only KITTI object layout with label_2 and calib has them)"
    point_range = task.voxelizer.grid.point_range
    try:
        pool = labelled_scenes(data, spread(data.probe_pool, config.pool_scenes), point_range)
        validation = labelled_scenes(
            data, spread(data.probe_validation, config.validation_scenes), point_range
        )
    except FrameError as error:
        return None, f"a labelled frame could not be read: {error}"
    result = run_probe(
        pretrained=task.model.encoder,
        random=task.untrained_encoder,
        pool=pool,
        validation=validation,
        voxelizer=task.voxelizer.every_voxel,
        budgets=config.budgets,
        draws=config.draws,
        calibration_frames=config.calibration_frames,
        seed=seed,
        device=device,
    )
    return result, ""


def with_labels(refs: Sequence[FrameRef]) -> tuple[FrameRef, ...]:
    """Those frames whose label and calibration files exist; the files are not opened."""
    return tuple(ref for ref in refs if all(path.is_file() for path in label_paths(ref.path)))


def probe_summary(result: ProbeResult) -> list[dict[str, Any]]:
    """The probe table as plain values."""
    return [{**asdict(row), "gain": row.gain, "gain_interval": row.gain_interval} for row in result.rows]
