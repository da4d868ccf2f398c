"""Labelled frames as a torch data set: read, paste, move, crop, shuffle. All draws follow (index, seed)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from lidar.datasets.errors import DatasetError
from lidar.datasets.frames import ON_ERROR, FrameKey, Sample, check_range, checked_key, first_usable
from lidar.datasets.frames import collate as collate_points
from lidar.datasets.sources import FrameRef
from lidar.detection.augmentation import DetectionAugmentation
from lidar.detection.batch import DetectionBatch, GroundTruth
from lidar.detection.labels import OTHER, ClassNames, LabelledSource, check_classes, checked_labels
from lidar.detection.scene import Scene, membership
from lidar.grid import Range, inside


@dataclass(frozen=True, kw_only=True)
class LabelledSample:
    """One labelled cloud, ready to be batched.

    Attributes:
        cloud: the points, inside the point range.
        boxes: [m, 7 or 9] float32.
        labels: [m] int64.
    """

    cloud: Sample
    boxes: torch.Tensor
    labels: torch.Tensor


class LabelledFrames(Dataset[LabelledSample]):
    """Map-style data set over labelled frames; the key of an item is `(frame_index, draw_seed)` as in `LidarFrames`.

    Args:
        source: reads frames and labels.
        refs: which frames, in which order; one may be there several times (class-balanced resampling).
        point_range: x0, y0, z0, x1, y1, z1 in metres; points with lo <= p < hi are kept, after augmentation.
        classes: what is to be detected. Other objects are left out of the truth, but nothing is pasted on them.
        augment: random view, or None: points as recorded, in recorded order. A view that happens to move every point
            out of the range is not used; the recorded scene is.
        training: truth for training: boxes whose centre lies outside the range, or with fewer than min_points points,
            are dropped. Otherwise all boxes of the classes are there.
        min_points: of a box in training, as annotated where the data set says so, else counted in the frame read.
        on_error: "raise" passes a FrameError on; "skip" takes the next readable frame in its place.
        allow_absent: do not insist that every class occurs in the source.
        seed: mixed into every draw.

    Raises:
        DatasetError: if there are no frames, or a class never occurs in the labels of the source.
        ValueError: if on_error is not known.
    """

    def __init__(
        self,
        *,
        source: LabelledSource,
        refs: Sequence[FrameRef],
        point_range: Range,
        classes: ClassNames,
        augment: DetectionAugmentation | None = None,
        training: bool = True,
        min_points: int = 0,
        on_error: str = "raise",
        allow_absent: bool = False,
        seed: int = 0,
    ) -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f"data.on_error is one of {', '.join(ON_ERROR)}, got {on_error!r}")
        if not refs:
            raise DatasetError(f"{source.name}: no labelled frames. Check data.root and the split.")
        if not allow_absent and on_error == "raise":
            check_classes(source, classes)
        self.source = source
        self.refs = tuple(refs)
        self.point_range = point_range
        self.classes = classes
        self.augment = augment
        self.training = training
        self.min_points = min_points
        self.on_error = on_error
        self.seed = seed

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, key: FrameKey) -> LabelledSample:
        """The sample of key (frame_index, draw_seed).

        Raises:
            FrameError: if the frame or its labels cannot be used and on_error="raise".
            DatasetError: if no frame can be used and on_error="skip".
        """
        index, draw_seed = checked_key(key, len(self.refs))
        scene, ref, skipped = first_usable(
            self._read, self.refs, index, on_error=self.on_error, name=self.source.name
        )
        rng = np.random.default_rng((self.seed, draw_seed))
        scene, order = self._view(scene, rng)
        cloud = Sample(
            points=torch.from_numpy(scene.points[order]),
            frame_id=ref.frame_id,
            seed=draw_seed,
            skipped=skipped,
        )
        kept = scene.labels != OTHER
        if self.training:
            kept &= inside(scene.boxes, self.point_range)
        return LabelledSample(
            cloud=cloud,
            boxes=torch.from_numpy(scene.boxes[kept]),
            labels=torch.from_numpy(scene.labels[kept]),
        )

    def _read(self, ref: FrameRef) -> Scene:
        points = self.source.read(ref)
        check_range(ref.path, points, self.point_range)
        found = checked_labels(ref.path, self.source.labels(ref))
        labels = self.classes.labels(found.names)
        if self.training and self.min_points > 0 and len(labels) > 0:
            counts = membership(points, found.boxes).sum(axis=1) if found.counts is None else found.counts
            # They stay in the scene: nothing is to be pasted where they stand.
            labels = np.where(counts >= self.min_points, labels, OTHER)
        return Scene(points=points, boxes=found.boxes, labels=labels, road=self.source.road(ref))

    def _view(self, scene: Scene, rng: np.random.Generator) -> tuple[Scene, np.ndarray]:
        """The scene to show, and which of its points in which order."""
        if self.augment is None:
            return scene, np.flatnonzero(inside(scene.points, self.point_range))
        view = self.augment.apply(scene, rng)
        index = np.flatnonzero(inside(view.points, self.point_range))
        if len(index) == 0:
            view, index = scene, np.flatnonzero(inside(scene.points, self.point_range))
        return view, self.augment.geometry.order(index, rng)


def collate(samples: Sequence[LabelledSample]) -> DetectionBatch:
    """Concatenate samples into a batch, in order."""
    return DetectionBatch(
        points=collate_points([sample.cloud for sample in samples]),
        truth=GroundTruth.padded([s.boxes for s in samples], [s.labels for s in samples]),
    )
