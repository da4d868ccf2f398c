"""How a pretrained encoder takes part in the training of a detector: kept as it is, trained, or trained more slowly."""

from collections.abc import Iterable
from typing import Literal

from lidar.batch import PointCloudBatch
from lidar.detection.voxel_detector import VoxelDetector
from lidar.pretraining import in_precision
from worldmodel.nn.batch_norm import recalibrated

Mode = Literal["finetune", "frozen", "layerwise"]
MODES: tuple[Mode, ...] = ("finetune", "frozen", "layerwise")


def fine_tune(detector: VoxelDetector, mode: Mode, *, decay: float = 0.6) -> None:
    """Choose how the encoder is trained.

    Args:
        mode: "finetune" trains it like the rest; "frozen" leaves it as it is, in evaluation mode; "layerwise" gives its
            last layer `decay` times the learning rate of the rest, and every layer below `decay` times that again.
        decay: in (0, 1].

    Raises:
        ValueError: on another mode or decay.
    """
    if mode not in MODES or not 0 < decay <= 1:
        raise ValueError(
            f"a mode is one of {', '.join(MODES)} and a decay lies in (0, 1], got {mode!r} and {decay}"
        )
    if mode == "frozen":
        detector.freeze_encoder()
    detector.encoder_rates = {}
    if mode == "layerwise":
        layers = [name for name, _ in detector.backbone_3d.named_children()]
        detector.encoder_rates = {
            f"backbone_3d.{name}.": decay**place for place, name in enumerate(reversed(layers), start=1)
        }


def recalibrate_encoder(detector: VoxelDetector, batches: Iterable[PointCloudBatch]) -> None:
    """Replace the encoder's BatchNorm statistics by those of whole clouds; nothing else changes.

    Pretraining gathers them on clouds with masked cells, which is wrong for an encoder that stays as it is.
    """
    voxels = (in_precision(detector.test_voxels(b), next(detector.parameters()).dtype) for b in batches)
    measured = recalibrated(detector.backbone_3d, voxels, lambda encoder, v: encoder(v))
    detector.backbone_3d.load_state_dict(measured.state_dict())
