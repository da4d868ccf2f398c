"""Tensors out of checkpoint files, and loading that replaces every tensor of a module or none.

Weights of sparse convolutions come in two layouts; which one a file has is told from the shapes.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from worldmodel.training.checkpoints import CheckpointError

Layout = Literal["spconv2", "spconv1"]
STATE_KEYS = (
    "model_state",
    "state_dict",
)  # under which OpenPCDet and mmdetection3d keep the tensors of a .pth file

# Axes of a stored convolution weight that make it [C_out, kz, ky, kx, C_in], as spconv 2 and our encoders have it;
# spconv 1 and mmcv store [kz, ky, kx, C_in, C_out].
_TO_SPCONV2: dict[Layout, tuple[int, ...]] = {"spconv2": (0, 1, 2, 3, 4), "spconv1": (4, 0, 1, 2, 3)}
_FROM_SPCONV2: dict[Layout, tuple[int, ...]] = {"spconv2": (0, 1, 2, 3, 4), "spconv1": (1, 2, 3, 4, 0)}


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What a load did.

    Attributes:
        path: the file.
        prefix: where in the file the module was found.
        layout: of its convolution weights; spconv1 was converted.
        loaded: tensors loaded.
        total: tensors of the module; a load that returns has loaded all of them.
        ignored: names of everything else in the file, by group (first part of the name).
        what: the module, in words.
    """

    path: Path
    prefix: str
    layout: Layout
    loaded: int
    total: int
    ignored: Mapping[str, tuple[str, ...]]
    what: str = "encoder"

    def summary(self) -> str:
        """One line, as in: loaded 72 of 72 encoder tensors; ignored 91 others (backbone_2d 84, ...)."""
        text = f"loaded {self.loaded} of {self.total} {self.what} tensors"
        if self.layout == "spconv1":
            text += ", converted from the spconv 1 layout"
        others = sum(len(names) for names in self.ignored.values())
        return f"{text}; ignored {others} others ({_sizes(self.ignored)})" if others else text


def to_layout(value: torch.Tensor, layout: Layout) -> torch.Tensor:
    """A tensor of ours as a file of this layout stores it: permuted if it is a sparse convolution's weight."""
    return _permuted(value, _FROM_SPCONV2[layout])


def load_strictly(
    module: nn.Module, found: Mapping[str, torch.Tensor], *, path: Path, what: str
) -> tuple[int, Layout]:
    """Load every tensor of a module, or change nothing and say why.

    Args:
        module: with sparse convolutions of ours.
        found: tensors of the file under the module's names, in either layout.
        path, what: the file and the module, for messages.

    Returns:
        How many tensors were loaded, and the layout they had.

    Raises:
        CheckpointError: if a tensor is missing, unexpected, of another shape or not finite; every one is named.
    """
    own = module.state_dict()
    layout = _detect_layout(found, own)
    found = {name: _permuted(value, _TO_SPCONV2[layout]) for name, value in found.items()}
    problems = _differences(found, own, what)
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise CheckpointError(f"{path} does not fit the {what}, nothing was loaded:{listed}")
    require_finite(found, str(path))
    module.load_state_dict(dict(found))
    return len(found), layout


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name of a .safetensors file, or of a .pth file of tensors and plain values.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file cannot be read safely or holds no tensors.
    """
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
    for key in STATE_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {
        str(name): value
        for name, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name, nor model_state, nor state_dict")
    return tensors


def require_finite(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Raises:
    CheckpointError: if a tensor holds NaN or inf; names them.
    """
    broken = [n for n, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if broken:
        raise CheckpointError(f"{source} holds NaN or inf in {len(broken)} tensors: {', '.join(broken)}")


def _detect_layout(found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> Layout:
    """The layout in which most convolution weights fit; spconv2 if none fits better."""

    def fitting(layout: Layout) -> int:
        return sum(
            _permuted(value, _TO_SPCONV2[layout]).shape == own[name].shape
            for name, value in found.items()
            if value.ndim == 5 and name in own
        )

    return "spconv1" if fitting("spconv1") > fitting("spconv2") else "spconv2"


def _differences(found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], what: str) -> list[str]:
    problems = [f"missing {name}" for name in own if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in own]
    for name, value in found.items():
        if name in own and value.shape != own[name].shape:
            problems.append(f"{name} is {tuple(value.shape)}, the {what} has {tuple(own[name].shape)}")
    for first in (name for name in found if name in own and name.endswith("conv_input.0.weight")):
        *rest, theirs = found[first].shape
        *own_rest, ours = own[first].shape
        if rest == own_rest and theirs != ours:
            problems.append(
                f"the file's encoder reads {theirs} features per point (Waymo models of OpenPCDet read 5), this one "
                f"reads {ours}: build it with in_channels={theirs}, or pretrain with {ours} features"
            )
    return problems


def _permuted(value: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    return value.permute(axes).contiguous() if value.ndim == 5 else value.contiguous()


def _sizes(groups: Mapping[str, tuple[str, ...]]) -> str:
    ordered = sorted(groups, key=lambda group: -len(groups[group]))
    return ", ".join(f"{group} {len(groups[group])}" for group in ordered)
