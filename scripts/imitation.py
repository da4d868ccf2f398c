"""Imitation policies as settings describe them: demonstrations, policies, and trained runs to roll out."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runs import locate

from envs.demonstrations import Demonstration, load_demonstrations
from envs.manipulation import make_env
from policies.imitation.build import Auxiliary, Sizes, build_policy
from policies.imitation.chunks import ChunkDataset, split_demonstrations
from policies.imitation.policy import ImitationPolicy, Interface
from policies.imitation.statistics import Statistics
from policies.imitation.targets import momentum_of_run
from policies.imitation.vision import Backbone
from worldmodel.training.averaging import averaged_part
from worldmodel.training.checkpoints import load_checkpoint, load_strict
from worldmodel.training.run_folder import RunFolderError

Settings = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """The `demonstrations` group: training and held-out episodes, and which of the former hide their actions."""

    training: list[Demonstration]
    heldout: list[Demonstration]
    action_free: tuple[int, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(sorted({d.task for d in self.training}))


def demonstrations(settings: Settings) -> Demonstrations:
    """Loaded and split by episode; which ones are trained on depends on split_seed alone.

    Raises:
        ValueError: if there are fewer than asked for.
    """
    chosen, seen = settings["demonstrations"], settings["observe"]
    found = load_demonstrations(
        chosen["root"],
        tasks=chosen["tasks"],
        image=bool(seen["image"]),
        **({} if seen["environment"] else {"environment": None}),
    )
    training, heldout = split_demonstrations(
        found, heldout_per_task=chosen["heldout_per_task"], seed=chosen["split_seed"]
    )
    if not heldout:
        raise ValueError("hold out at least one episode per task: demonstrations.heldout_per_task=1")
    kept: list[Demonstration] = []
    hidden: list[int] = []
    for task in sorted({d.task for d in found}):
        mine = [found[i] for i in training if found[i].task == task]
        order = np.random.default_rng((chosen["split_seed"], 1)).permutation(len(mine))
        count = chosen["per_task"] or len(mine)
        if count > len(mine) or chosen["action_free"] >= count:
            raise ValueError(
                f"{task} has {len(mine)} training episodes, asked were {count}, of which {chosen['action_free']} "
                f"without actions: record more, or lower demonstrations.per_task or .action_free"
            )
        picked = [mine[i] for i in order[:count]]
        hidden += range(len(kept) + count - chosen["action_free"], len(kept) + count)
        kept += picked
    return Demonstrations(training=kept, heldout=[found[i] for i in heldout], action_free=tuple(hidden))


def interface(settings: Settings, shown: Demonstrations) -> Interface:
    """What the policy sees and does, from the demonstrations."""
    first = shown.training[0]
    return Interface(
        state_dim=first.state.shape[1],
        action_dim=first.action.shape[1],
        chunk=settings["chunk"],
        tasks=shown.tasks,
        environment_dim=None if first.environment is None else first.environment.shape[1],
        image_size=None if first.image is None else (first.image.shape[1], first.image.shape[2]),
    )


def auxiliary(settings: Settings) -> Auxiliary | None:
    """The auxiliary branch, its horizon and momentum filled in."""
    given = settings["policy"]["auxiliary"]
    if given is None:
        return None
    momentum = momentum_of_run(settings["trainer"]["max_steps"])
    filled = {"horizon": settings["chunk"], "momentum": momentum}
    return Auxiliary(**{**given, **{k: given[k] if given[k] is not None else v for k, v in filled.items()}})


def policy(settings: Settings, made_for: Interface, statistics: Statistics | None = None) -> ImitationPolicy:
    """The policy of a config, its weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        return build_policy(
            settings["policy"]["name"],
            interface=made_for,
            sizes=Sizes(**settings["size"]),
            auxiliary=auxiliary(settings),
            statistics=statistics,
            backbone=backbone(settings),
        )


def backbone(settings: Settings) -> Backbone | None:
    """The image encoder of the `backbone` group, as pretrained.py completed it; None for the one of the sizes."""
    given = settings["backbone"]
    if not given["run"]:
        return None
    return Backbone(frozen=given["frozen"], **given["built_as"])


def measured_statistics(shown: Demonstrations) -> Statistics:
    """Of the training episodes; bounds of actions are those of the simulator."""
    env = make_env(shown.tasks[0])
    spec = env.action
    env.close()
    return Statistics.measured(
        shown.training, action_low=spec.low, action_high=spec.high, action_free=shown.action_free
    )


def datasets(
    settings: Settings, shown: Demonstrations, *, horizon: int | None = None
) -> tuple[ChunkDataset, ChunkDataset]:
    """Training and held-out stretches; `horizon` states in place of what the policy predicts."""
    branch = auxiliary(settings)
    stride = branch.image_stride if branch and branch.target == "image" else None
    remembers = settings["policy"]["name"] == "autoregressive"  # it learns from all steps of its window
    options: dict[str, Any] = {
        "tasks": shown.tasks,
        "chunk": settings["chunk"],
        "horizon": horizon or (branch.horizon if branch else None),
        "environment_sequence": remembers and settings["observe"]["environment"],
        "image_stride": 1 if remembers and settings["observe"]["image"] else stride,
    }
    labelled = [d for i, d in enumerate(shown.training) if i not in shown.action_free]
    again = labelled * (settings["demonstrations"]["repeat_labelled"] - 1)
    return (
        ChunkDataset([*shown.training, *again], action_free=shown.action_free, **options),
        ChunkDataset(shown.heldout, **options),
    )


@dataclass(frozen=True, kw_only=True)
class LoadedPolicy:
    """A trained policy in evaluation mode.

    Attributes:
        settings: of its run.
        memory: steps of history it reads, 0 for most.
        checkpoint: folder it was read from.
    """

    policy: ImitationPolicy
    settings: Settings
    memory: int
    checkpoint: Path


def load_policy(path: Path, *, device: str = "cpu") -> LoadedPolicy:
    """The policy of a run folder (its newest checkpoint) or of a checkpoint; no demonstrations are needed.

    Raises:
        RunFolderError: if it is no run of train_policy.py.
        CheckpointError: if the checkpoint is damaged, lacks the statistics, or is of another model.
    """
    run, checkpoint = locate(path)
    try:
        settings = json.loads(run.config.read_text())
        made_for = Interface.from_json(settings["interface"])
        whole = policy(settings, made_for)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{run.config} does not describe a policy of this version ({type(error).__name__}: {error})"
        ) from error
    load_strict(whole, averaged_part(load_checkpoint(checkpoint).model), source=str(checkpoint))
    whole.statistics.require()
    memory = made_for.chunk - 1 if settings["policy"]["name"] == "autoregressive" else 0
    return LoadedPolicy(
        policy=whole.to(device).eval().requires_grad_(False),
        settings=settings,
        memory=memory,
        checkpoint=checkpoint,
    )


def described(made_for: Interface) -> Settings:
    """For config.json: a run is loaded without its demonstrations."""
    return asdict(made_for)
