"""LiDAR frames: sources of the genuine layouts, validation, and the torch data set over them."""

from lidar.datasets.errors import DatasetError, FrameError
from lidar.datasets.folder import NuScenesSweeps, PointFolder
from lidar.datasets.frames import LidarFrames, Sample, collate
from lidar.datasets.kitti import KittiObject, KittiSequences
from lidar.datasets.points import read_points
from lidar.datasets.preflight import PreflightReport, preflight
from lidar.datasets.sources import FrameRef, FrameSource, split_scenes

__all__ = [
    "DatasetError",
    "FrameError",
    "FrameRef",
    "FrameSource",
    "KittiObject",
    "KittiSequences",
    "LidarFrames",
    "NuScenesSweeps",
    "PointFolder",
    "PreflightReport",
    "Sample",
    "collate",
    "preflight",
    "read_points",
    "split_scenes",
]
