"""Checkpoints: safetensors plus JSON, written under a temporary name and renamed, so one is whole or absent."""

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

FORMAT = 1
_NAME = re.compile(r"step_(\d{8})")


class CheckpointError(RuntimeError):
    """A checkpoint is missing, incomplete or belongs to something else."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint: number of finished steps, tensors by name, and the JSON state."""

    step: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]


def _tensors(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What safetensors can write: contiguous CPU tensors, no two in the same memory (tied weights)."""
    tensors: dict[str, torch.Tensor] = {}
    seen = set()
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return tensors


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Parameter names in the order of the optimiser's own numbering."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's tensors as `<parameter name>.<entry>`."""
    names = _names(model, optimizer)
    entries = optimizer.state_dict()["state"].items()
    return {f"{names[i]}.{key}": value for i, entry in entries for key, value in entry.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name and rename it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    _sync(temporary)
    temporary.replace(path)


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write folder/step_00000123/{model,optimizer}.safetensors and state.json; drop all but the newest `keep`.

    Raises:
        CheckpointError: if a parameter, buffer or moment is not finite; a broken model never replaces a good one.
    """
    tensors, moments = _tensors(model.state_dict()), _tensors(_moments(model, optimizer))
    both = [*tensors.items(), *moments.items()]
    broken = [name for name, t in both if t.is_floating_point() and not bool(t.isfinite().all())]
    if broken:
        raise CheckpointError(f"not saved: {len(broken)} tensors hold NaN or inf, the first is {broken[0]!r}")
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".step_*"):
        shutil.rmtree(leftover)
    final = folder / f"step_{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    temporary.mkdir()
    save_file(tensors, temporary / "model.safetensors")
    save_file(moments, temporary / "optimizer.safetensors")
    write_json(
        temporary / "state.json", {**state, "step": step, "format": FORMAT, "torch": torch.__version__}
    )
    for file in temporary.iterdir():
        _sync(file)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(folder)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a folder, oldest first."""
    return sorted(
        p for p in folder.glob("step_*") if _NAME.fullmatch(p.name) and (p / "state.json").is_file()
    )


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder.

    Raises:
        CheckpointError: if a file is missing or damaged, or the format is newer than this code.
    """
    try:
        state = json.loads((path / "state.json").read_text())
        model, optimizer = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}). Delete this folder to resume from the one before it."
        ) from error
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {state.get('format')}, this code reads format {FORMAT}")
    return Checkpoint(step=int(state["step"]), model=model, optimizer=optimizer, state=state)


def fingerprint(path: Path) -> str:
    """SHA-256 of the weights of a checkpoint folder: the same model wherever the folder lies.

    Raises:
        CheckpointError: if they cannot be read.
    """
    try:
        with (path / "model.safetensors").open("rb") as weights:
            return hashlib.file_digest(weights, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: the weights cannot be read ({error}): name a checkpoint") from error


def restore(checkpoint: Checkpoint, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load tensors strictly into a model and its optimiser.

    Raises:
        CheckpointError: naming the tensors that are missing, unexpected or of another shape.
    """
    load_strict(model, checkpoint.model, source="the checkpoint")
    numbers = {name: number for number, name in enumerate(_names(model, optimizer))}
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in checkpoint.optimizer.items():
        name, entry = key.rsplit(".", 1)
        if name not in numbers:
            raise CheckpointError(f"the checkpoint trained {name}, which this optimiser does not train")
        entries.setdefault(numbers[name], {})[entry] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def load_strict(model: nn.Module, tensors: dict[str, torch.Tensor], *, source: str) -> None:
    """load_state_dict that fails with every difference named.

    Raises:
        CheckpointError: if names or shapes differ.
    """
    own = model.state_dict()
    problems = [f"missing {name}" for name in own if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in own]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{source} does not fit the model: {'; '.join(problems[:5])}{more}")
    model.load_state_dict(tensors)
