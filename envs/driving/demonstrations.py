"""Drives as demonstrations: what the LiDAR saw, and the speed and yaw rate that were driven next."""

from pathlib import Path

from envs.demonstrations import Demonstration
from envs.driving.drive_store import read_drive

TASK = "driving"


def drive_files(folder: str | Path) -> list[Path]:
    """Files of the drives in a folder of `build_drives`, in their order; none if it is no such folder."""
    return sorted(Path(folder).glob("[0-9]" * 5 + ".npz"))


def drive_demonstration(path: Path, *, points: bool = True) -> Demonstration:
    """A stored drive of T + 2 sweeps as T steps; with its sweeps, unless `points` is false.

    The state is the speed (m/s) and yaw rate (rad/s) since the sweep before, the action those until the next one. The
    drive's number stands for the seed.

    Raises:
        DriveFileError: if the file is damaged.
        ValueError: if it has fewer than three sweeps.
    """
    drive = read_drive(path)
    if len(drive.points) < 3:
        raise ValueError(f"{path} has {len(drive.points)} sweeps: a demonstration needs 3")
    return Demonstration(
        state=drive.actions[:-1],
        environment=None,
        image=None,
        action=drive.actions[1:],
        task=TASK,
        seed=int(path.stem),
        success=True,
        points=drive.points[1:-1] if points else None,
    )
