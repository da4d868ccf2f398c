"""KITTI: the object benchmark's frames, and the consecutive scans of raw, odometry and tracking."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lidar.datasets import layouts
from lidar.datasets.errors import DatasetError, FrameError
from lidar.datasets.kitti_calib import KittiCalib, png_size
from lidar.datasets.points import check_size, read_points
from lidar.datasets.sources import FrameRef

DEFAULT_IMAGE_SIZE = (1242, 375)
VIEWS = ("full", "camera")


@dataclass(frozen=True, kw_only=True)
class KittiObject:
    """Frames of the KITTI 3D object benchmark, or of data written in its layout.

    A frame is its own scene, unless the devkit's mapping files (mapping/train_mapping.txt and train_rand.txt)
    tell which drive it is from: frames of one drive then form a scene.

    Args:
        root: the folder that holds training/ (or testing/), or that folder itself.
        split: a name in ImageSets/ (train, val, trainval, test, ...); None takes every frame. "test" reads
            testing/.
        view: "full" keeps the whole scan and opens nothing but the point file. "camera" keeps the points the
            left colour camera sees (OpenPCDet's FOV_POINTS_ONLY), through calib/ID.txt and the image's size:
            from image_2/ID.png, else image_sizes.csv (frame,width,height), else 1242 x 375. Frames that exist
            only in velodyne_reduced/ are camera views already and are taken as they are.

    Raises:
        DatasetError: if the root, the split or the frames do not exist.
    """

    root: str | Path
    split: str | None = None
    view: str = "full"
    frames: tuple[FrameRef, ...] = field(init=False, repr=False)
    _image_sizes: dict[str, tuple[int, int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise ValueError(f"data.view is one of {', '.join(VIEWS)}, got {self.view!r}")
        root = layouts.existing_root(self.root, "data=kitti")
        part = root / ("testing" if self.split == "test" else "training")
        if not part.is_dir():
            part = root
        ids = _listed_ids(part, self.split) if self.split else None
        object.__setattr__(self, "frames", self._find(root, part, ids))
        object.__setattr__(self, "_image_sizes", _image_sizes(part) if self.view == "camera" else {})

    @property
    def name(self) -> str:
        return f"kitti object {self.split or 'all frames'}, {self.view} view"

    def read(self, ref: FrameRef) -> np.ndarray:
        points = read_points(ref.path)
        if self.view == "full" or ref.path.parent.name == "velodyne_reduced":
            return points
        part = ref.path.parents[1]
        calib = KittiCalib.read(part / "calib" / f"{ref.frame_id}.txt")
        seen = points[calib.in_image(points, self.image_size(ref))]
        if len(seen) == 0:
            raise FrameError(
                ref.path,
                f"none of its {len(points)} points is in the camera's view",
                f"Check calib/{ref.frame_id}.txt, or set data.view=full.",
            )
        return seen

    def check_size(self, ref: FrameRef) -> None:
        check_size(ref.path)

    def _find(self, root: Path, part: Path, ids: list[str] | None) -> tuple[FrameRef, ...]:
        found: dict[str, Path] = {}
        for folder in ("velodyne_reduced", "velodyne") if self.view == "camera" else ("velodyne",):
            found |= {path.stem: path for path in (part / folder).glob(layouts.KITTI_OBJECT_FRAME)}
        if not found or (ids is not None and not any(frame in found for frame in ids)):
            looked_for = f"six-digit .bin files in {part / 'velodyne'}"
            raise layouts.no_frames(
                root, "data=kitti", looked_for + (f" listed in {self.split}.txt" if ids else "")
            )
        drives = _drives(part)
        # A listed frame whose file is missing stays in: reading it is the error (or the counted skip).
        return tuple(
            FrameRef(found.get(frame, part / "velodyne" / f"{frame}.bin"), frame, drives.get(frame, frame))
            for frame in (sorted(found) if ids is None else ids)
        )

    def image_size(self, ref: FrameRef) -> tuple[int, int]:
        """Width and height in pixels of a frame's left colour image."""
        image = ref.path.parents[1] / "image_2" / f"{ref.frame_id}.png"
        if image.is_file():
            return png_size(image)
        known = self._image_sizes or _image_sizes(ref.path.parents[1])
        return known.get(ref.frame_id, DEFAULT_IMAGE_SIZE)


@dataclass(frozen=True, kw_only=True)
class KittiSequences:
    """Consecutive KITTI scans; a scene is a drive or a sequence.

    The layout is found out: raw (DATE/DRIVE/velodyne_points/data), odometry (sequences/NN/velodyne) or
    tracking (training/velodyne/NNNN).

    Args:
        root: the folder that holds the above, or one nearer to the frames (a date, a drive, sequences/,
            training/).

    Raises:
        DatasetError: if the root does not exist or holds none of the layouts.
    """

    root: str | Path
    layout: str = field(init=False)
    frames: tuple[FrameRef, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        root = layouts.existing_root(self.root, "data=kitti_sequences")
        for layout, patterns in layouts.KITTI_SEQUENCES.items():
            folders = next((found for p in patterns if (found := sorted(root.glob(p)))), [])
            frames = tuple(ref for folder in folders for ref in _sequence(folder, layout))
            if frames:
                object.__setattr__(self, "layout", layout)
                object.__setattr__(self, "frames", frames)
                return
        looked_for = ", ".join(f"{patterns[0]}/*.bin" for patterns in layouts.KITTI_SEQUENCES.values())
        raise layouts.no_frames(root, "data=kitti_sequences", looked_for)

    @property
    def name(self) -> str:
        return f"kitti {self.layout} sequences"

    def read(self, ref: FrameRef) -> np.ndarray:
        return read_points(ref.path)

    def check_size(self, ref: FrameRef) -> None:
        check_size(ref.path)


def _sequence(folder: Path, layout: str) -> list[FrameRef]:
    # The folder that names the sequence: DRIVE/velodyne_points/data, NN/velodyne, velodyne/NNNN.
    scene = {"raw": folder.parents[1], "odometry": folder.parent, "tracking": folder}[layout].resolve().name
    return [FrameRef(path, f"{scene}/{path.stem}", scene) for path in sorted(folder.glob("*.bin"))]


def _beside(part: Path, name: str) -> Path | None:
    """A file or folder next to or inside the training folder."""
    return next((folder / name for folder in (part, part.parent) if (folder / name).exists()), None)


def _listed_ids(part: Path, split: str) -> list[str]:
    path = _beside(part, f"ImageSets/{split}.txt")
    if path is None:
        available = sorted(p.stem for folder in (part, part.parent) for p in folder.glob("ImageSets/*.txt"))
        have = f"there are {', '.join(available)}" if available else "there is no ImageSets folder"
        raise DatasetError(
            f"{part}: no ImageSets/{split}.txt ({have}). "
            f"Choose one of these, or data.split=null for all frames."
        )
    ids = path.read_text().split()
    if not ids:
        raise DatasetError(f"{path}: the split is empty. List one six-digit frame per line.")
    return ids


def _image_sizes(part: Path) -> dict[str, tuple[int, int]]:
    path = _beside(part, "image_sizes.csv")
    if path is None:
        return {}
    try:
        with path.open(newline="") as file:
            return {row["frame"]: (int(row["width"]), int(row["height"])) for row in csv.DictReader(file)}
    except (KeyError, ValueError, TypeError) as error:
        raise DatasetError(
            f"{path}: expected the columns frame,width,height. Correct or remove the file."
        ) from error


def _drives(part: Path) -> dict[str, str]:
    """Frame id to drive from the devkit's mapping: train_rand.txt holds, frame by frame, the 1-based line of
    train_mapping.txt ("DATE DRIVE INDEX")."""
    folder = next(
        (f for name in ("mapping", "devkit/mapping", "devkit_object/mapping") if (f := _beside(part, name))),
        None,
    )
    if folder is None or part.name == "testing":
        return {}
    try:
        lines = (folder / "train_mapping.txt").read_text().splitlines()
        order = [int(v) for v in (folder / "train_rand.txt").read_text().replace(",", " ").split()]
        return {f"{frame:06d}": lines[line - 1].split()[1] for frame, line in enumerate(order)}
    except (OSError, ValueError, IndexError) as error:
        raise DatasetError(
            f"{folder}: the devkit's mapping files cannot be read ({error}). Remove or restore them."
        ) from error
