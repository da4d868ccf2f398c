"""Labelled frames of KITTI and nuScenes, and of data written in their layouts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lidar.datasets.errors import FrameError, reason
from lidar.datasets.kitti import KittiObject
from lidar.datasets.kitti_calib import KittiCalib
from lidar.datasets.kitti_labels import label_paths, read_kitti_labels
from lidar.datasets.nuscenes import NuScenesKeyFrames
from lidar.datasets.sources import FrameRef
from lidar.detection.labels import BoxLabels


@dataclass(frozen=True, kw_only=True)
class LabelledKitti:
    """The KITTI object benchmark; a `LabelledSource`.

    Args:
        scans: the frames. Only what the camera sees is labelled: take view="camera", unless data in this layout is
            labelled all around.
    """

    scans: KittiObject

    columns = 4
    velocities = False

    @property
    def name(self) -> str:
        return self.scans.name

    @property
    def frames(self) -> tuple[FrameRef, ...]:
        return self.scans.frames

    def read(self, ref: FrameRef) -> np.ndarray:
        return self.scans.read(ref)

    def labels(self, ref: FrameRef) -> BoxLabels:
        found = read_kitti_labels(*label_paths(ref.path))
        return BoxLabels(boxes=found.boxes, names=found.names, difficulty=found.difficulty)

    def road(self, ref: FrameRef) -> np.ndarray | None:
        """From planes/ID.txt beside the labels, where it exists.

        Raises:
            FrameError: if the file is malformed.
        """
        path = ref.path.parents[1] / "planes" / f"{ref.frame_id}.txt"
        if not path.is_file():
            return None
        return read_plane(path, label_paths(ref.path)[1])


@dataclass(frozen=True, kw_only=True)
class LabelledNuScenes:
    """nuScenes key frames; a `LabelledSource`. Boxes have velocities, NaN where the annotations do not tell.

    Boxes without a single LiDAR point are there, with `counts` 0: training takes min_points=1.
    """

    scans: NuScenesKeyFrames

    columns = 5
    velocities = True

    @property
    def name(self) -> str:
        return self.scans.name

    @property
    def frames(self) -> tuple[FrameRef, ...]:
        return self.scans.frames

    def read(self, ref: FrameRef) -> np.ndarray:
        return self.scans.read(ref)

    def labels(self, ref: FrameRef) -> BoxLabels:
        tables, place = self.scans.tables, self.scans.place(ref)
        own = slice(int(tables.first_box[place]), int(tables.first_box[place + 1]))
        return BoxLabels(
            boxes=tables.boxes[own],
            names=tuple(tables.names[i] for i in tables.box_name[own]),
            counts=tables.box_points[own],
        )

    def road(self, ref: FrameRef) -> None:
        return None


def read_plane(path: Path, calib_path: Path) -> np.ndarray:
    """Road plane of a KITTI planes file, whose last line is a b c d in the rectified camera frame.

    Returns:
        [4] float64 in the velodyne frame, the normal pointing up.

    Raises:
        FrameError: if the file is malformed or describes a wall.
    """
    try:
        camera = np.array(path.read_text().split("\n", 3)[3].split(), np.float64)
        if camera.shape != (4,):
            raise ValueError(f"{camera.size} numbers instead of 4")
    except (OSError, IndexError, ValueError) as error:
        raise FrameError(
            path, f"not a road plane ({reason(error)})", "Expected three lines of header, then a b c d."
        ) from error
    plane = camera @ KittiCalib.read(calib_path).velodyne_to_camera
    plane *= np.sign(plane[2]) / np.linalg.norm(plane[:3])
    if not plane[2] > 0.5:
        raise FrameError(path, "the plane is steeper than 60 degrees: not a road", "Restore or remove it.")
    return plane
