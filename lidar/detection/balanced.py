"""Class-balanced resampling of frames (CBGS, arXiv 1908.09492), as nuScenes detectors are trained."""

from collections.abc import Sequence

import numpy as np

from lidar.datasets.sources import FrameRef
from lidar.detection.labels import OTHER, ClassNames, LabelledSource


def class_presence(source: LabelledSource, refs: Sequence[FrameRef], classes: ClassNames) -> np.ndarray:
    """Which classes each frame holds: bool [F, C].

    Raises:
        FrameError: if labels cannot be read.
    """
    present = np.zeros((len(refs), len(classes.names)), bool)
    for row, ref in zip(present, refs, strict=True):
        labels = classes.labels(source.labels(ref).names)
        row[labels[labels != OTHER]] = True
    return present


def balanced_frames(present: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Frames of one epoch in which every class is met about equally often: a function of (seed, epoch).

    Every class gets the same number of draws, with repetition, from the frames that hold it; together they are as many
    as there are pairs of a frame and a class in it. So a frame of rare classes comes often, one without any class
    never. 28,130 frames of nuScenes become 123,580. OpenPCDet and the original draw once and keep that list for all
    epochs: that is epoch 0 here throughout. Classes that no frame holds get no draws.

    Args:
        present: bool [F, C], from `class_presence`.

    Returns:
        [n] int64 places in the list of frames, in random order.

    Raises:
        ValueError: if no frame holds any class, or present is not a table.
    """
    if present.ndim != 2:
        raise ValueError(f"present is a table [frames, classes], got shape {present.shape}")
    if not present.any():
        raise ValueError("no frame holds an object of any class: check class names and labels")
    frames_of = [np.flatnonzero(column) for column in present.T if column.any()]
    draws = int(present.sum()) // len(frames_of)
    rng = np.random.default_rng((seed, epoch))
    return rng.permutation(np.concatenate([rng.choice(frames, draws) for frames in frames_of]))
