"""Weights of whole detectors out of and into OpenPCDet, and a pretrained encoder into a detector; all or nothing."""

from pathlib import Path

import torch
from torch import nn

from lidar.interop import load_encoder
from lidar.strict_loading import (
    STATE_KEYS,
    Layout,
    LoadReport,
    load_strictly,
    read_tensors,
    require_finite,
    to_layout,
)

# OpenPCDet's count of training steps, which no detector of ours keeps.
STEP_COUNT = "global_step"


def load_detector(detector: nn.Module, path: str | Path) -> LoadReport:
    """Load every tensor of a detector from a file, or change nothing and say why.

    Reads model.safetensors of our runs' checkpoints and OpenPCDet's .pth files, with weights of spconv 1 or 2.

    Args:
        detector: whose classes, grid and sizes are those of the file's.
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file cannot be read safely, or a tensor is missing, unexpected, of another shape or not
            finite; every such tensor is named.
    """
    path = Path(path)
    found = read_tensors(path)
    ignored = {STEP_COUNT: (STEP_COUNT,)} if found.pop(STEP_COUNT, None) is not None else {}
    loaded, layout = load_strictly(detector, found, path=path, what="detector")
    return LoadReport(
        path=path, prefix="", layout=layout, loaded=loaded, total=loaded, ignored=ignored, what="detector"
    )


def load_pretrained_encoder(
    detector: nn.Module, path: str | Path, *, prefix: str | None = None
) -> LoadReport:
    """Load every tensor of a detector's encoder, and nothing else, from a file: `lidar.interop.load_encoder`.

    The file may be a checkpoint of our pretraining (model.safetensors) or its export, or any detector of OpenPCDet with
    the same encoder.

    Raises:
        FileNotFoundError, CheckpointError: as `load_encoder`; the detector is then as it was.
    """
    return load_encoder(detector.get_submodule("backbone_3d"), path, prefix=prefix)


def export_detector(
    detector: nn.Module, path: str | Path, *, step: int = 0, layout: Layout = "spconv2"
) -> int:
    """Write a detector as OpenPCDet's .pth checkpoint of the same model.

    Args:
        detector: any whose names are OpenPCDet's.
        path: .pth, written under a temporary name and renamed.
        step: to be stored as the number of training steps.
        layout: of the sparse convolutions' weights: spconv1 for installations with spconv 1.

    Returns:
        How many tensors were written, the step count among them.

    Raises:
        ValueError: if the suffix is another.
        CheckpointError: if a tensor is not finite.
    """
    path = Path(path)
    if path.suffix != ".pth":
        raise ValueError(f"OpenPCDet reads .pth files, got {path.name!r}")
    tensors = {name: to_layout(value.detach().cpu(), layout) for name, value in detector.state_dict().items()}
    require_finite(tensors, "the detector")
    tensors[STEP_COUNT] = torch.tensor([step])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save({STATE_KEYS[0]: tensors, "epoch": 0, "it": step}, temporary)
    temporary.replace(path)
    return len(tensors)
