"""Drives on disk, and as episodes: one file per drive, made once, resumable, in parallel."""

import io
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from envs.driving.drives import Drive, DriveSpec, simulate_drive
from envs.driving.kitti_export import _run, _write
from envs.driving.routes import MAX_SPEED, MAX_YAW_RATE
from envs.episodes import ActionSpec, Episode

_STEP = 0.002  # metres: coordinates are stored as 16-bit multiples, ten times finer than the range noise
ACTION = ActionSpec(
    names=("speed [m/s]", "yaw rate [rad/s]"),
    low=np.array([0.0, -MAX_YAW_RATE], np.float32),
    high=np.array([MAX_SPEED, MAX_YAW_RATE], np.float32),
)


class DriveFileError(ValueError):
    """A stored drive cannot be read."""


def build_drives(root: str | Path, *, spec: DriveSpec, workers: int = 1, progress: bool = True) -> list[Path]:
    """Files of a set of drives; those that are missing are simulated.

    A drive depends on the spec and its number alone, so a larger set contains the smaller one and shares its folder.

    Args:
        root: files go to root / "drives-<fingerprint of the spec>".
        workers: processes; 1 simulates in this one. More need the usual `if __name__ == "__main__":` guard.

    Raises:
        ValueError: if workers < 1.
        RuntimeError: if a worker died.
        KeyboardInterrupt: on Ctrl-C; what is done is kept.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")
    folder = Path(root) / f"drives-{spec.fingerprint()}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{i:05d}.npz" for i in range(spec.drives)]
    todo = [i for i, path in enumerate(files) if not path.exists()]
    with tqdm(
        total=spec.drives,
        initial=spec.drives - len(todo),
        desc="simulating drives",
        unit="drive",
        disable=not progress,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
    ) as bar:
        for _ in _run(partial(_write_drive, folder, spec), todo, workers=min(workers, max(len(todo), 1))):
            bar.update()
    return files


def _write_drive(folder: Path, spec: DriveSpec, index: int) -> int:
    save_drive(folder / f"{index:05d}.npz", simulate_drive(spec, index))
    return index


def save_drive(path: Path, drive: Drive) -> None:
    """Write a drive under a temporary name and rename it."""
    points = np.concatenate(drive.points)
    content = io.BytesIO()
    np.savez(
        content,
        xyz=np.rint(points[:, :3] / _STEP).astype(np.int16),
        intensity=np.rint(points[:, 3] * 255).astype(np.uint8),
        offsets=np.cumsum([0, *(len(p) for p in drive.points)]),
        actions=drive.actions,
        poses=drive.poses,
        seen=drive.seen,
        manoeuvre=np.array(drive.manoeuvre),
    )
    _write(path, content.getvalue())


def read_drive(path: Path) -> Drive:
    """A stored drive, coordinates to within 1 mm.

    Raises:
        DriveFileError: if the file is missing, truncated or not a drive; the message names it.
    """
    try:
        with np.load(path) as stored:
            values = {name: stored[name] for name in stored.files}
        points = np.empty((len(values["xyz"]), 4), np.float32)
        points[:, :3] = values["xyz"] * np.float32(_STEP)
        points[:, 3] = values["intensity"] / np.float32(255)
        return Drive(
            points=tuple(np.split(points, values["offsets"][1:-1])),
            actions=values["actions"],
            poses=values["poses"],
            seen=values["seen"],
            manoeuvre=str(values["manoeuvre"]),
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DriveFileError(
            f"{path} is not a readable drive ({type(error).__name__}: {error}); delete it and build the set again"
        ) from error


class DriveEpisodes:
    """Stretches of stored drives as episodes at 10 Hz.

    Observations are point clouds [T, P, 4]; sweeps of fewer than P points are filled up with rows of infinity, which
    lie in no voxel grid, and of larger ones P points are drawn at random. Labels: `pose` [T, 3] in the frame of the
    street, `seen` [T] road users.

    Args:
        files: of the drives (`build_drives`); the items.
        points: P.
    """

    def __init__(self, files: list[Path], *, points: int = 34_000) -> None:
        self.files, self.points = files, points

    @property
    def action(self) -> ActionSpec:
        return ACTION

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (self.points, 4)

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Episode:
        """`steps` consecutive sweeps of one drive from a random one on."""
        drive = read_drive(self.files[item])
        sweeps = stretch(len(drive.points), steps=steps, generator=generator, item=item)
        observations = np.full((steps, self.points, 4), np.inf, np.float32)
        for row, points in zip(observations, drive.points[sweeps], strict=True):
            chosen = points
            if len(points) > self.points:
                chosen = points[np.sort(generator.choice(len(points), self.points, replace=False))]
            row[: len(chosen)] = chosen
        return Episode(
            observations=observations,
            actions=drive.actions[sweeps][: steps - 1],
            item=item,
            labels={"pose": drive.poses[sweeps], "seen": drive.seen[sweeps]},
        )


class FeatureEpisodes:
    """Stretches of drives whose sweeps were encoded beforehand; splits, actions and labels as in `DriveEpisodes`.

    Args:
        features: per drive [T, ...] float32.
        actions: per drive [T - 1, 2] float32.

    Raises:
        ValueError: if a drive's features and actions do not belong together.
    """

    def __init__(self, features: list[np.ndarray], actions: list[np.ndarray]) -> None:
        for i, (f, a) in enumerate(zip(features, actions, strict=True)):
            if a.shape != (len(f) - 1, ACTION.dim):
                raise ValueError(f"drive {i}: {len(f)} frames of features, but actions {a.shape}")
        self.features, self.actions = features, actions

    @property
    def action(self) -> ActionSpec:
        return ACTION

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return self.features[0].shape[1:]

    def __len__(self) -> int:
        return len(self.features)

    def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Episode:
        """`steps` consecutive frames of one drive from a random one on."""
        frames = stretch(len(self.features[item]), steps=steps, generator=generator, item=item)
        return Episode(
            observations=self.features[item][frames].astype(np.float32, copy=False),
            actions=self.actions[item][frames][: steps - 1],
            item=item,
        )


def stretch(frames: int, *, steps: int, generator: np.random.Generator, item: int) -> slice:
    """`steps` consecutive frames out of `frames`, from a random one on.

    Raises:
        ValueError: if the drive is shorter.
    """
    if steps > frames:
        raise ValueError(f"drive {item} has {frames} sweeps, fewer than the {steps} asked for")
    start = int(generator.integers(frames - steps + 1))
    return slice(start, start + steps)
