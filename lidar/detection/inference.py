"""A detector over labelled frames."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from lidar.datasets.sources import FrameRef
from lidar.detection.batch import Detections, Detector
from lidar.detection.labelled import LabelledFrames, LabelledSample, collate


@dataclass(frozen=True, kw_only=True)
class FoundFrame:
    """What was found in one frame, and what is there.

    Attributes:
        ref: the frame.
        points: [N, >=4] float32, as the detector saw them.
        detections: on the CPU.
        boxes, labels: [M, 7 or 9], [M] of the detector's classes; all of the frame.
    """

    ref: FrameRef
    points: torch.Tensor
    detections: Detections
    boxes: torch.Tensor
    labels: torch.Tensor


def detect_frames(
    detector: Detector,
    frames: LabelledFrames,
    *,
    batch_size: int = 4,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[FoundFrame]:
    """Every frame in order, as recorded.

    Raises:
        FrameError: of the first frame that cannot be read.
    """
    loader = DataLoader(_Keyed(frames), batch_size=batch_size, num_workers=workers, collate_fn=list)
    place = 0
    samples: list[LabelledSample]
    for samples in loader:
        batch = collate(samples)
        found = detector.detect(batch.to(device))
        for sample, detections in zip(samples, found, strict=True):
            yield FoundFrame(
                ref=frames.refs[place],
                points=sample.cloud.points,
                detections=detections.to("cpu"),
                boxes=sample.boxes,
                labels=sample.labels,
            )
            place += 1


class _Keyed(Dataset[LabelledSample]):
    """Frames by place: nothing is drawn."""

    def __init__(self, frames: LabelledFrames) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, place: int) -> LabelledSample:
        return self.frames[(place, 0)]
