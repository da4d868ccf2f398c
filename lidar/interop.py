"""Encoder weights out of and into OpenPCDet and mmdetection3d.

`SparseEncoder` names its tensors as OpenPCDet's VoxelBackBone8x does, so export is a prefix, a weight layout and a
file. Loading is all or nothing: it replaces every tensor of the encoder, or changes none and names what does not fit
(the detectors' own loaders skip such tensors without an error and go on from random weights).
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save_file
from torch import nn

from lidar.strict_loading import (
    STATE_KEYS,
    Layout,
    LoadReport,
    load_strictly,
    read_tensors,
    require_finite,
    to_layout,
)
from worldmodel.training.checkpoints import CheckpointError

Framework = Literal["openpcdet", "mmdet3d"]
SUFFIXES = (".safetensors", ".pth")

_OWN_STAGE = re.compile(r"^conv(\d+)\.")
_MMDET3D_STAGE = re.compile(r"\bencoder_layers\.encoder_layer(\d+)\.")
_ENCODER_NAME = re.compile(r"conv(_input|\d+|_out)\.")


@dataclass(frozen=True, kw_only=True)
class _Convention:
    """Where a framework keeps a detector's encoder, how it names stages, and the key of its .pth files' tensors."""

    prefix: str
    stage: str
    layout: Layout
    state_key: str


CONVENTIONS: dict[Framework, _Convention] = {
    "openpcdet": _Convention(
        prefix="backbone_3d.", stage=r"conv\1.", layout="spconv2", state_key=STATE_KEYS[0]
    ),
    # mmdetection3d takes weights that carry no version for spconv 1 and permutes them, also where it runs spconv 2.
    "mmdet3d": _Convention(
        prefix="middle_encoder.",
        stage=r"encoder_layers.encoder_layer\1.",
        layout="spconv1",
        state_key=STATE_KEYS[1],
    ),
}


def export_encoder(
    encoder: nn.Module,
    path: str | Path,
    *,
    framework: Framework = "openpcdet",
    prefix: str | None = None,
    layout: Layout | None = None,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write an encoder where a detector of another framework finds it.

    Args:
        encoder: a `SparseEncoder`; the full-size one makes the 72 tensors of VoxelBackBone8x.
        path: .safetensors, or .pth for the framework's own loader ({"model_state": ...} for OpenPCDet,
            {"state_dict": ...} for mmdetection3d). Written under a temporary name and renamed.
        framework: whose names: backbone_3d.conv2.0.0.weight in OpenPCDet,
            middle_encoder.encoder_layers.encoder_layer2.0.0.weight in mmdetection3d.
        prefix: in place of the framework's (mmdetection3d's multi-modal detectors: "pts_middle_encoder.").
        layout: of convolution weights: spconv2 [C_out, kz, ky, kx, C_in] or spconv1 [kz, ky, kx, C_in, C_out];
            default: what the framework's loader takes, spconv2 for OpenPCDet and spconv1 for mmdetection3d.
        metadata: stored with the tensors.

    Returns:
        How many tensors were written.

    Raises:
        ValueError: if the suffix, framework or layout is not known.
        CheckpointError: if a tensor is not finite.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"an encoder is exported to {' or '.join(SUFFIXES)}, got {path.name!r}")
    if framework not in CONVENTIONS:
        raise ValueError(f"framework is one of {', '.join(CONVENTIONS)}, got {framework!r}")
    convention = CONVENTIONS[framework]
    prefix = convention.prefix if prefix is None else prefix
    layout = layout or convention.layout
    if layout not in get_args(Layout):
        raise ValueError(f"layout is one of {', '.join(get_args(Layout))}, got {layout!r}")
    if framework == "mmdet3d" and any(".bn1." in name for name in encoder.state_dict()):
        raise ValueError(
            "mmdetection3d builds a residual encoder in another order, with a stage's strided convolution at the end "
            "of the stage before: export it for framework='openpcdet'"
        )
    tensors = {
        prefix + _OWN_STAGE.sub(convention.stage, name): to_layout(value.detach().cpu(), layout)
        for name, value in encoder.state_dict().items()
    }
    require_finite(tensors, "the encoder")
    about = {"framework": framework, "layout": layout, **(metadata or {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    if path.suffix == ".pth":
        torch.save({convention.state_key: tensors, "metadata": about}, temporary)
    else:
        save_file(tensors, temporary, metadata={"format": "pt", **about})
    temporary.replace(path)
    return len(tensors)


def load_encoder(encoder: nn.Module, path: str | Path, *, prefix: str | None = None) -> LoadReport:
    """Load every tensor of an encoder from a file, or change nothing and say why.

    Reads .safetensors, and .pth files of tensors and plain values (torch.load with weights_only=True): what
    `export_encoder` writes, checkpoints of our runs, of OpenPCDet (any detector with VoxelBackBone8x), of the
    AD-L-JEPA release (backbone_3d.encoder.*) and of mmdetection3d (SparseEncoder). A spconv 1 layout is recognised
    by its shapes.

    Args:
        encoder: a `SparseEncoder`.
        path: the file.
        prefix: where the encoder is, such as "backbone_3d."; default: found by its tensors' names, EMA targets
            left aside.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file cannot be read safely, holds no encoder or several, or a tensor is missing,
            unexpected, of another shape or not finite; every such tensor is named.
    """
    path = Path(path)
    tensors = read_tensors(path)
    own = encoder.state_dict()
    plain = {_MMDET3D_STAGE.sub(r"conv\1.", name): name for name in tensors}
    prefix = _find_prefix(plain, own, path) if prefix is None else prefix
    found = {
        name.removeprefix(prefix): tensors[plain[name]]
        for name in plain
        if name.startswith(prefix) and _ENCODER_NAME.match(name.removeprefix(prefix))
    }
    if not found:
        raise _no_encoder(plain, path, prefix)
    loaded, layout = load_strictly(encoder, found, path=path, what="encoder")
    ignored: dict[str, tuple[str, ...]] = {}
    for name in plain:
        if not (name.startswith(prefix) and name.removeprefix(prefix) in found):
            group = _group(name, prefix)
            ignored[group] = (*ignored.get(group, ()), plain[name])
    return LoadReport(path=path, prefix=prefix, layout=layout, loaded=loaded, total=len(own), ignored=ignored)


def _find_prefix(names: Mapping[str, str], own: Mapping[str, torch.Tensor], path: Path) -> str:
    """The prefix under which most of the encoder's names are found."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in own:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    online = {prefix: count for prefix, count in counts.items() if "target" not in prefix}
    if not online:
        raise _no_encoder(names, path, "")
    best = [prefix for prefix, count in online.items() if count == max(online.values())]
    if len(best) > 1:
        raise CheckpointError(
            f"{path} holds several encoders ({', '.join(repr(p) for p in best)}): name one with prefix="
        )
    return best[0]


def _no_encoder(names: Mapping[str, str], path: Path, prefix: str) -> CheckpointError:
    held = Counter(_group(name, "") for name in names).most_common()
    return CheckpointError(
        f"{path} holds no tensor of this encoder such as {prefix or 'backbone_3d.'}conv_input.0.weight; it holds "
        f"{', '.join(f'{group} {count}' for group, count in held)}. Say where it is with prefix= (an EMA target is "
        f"taken only so)"
    )


def _group(name: str, prefix: str) -> str:
    """First part of a name; the first two where the encoder itself lies under the first."""
    parts = name.split(".")
    depth = 2 if prefix and parts[0] == prefix.split(".")[0] else 1
    return ".".join(parts[:depth])
