"""Encoder weights out of and into OpenPCDet and mmdetection3d.

`SparseEncoder` names its tensors as OpenPCDet's VoxelBackBone8x does, so export is a prefix, a weight layout and a
file. Loading is all or nothing: it replaces every tensor of the encoder, or changes none and names what does not fit
(the detectors' own loaders skip such tensors without an error and go on from random weights).
"""

import pickle
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from worldmodel.training.checkpoints import CheckpointError

Framework = Literal["openpcdet", "mmdet3d"]
Layout = Literal["spconv2", "spconv1"]
SUFFIXES = (".safetensors", ".pth")

# Axes of a stored convolution weight that make it [C_out, kz, ky, kx, C_in], as spconv 2 and this encoder have it;
# spconv 1 and mmcv store [kz, ky, kx, C_in, C_out].
_TO_SPCONV2: dict[Layout, tuple[int, ...]] = {"spconv2": (0, 1, 2, 3, 4), "spconv1": (4, 0, 1, 2, 3)}
_FROM_SPCONV2: dict[Layout, tuple[int, ...]] = {"spconv2": (0, 1, 2, 3, 4), "spconv1": (1, 2, 3, 4, 0)}
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
        prefix="backbone_3d.", stage=r"conv\1.", layout="spconv2", state_key="model_state"
    ),
    # mmdetection3d takes weights that carry no version for spconv 1 and permutes them, also where it runs spconv 2.
    "mmdet3d": _Convention(
        prefix="middle_encoder.",
        stage=r"encoder_layers.encoder_layer\1.",
        layout="spconv1",
        state_key="state_dict",
    ),
}


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What a load did.

    Attributes:
        path: the file.
        prefix: where in the file the encoder was found.
        layout: of its convolution weights; spconv1 was converted.
        loaded: tensors loaded.
        total: tensors of the encoder; a load that returns has loaded all of them.
        ignored: names of everything else in the file, by group (first part of the name).
    """

    path: Path
    prefix: str
    layout: Layout
    loaded: int
    total: int
    ignored: Mapping[str, tuple[str, ...]]

    def summary(self) -> str:
        """One line, as in: loaded 72 of 72 encoder tensors; ignored 91 others (backbone_2d 84, ...)."""
        text = f"loaded {self.loaded} of {self.total} encoder tensors"
        if self.layout == "spconv1":
            text += ", converted from the spconv 1 layout"
        others = sum(len(names) for names in self.ignored.values())
        return f"{text}; ignored {others} others ({_sizes(self.ignored)})" if others else text


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
    if layout not in _FROM_SPCONV2:
        raise ValueError(f"layout is one of {', '.join(_FROM_SPCONV2)}, got {layout!r}")
    tensors = {
        prefix + _OWN_STAGE.sub(convention.stage, name): _permuted(
            value.detach().cpu(), _FROM_SPCONV2[layout]
        )
        for name, value in encoder.state_dict().items()
    }
    _require_finite(tensors, "the encoder")
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
    tensors = _read(path)
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
    layout = _detect_layout(found, own)
    found = {name: _permuted(value, _TO_SPCONV2[layout]) for name, value in found.items()}
    problems = _differences(found, own)
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise CheckpointError(f"{path} does not fit the encoder, nothing was loaded:{listed}")
    _require_finite(found, str(path))
    encoder.load_state_dict(found)
    ignored: dict[str, tuple[str, ...]] = {}
    for name in plain:
        if not (name.startswith(prefix) and name.removeprefix(prefix) in found):
            group = _group(name, prefix)
            ignored[group] = (*ignored.get(group, ()), plain[name])
    return LoadReport(
        path=path, prefix=prefix, layout=layout, loaded=len(found), total=len(own), ignored=ignored
    )


def _permuted(value: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    return value.permute(axes).contiguous() if value.ndim == 5 else value.contiguous()


def _require_finite(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    broken = [n for n, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if broken:
        raise CheckpointError(f"{source} holds NaN or inf in {len(broken)} tensors: {', '.join(broken)}")


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, and reading that would run code from the file. If "
            f"you trust it, strip it once, with model_state for OpenPCDet or state_dict for mmdetection3d: "
            f"torch.save({{'model_state': torch.load(PATH, weights_only=False)['model_state']}}, NEW_PATH)"
        ) from error
    # The readers raise whatever they stumble over in a damaged file, a KeyError for one.
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}: {error})"
        ) from error
    for convention in CONVENTIONS.values():
        if isinstance(content, dict) and isinstance(content.get(convention.state_key), dict):
            content = content[convention.state_key]
    tensors = {
        str(name): value
        for name, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name, nor model_state, nor state_dict")
    return tensors


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


def _detect_layout(found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> Layout:
    """The layout in which most convolution weights fit; spconv2 if none fits better."""

    def fitting(layout: Layout) -> int:
        return sum(
            _permuted(value, _TO_SPCONV2[layout]).shape == own[name].shape
            for name, value in found.items()
            if value.ndim == 5 and name in own
        )

    return "spconv1" if fitting("spconv1") > fitting("spconv2") else "spconv2"


def _differences(found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[str]:
    problems = [f"missing {name}" for name in own if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in own]
    for name, value in found.items():
        if name in own and value.shape != own[name].shape:
            problems.append(f"{name} is {tuple(value.shape)}, the encoder has {tuple(own[name].shape)}")
    first = "conv_input.0.weight"
    if first in found and found[first].ndim == 5 and found[first].shape[:4] == own[first].shape[:4]:
        theirs, ours = found[first].shape[4], own[first].shape[4]
        if theirs != ours:
            problems.append(
                f"the file's encoder reads {theirs} features per point (Waymo models of OpenPCDet read 5), this one "
                f"reads {ours}: build it with in_channels={theirs}, or pretrain with {ours} features"
            )
    return problems


def _group(name: str, prefix: str) -> str:
    """First part of a name; the first two where the encoder itself lies under the first."""
    parts = name.split(".")
    depth = 2 if prefix and parts[0] == prefix.split(".")[0] else 1
    return ".".join(parts[:depth])


def _sizes(groups: Mapping[str, tuple[str, ...]]) -> str:
    ordered = sorted(groups, key=lambda group: -len(groups[group]))
    return ", ".join(f"{group} {len(groups[group])}" for group in ordered)
