"""Frames without any benchmark around them: a folder of point files, and nuScenes sweeps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lidar.datasets import layouts
from lidar.datasets.points import SUFFIXES, check_size, read_points
from lidar.datasets.sources import FrameRef

NUSCENES_COLUMNS = 5  # x, y, z, intensity, ring
NUSCENES_INTENSITY_SCALE = 255.0


@dataclass(frozen=True, kw_only=True)
class PointFolder:
    """Any folder of .bin, .npy, .npz, .pcd or .ply files, in the order of their paths.

    A scene is a subfolder if the files lie in several, else a block of `frames_per_scene` consecutive files.

    Args:
        root: the folder.
        pattern: glob for the file names, e.g. "*_front.pcd".
        suffixes: which formats to take.
        columns: float32 values per point of .bin files; default 4 (5 for .pcd.bin).
        intensity_scale: the sensor's largest intensity; intensities are divided by it.
        recursive: look into subfolders as well.
        frames_per_scene: block length where there is one folder; 100 is ten seconds at 10 Hz.

    Raises:
        DatasetError: if the root does not exist or holds no such file.
        ValueError: if an argument is out of range.
    """

    root: str | Path
    pattern: str = "*"
    suffixes: Sequence[str] = SUFFIXES
    columns: int | None = None
    intensity_scale: float = 1.0
    recursive: bool = True
    frames_per_scene: int = 100
    frames: tuple[FrameRef, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.suffixes) - set(SUFFIXES))
        if unknown or not self.suffixes:
            raise ValueError(f"suffixes are among {', '.join(SUFFIXES)}, got {list(self.suffixes)}")
        if self.columns is not None and self.columns < 3:
            raise ValueError(f"data.columns counts x, y, z and what follows: 3 or more, got {self.columns}")
        if not self.intensity_scale > 0:
            raise ValueError(f"data.intensity_scale must be above 0, got {self.intensity_scale}")
        if self.frames_per_scene < 1:
            raise ValueError(f"frames_per_scene must be 1 or more, got {self.frames_per_scene}")
        root = layouts.existing_root(self.root, "data=folder")
        found = root.rglob(self.pattern) if self.recursive else root.glob(self.pattern)
        paths = sorted(p for p in found if p.suffix.lower() in self.suffixes and p.is_file())
        if not paths:
            where = f"{root}/{'**/' if self.recursive else ''}{self.pattern}"
            raise layouts.no_frames(root, "data=folder", f"{where} with suffix {' '.join(self.suffixes)}")
        object.__setattr__(self, "frames", _as_frames(root, paths, self.frames_per_scene))

    @property
    def name(self) -> str:
        return f"folder {Path(self.root).name}"

    def read(self, ref: FrameRef) -> np.ndarray:
        return read_points(ref.path, columns=self.columns, intensity_scale=self.intensity_scale)

    def check_size(self, ref: FrameRef) -> None:
        check_size(ref.path, columns=self.columns)


@dataclass(frozen=True, kw_only=True)
class NuScenesSweeps:
    """nuScenes LIDAR_TOP point files, key frames and the sweeps between them; no devkit, no tables.

    Files are .pcd.bin: x, y, z, intensity 0..255, ring. A scene is a log, the file name before "__".

    Args:
        root: the folder that holds samples/LIDAR_TOP and/or sweeps/LIDAR_TOP, else any folder of .pcd.bin
            files.

    Raises:
        DatasetError: if the root does not exist or holds no .pcd.bin file.
    """

    root: str | Path
    frames: tuple[FrameRef, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        root = layouts.existing_root(self.root, "data=nuscenes_sweeps")
        folders = [f for part in ("samples", "sweeps") if (f := root / part / "LIDAR_TOP").is_dir()]
        globs = [folder.glob("*.pcd.bin") for folder in folders] or [root.rglob("*.pcd.bin")]
        paths = [path for found in globs for path in found]
        if not paths:
            looked_for = "*.pcd.bin in samples/LIDAR_TOP, sweeps/LIDAR_TOP or anywhere below"
            raise layouts.no_frames(root, "data=nuscenes_sweeps", looked_for)
        # LOG__LIDAR_TOP__MICROSECONDS.pcd.bin: by name is by log, then time; samples and sweeps interleave.
        frames = (
            FrameRef(p, _frame_name(p), p.name.split("__")[0]) for p in sorted(paths, key=lambda p: p.name)
        )
        object.__setattr__(self, "frames", tuple(frames))

    @property
    def name(self) -> str:
        return "nuscenes sweeps"

    def read(self, ref: FrameRef) -> np.ndarray:
        return read_points(ref.path, columns=NUSCENES_COLUMNS, intensity_scale=NUSCENES_INTENSITY_SCALE)

    def check_size(self, ref: FrameRef) -> None:
        check_size(ref.path, columns=NUSCENES_COLUMNS)


def _frame_name(path: Path) -> str:
    return path.name.removesuffix(".pcd.bin")


def _as_frames(root: Path, paths: list[Path], frames_per_scene: int) -> tuple[FrameRef, ...]:
    parents = {path.parent for path in paths}
    frames = []
    for number, path in enumerate(paths):
        name = path.relative_to(root)
        scene = str(name.parent) if len(parents) > 1 else f"block_{number // frames_per_scene:04d}"
        frames.append(FrameRef(path, name.as_posix(), scene))
    return tuple(frames)
