"""Command-line options that name labelled LiDAR data, and the source they name."""

import argparse

from lidar.datasets import KittiObject, PointFolder
from lidar.datasets.nuscenes import NuScenesKeyFrames, official_scenes
from lidar.detection.benchmarks import LabelledKitti, LabelledNuScenes
from lidar.detection.folder_labels import LabelledFolder
from lidar.detection.labels import LabelledSource


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `source_of` reads."""
    data = parser.add_argument_group("data: one of --points, --kitti, --nuscenes")
    kind = data.add_mutually_exclusive_group(required=True)
    kind.add_argument("--points", metavar="DIR", help="folder of point files of one's own, with --labels")
    kind.add_argument("--kitti", metavar="DIR", help="KITTI object benchmark, or data in its layout")
    kind.add_argument("--nuscenes", metavar="DIR", help="nuScenes with its tables")
    data.add_argument("--labels", metavar="PATH", help="folder of .txt files, or one .jsonl file")
    data.add_argument("--columns", type=int, help="float32 values per point of .bin files")
    data.add_argument("--intensity-scale", type=float, default=1.0, help="largest intensity, e.g. 255")
    data.add_argument("--velocities", action="store_true", help="labels have velocities")
    data.add_argument("--split", help="KITTI: a name in ImageSets/; nuScenes: an official split")
    # Only the camera's view is labelled, but an object at its edge is whole in the full scan.
    data.add_argument("--view", default="full", choices=("camera", "full"), help="KITTI: points to take")
    data.add_argument("--version", default="v1.0-trainval", help="nuScenes: folder of tables")
    data.add_argument("--sweeps", type=int, default=10, help="nuScenes: clouds to accumulate")


def source_of(args: argparse.Namespace) -> LabelledSource:
    """The labelled data that the options name.

    Raises:
        ValueError, ImportError: if it cannot be used, saying why.
    """
    if args.kitti:
        return LabelledKitti(scans=KittiObject(root=args.kitti, split=args.split, view=args.view))
    if args.nuscenes:
        scenes = official_scenes(args.split) if args.split else None
        return LabelledNuScenes(
            scans=NuScenesKeyFrames(
                root=args.nuscenes, version=args.version, sweeps=args.sweeps, scenes=scenes
            )
        )
    if not args.labels:
        raise ValueError("--points needs --labels: a folder of .txt files, or one .jsonl file")
    points = PointFolder(root=args.points, columns=args.columns, intensity_scale=args.intensity_scale)
    return LabelledFolder(points=points, labels_at=args.labels, velocities=args.velocities)
