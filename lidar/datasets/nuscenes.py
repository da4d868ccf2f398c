"""nuScenes key frames with the sweeps before them: one cloud in the key frame's LiDAR frame, with time lags."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lidar.datasets import layouts
from lidar.datasets.errors import DatasetError
from lidar.datasets.folder import NUSCENES_COLUMNS, NUSCENES_INTENSITY_SCALE
from lidar.datasets.nuscenes_tables import NONE, NuScenesTables, read_tables
from lidar.datasets.points import check_size, read_points
from lidar.datasets.sources import FrameRef

NEAR = 1.0  # metres: returns of the car itself


@dataclass(frozen=True, kw_only=True)
class NuScenesKeyFrames:
    """Annotated key frames (samples) of nuScenes, from its tables; no devkit.

    A frame's id is its sample token, its scene the scene's name. x points right, y forward, as in the recordings.

    Args:
        root: the folder that holds samples/, sweeps/ and the folder of tables.
        version: folder of tables: v1.0-trainval, v1.0-mini, ...
        sweeps: clouds to accumulate: the key frame's and those before it. Early key frames of a scene have fewer; none
            is taken twice. 1 gives the key frame alone.
        scenes: names of scenes to take, None for all. `official_scenes` has those of the official splits.

    Raises:
        DatasetError: if the root or the tables do not exist, or a scene is not in them.
        ValueError: if sweeps < 1.
    """

    root: str | Path
    version: str = "v1.0-trainval"
    sweeps: int = 10
    scenes: Sequence[str] | None = None
    frames: tuple[FrameRef, ...] = field(init=False, repr=False)
    tables: NuScenesTables = field(init=False, repr=False)
    _place: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.sweeps < 1:
            raise ValueError(f"data.sweeps counts the key frame: 1 or more, got {self.sweeps}")
        root = layouts.existing_root(self.root, "data=nuscenes")
        tables = read_tables(root / self.version)
        unknown = sorted(set(self.scenes or ()) - set(tables.key_scene))
        if unknown:
            raise DatasetError(
                f"{root / self.version}: no scene {', '.join(unknown[:5])} ({len(unknown)} of "
                f"{len(set(self.scenes or ()))} are missing). Choose the version that has them."
            )
        place = {token: k for k, token in enumerate(tables.key_token)}
        frames = tuple(
            FrameRef(root / tables.file[sweep].decode(), token, scene)
            for sweep, token, scene in zip(tables.key_sweep, tables.key_token, tables.key_scene, strict=True)
            if self.scenes is None or scene in self.scenes
        )
        object.__setattr__(self, "frames", frames)
        object.__setattr__(self, "tables", tables)
        object.__setattr__(self, "_place", place)

    @property
    def name(self) -> str:
        return f"nuscenes {self.version}, {self.sweeps} sweeps"

    def place(self, ref: FrameRef) -> int:
        """The sample's place in the tables."""
        return self._place[ref.frame_id]

    def read(self, ref: FrameRef) -> np.ndarray:
        """float32 [N, 5]: x, y, z in the key frame's LiDAR frame, intensity in 0..1, time lag in s (0 or more).

        Returns less than a metre from the axis of the sensor, in x and in y, are left out of every sweep.
        """
        tables, root = self.tables, Path(self.root).expanduser()
        key = sweep = int(tables.key_sweep[self.place(ref)])
        clouds = []
        for _ in range(self.sweeps):
            points = read_points(
                root / tables.file[sweep].decode(),
                columns=NUSCENES_COLUMNS,
                intensity_scale=NUSCENES_INTENSITY_SCALE,
            )
            points = points[(np.abs(points[:, :2]) >= NEAR).any(axis=1)]
            moved = np.empty((len(points), 5), np.float32)
            moved[:, 3] = points[:, 3]
            moved[:, 4] = (tables.time[key] - tables.time[sweep]) * 1e-6
            if sweep == key:
                moved[:, :3] = points[:, :3]
            else:
                rotation, shift = _between(tables.to_global[sweep], tables.to_global[key])
                moved[:, :3] = points[:, :3] @ rotation.T.astype(np.float32) + shift.astype(np.float32)
            clouds.append(moved)
            sweep = int(tables.previous[sweep])
            if sweep == NONE:
                break
        return np.concatenate(clouds)

    def check_size(self, ref: FrameRef) -> None:
        check_size(ref.path, columns=NUSCENES_COLUMNS)


def official_scenes(split: str) -> tuple[str, ...]:
    """Scene names of an official split: train, val, test, mini_train, mini_val, train_detect, ...

    Raises:
        ImportError: without nuscenes-devkit, which holds the lists.
        ValueError: if there is no such split.
    """
    try:
        from nuscenes.utils.splits import create_splits_scenes
    except ImportError as error:
        raise ImportError(
            "the official nuScenes splits are listed in nuscenes-devkit: pip install 'robot-worldmodel[nuscenes]', or "
            "give the names of the scenes"
        ) from error
    splits = create_splits_scenes()
    if split not in splits:
        raise ValueError(f"no nuScenes split {split!r}; choose one of {', '.join(splits)}")
    return tuple(splits[split])


def _between(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation [3, 3] and shift [3] from one sensor frame to another, both given as [3, 4] to the world."""
    back = target[:, :3].T
    return back @ source[:, :3], back @ (source[:, 3] - target[:, 3])
