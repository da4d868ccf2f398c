"""Where the point files of each known layout lie: to find frames, and to say what a wrong folder holds."""

from pathlib import Path

from lidar.datasets.errors import DatasetError
from lidar.datasets.points import SUFFIXES

# Globs relative to data.root; the deeper ones let the root be a parent of the usual place.
KITTI_SEQUENCES = {
    "raw": ("velodyne_points/data", "*/velodyne_points/data", "*/*/velodyne_points/data"),
    "odometry": ("sequences/[0-9][0-9]/velodyne", "*/sequences/[0-9][0-9]/velodyne", "[0-9][0-9]/velodyne"),
    "tracking": (
        "training/velodyne/[0-9][0-9][0-9][0-9]",
        "*/training/velodyne/[0-9][0-9][0-9][0-9]",
        "velodyne/[0-9][0-9][0-9][0-9]",
    ),
}
KITTI_OBJECT_FRAME = "[0-9]" * 6 + ".bin"


def existing_root(root: str | Path | None, setting: str) -> Path:
    """The root as a Path.

    Raises:
        DatasetError: if it is not set or not an existing folder.
    """
    if not root:
        raise DatasetError(f"{setting} needs a folder of frames. Set data.root=DIR.")
    path = Path(root).expanduser()
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise DatasetError(f"{path}: the root of {setting} {what}. Set data.root to an existing folder.")
    return path


def no_frames(root: Path, setting: str, looked_for: str) -> DatasetError:
    """The error for a root without frames of the wanted layout, with the setting that fits what is there."""
    fitting = fitting_setting(root)
    hint = f"What is there fits {fitting}." if fitting else "No point file was found there; check data.root."
    return DatasetError(f"{root}: no frames for {setting} (looked for {looked_for}). {hint}")


def fitting_setting(root: Path) -> str | None:
    """The data= setting that fits the files under a folder (at most four levels deep), or None."""
    for patterns in KITTI_SEQUENCES.values():
        if any(_has(root, f"{pattern}/*.bin") for pattern in patterns):
            return "data=kitti_sequences"
    for base in ("training", "testing", ".", "*/training"):
        if _has(root, f"{base}/velodyne/{KITTI_OBJECT_FRAME}"):
            if base == "*/training":
                nested = next(root.glob(f"{base}/velodyne"))
                return f"data=kitti data.root={nested.parents[1]}"
            return "data=kitti"
    for base in ("training", "."):
        if _has(root, f"{base}/velodyne_reduced/{KITTI_OBJECT_FRAME}"):
            return "data=kitti data.view=camera (camera-view crops only)"
    levels = ("*", "*/*", "*/*/*", "*/*/*/*")
    if any(_has(root, f"{level}.pcd.bin") for level in levels):
        return "data=nuscenes_sweeps"
    if any(_has(root, f"{level}{suffix}") for level in levels for suffix in SUFFIXES):
        return "data=folder"
    return None


def _has(root: Path, pattern: str) -> bool:
    return next(root.glob(pattern), None) is not None
