"""A trained policy as one folder, model.safetensors and policy.json: what acting needs and nothing else."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from envs.manipulation.registry import EnvOptions
from policies.imitation.act import ACT
from policies.imitation.act_jepa import ACTJEPA
from policies.imitation.batches import PolicyObservation
from policies.imitation.build import (
    Auxiliary,
    Name,
    Sizes,
    backbone_kind,
    build_policy,
    described_backbone,
)
from policies.imitation.interface import Interface
from policies.imitation.lidar_tokens import LidarBackbone, LidarTokens
from policies.imitation.policy import ImitationPolicy
from policies.imitation.vision import Backbone
from worldmodel.training.checkpoints import CheckpointError, load_strict, write_json

FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class ExportedPolicy:
    """A policy in evaluation mode.

    Attributes:
        memory: steps of history it is to be given; 0 for most.
        options: of the environments its demonstrations were recorded in, where it is known.
        about: where it comes from.
    """

    policy: ImitationPolicy
    memory: int
    options: EnvOptions | None
    about: dict[str, Any]


def export_policy(
    policy: ImitationPolicy,
    folder: Path,
    *,
    name: Name,
    sizes: Sizes,
    backbone: Backbone | LidarBackbone | None = None,
    memory: int = 0,
    options: EnvOptions | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write the folder. ACT-JEPA is written without predictor and target encoder: it acts as an ACT.

    Raises:
        MissingStatistics: if the policy has none.
        FileExistsError: if the folder holds another policy.
    """
    policy.statistics.require()
    if (folder / "policy.json").exists():
        raise FileExistsError(f"{folder} holds a policy already: choose another folder, or delete it")
    network = policy.network
    if isinstance(network, ACTJEPA):
        name, network = "act", network.act
    lean = ImitationPolicy(network=network, statistics=policy.statistics, interface=policy.interface)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().contiguous() for key, value in lean.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    described = {
        "format": FORMAT,
        "name": name,
        "interface": asdict(policy.interface),
        "sizes": asdict(sizes),
        "causal": isinstance(network, ACT) and network.decoder.causal,
        "backbone": None if backbone is None else {"kind": backbone_kind(backbone), **asdict(backbone)},
        "memory": memory,
        "env": None if options is None else asdict(options),
        "about": dict(about or {}),
    }
    write_json(folder / "policy.json", described)


def load_exported(folder: str | Path) -> ExportedPolicy:
    """The policy of a folder.

    Raises:
        FileNotFoundError: if it is no such folder.
        CheckpointError: if it is damaged, or of another version.
    """
    folder = Path(folder)
    if not (folder / "policy.json").is_file():
        raise FileNotFoundError(f"{folder} holds no policy.json: export a run with scripts/export_policy.py")
    try:
        told = json.loads((folder / "policy.json").read_text())
        if told["format"] != FORMAT or told["name"] not in get_args(Name):
            raise ValueError(f"format {told['format']}, policy {told['name']!r}")
        options = told["env"] and EnvOptions(**told["env"])
        with torch.random.fork_rng(devices=[]):
            backbone = described_backbone(told.get("backbone"))
            policy = build_policy(
                told["name"],
                interface=Interface.from_json(told["interface"]),
                sizes=Sizes(**told["sizes"]),
                auxiliary=Auxiliary(causal=told["causal"]),
                backbone=backbone,
            )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'policy.json'} does not describe a policy of this version ({type(error).__name__}: {error}): "
            f"export the run again"
        ) from error
    path = folder / "model.safetensors"
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): export the run again") from error
    load_strict(policy, weights, source=str(path))
    policy.statistics.require()
    return ExportedPolicy(
        policy=policy.eval().requires_grad_(False),
        memory=told["memory"],
        options=options,
        about=told["about"],
    )


def latency(policy: ImitationPolicy, *, repeats: int = 50, batch: int = 1) -> float:
    """Median seconds of a decision on zeros and a sweep of random points, on the device of the policy."""
    seen, device = policy.interface, policy.statistics.state_mean.device
    observation = PolicyObservation(
        state=torch.zeros(batch, seen.state_dim),
        environment=None if seen.environment_dim is None else torch.zeros(batch, seen.environment_dim),
        image=None if seen.image_size is None else torch.zeros(batch, 3, *seen.image_size, dtype=torch.uint8),
        task=torch.zeros(batch, dtype=torch.int64),
        points=_some_sweeps(policy, batch) if seen.points else None,
    ).to(device)
    taken = []
    for _ in range(repeats + 3):
        began = time.perf_counter()
        policy.act(observation, torch.Generator().manual_seed(0)).cpu()
        taken.append(time.perf_counter() - began)
    return sorted(taken[3:])[repeats // 2]


def _some_sweeps(policy: ImitationPolicy, count: int, *, points: int = 20_000) -> torch.Tensor:
    """Sweeps [count, points, 4] of points all over the grid of the encoder: more voxels than real ones fill."""
    (tokens,) = [m for m in policy.modules() if isinstance(m, LidarTokens)]
    bounds = torch.tensor(tokens.backbone.voxelizer.grid.point_range)
    low, high = torch.cat([bounds[:3], torch.zeros(1)]), torch.cat([bounds[3:], torch.ones(1)])
    return low + (high - low) * torch.rand(count, points, 4, generator=torch.Generator().manual_seed(0))
