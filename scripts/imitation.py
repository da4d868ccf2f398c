"""Imitation policies as settings describe them: demonstrations, policies, and trained runs to roll out."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runs import locate

from envs.demonstrations import ACTION, Demonstration, action_bounds, load_demonstrations
from envs.driving.demonstrations import TASK as DRIVING
from envs.driving.demonstrations import drive_demonstration, drive_files
from envs.driving.drive_store import ACTION as DRIVEN
from envs.manipulation import EnvOptions
from envs.manipulation.recording import recorded_options
from policies.imitation.build import Auxiliary, Sizes, build_policy, described_backbone
from policies.imitation.chunks import ChunkDataset, check_apart, seeds_by_task, split_demonstrations
from policies.imitation.export import ExportedPolicy
from policies.imitation.lidar_tokens import LidarBackbone
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
    """The `demonstrations` group.

    Attributes:
        training, heldout: episodes.
        action_free: of the former, those that hide their actions.
        failures_left_out: episodes of neither, because they did not succeed.
        bounds: lowest and highest action [Da]; of the training episodes where the data set does not say.
        options: of the environments they were recorded in, where the data set says.
    """

    training: list[Demonstration]
    heldout: list[Demonstration]
    action_free: tuple[int, ...]
    failures_left_out: int
    bounds: tuple[np.ndarray, np.ndarray]
    options: EnvOptions | None

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(sorted({d.task for d in self.training}))


def demonstrations(settings: Settings) -> Demonstrations:
    """Loaded and split by episode; which ones are trained on depends on split_seed alone.

    Raises:
        ValueError: if there are fewer than asked for, or what is held out was trained on before, by this policy or by
            the one it starts from (`training_seeds` in the settings).
    """
    chosen = settings["demonstrations"]
    source = _source(settings)
    everything = source.demonstrations
    found = [d for d in everything if d.success or chosen["failures"]]
    lost = {d.task for d in everything} - {d.task for d in found}
    if lost:
        raise ValueError(
            f"no demonstration of {', '.join(sorted(lost))} succeeded: record others, or imitate failures too "
            f"(demonstrations.failures=true)"
        )
    training, heldout = split_demonstrations(
        found, heldout_per_task=chosen["heldout_per_task"], seed=chosen["split_seed"]
    )
    if not heldout:
        raise ValueError("hold out at least one episode per task: demonstrations.heldout_per_task=1")
    check_apart(settings.get("training_seeds", {}), [found[i] for i in heldout])
    kept: list[Demonstration] = []
    hidden: list[int] = []
    for task in sorted({d.task for d in found}):
        mine = [found[i] for i in training if found[i].task == task]
        count = chosen["per_task"] or len(mine)
        if count > len(mine) or chosen["action_free"] >= count:
            raise ValueError(
                f"{task} has {len(mine)} training episodes, asked were {count}, of which {chosen['action_free']} "
                f"without actions: record more, or lower demonstrations.per_task or .action_free"
            )
        hidden += range(len(kept) + count - chosen["action_free"], len(kept) + count)
        kept += mine[:count]
    labelled = np.concatenate([d.action for i, d in enumerate(kept) if i not in hidden])
    return Demonstrations(
        training=kept,
        heldout=[found[i] for i in heldout],
        action_free=tuple(hidden),
        failures_left_out=len(everything) - len(found),
        bounds=source.bounds or (labelled.min(0), labelled.max(0)),
        options=source.options,
    )


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What a folder holds: all demonstrations, and bounds of actions and options of environments where it says."""

    demonstrations: list[Demonstration]
    bounds: tuple[np.ndarray, np.ndarray] | None
    options: EnvOptions | None


def _source(settings: Settings) -> _Source:
    chosen, seen = settings["demonstrations"], settings["observe"]
    if drives := drive_files(chosen["root"]):
        return _from_drives(drives, settings)
    if seen.get("points"):
        raise ValueError(
            f"{chosen['root']} holds no drives, whose LiDAR sweeps observe.points=true asks for: make some with "
            f"simulate_lidar.py --drives"
        )
    columns = {name: key for name, key in chosen["columns"].items() if key is not None}
    picture = columns.pop("image", True)
    others = {} if seen["environment"] else {"environment": None}
    found = load_demonstrations(
        chosen["root"],
        tasks=chosen["tasks"],
        image=picture if seen["image"] else False,
        **{**columns, **others},
    )
    names = chosen["environments"] or {}
    unknown = sorted(names.keys() - {d.task for d in found})
    if unknown:
        raise ValueError(
            f"demonstrations.environments names {', '.join(unknown)}, of which there are no demonstrations"
        )
    return _Source(
        demonstrations=[replace(d, task=names.get(d.task, d.task)) for d in found],
        bounds=action_bounds(chosen["root"], action=chosen["columns"]["action"] or ACTION),
        options=recorded_options(chosen["root"]),
    )


def _from_drives(drives: Sequence[Path], settings: Settings) -> _Source:
    chosen, seen = settings["demonstrations"], settings["observe"]
    if unknown := sorted(set(chosen["tasks"] or ()) - {DRIVING}):
        raise ValueError(f"{chosen['root']} has no task {', '.join(unknown)}; it has {DRIVING}")
    others = {
        "observe.image": seen["image"],
        "demonstrations.environments": chosen["environments"],
        "demonstrations.columns": any(chosen["columns"].values()),
    }
    if meant := [name for name, value in others.items() if value]:
        raise ValueError(
            f"{chosen['root']} holds drives, which have LiDAR sweeps (observe.points=true), a state and an action: "
            f"leave out {', '.join(meant)}"
        )
    found = [drive_demonstration(path, points=seen.get("points", False)) for path in drives]
    return _Source(demonstrations=found, bounds=(DRIVEN.low, DRIVEN.high), options=None)


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
        points=first.points is not None,
    )


def auxiliary(settings: Settings) -> Auxiliary | None:
    """The auxiliary branch, its horizon and momentum filled in."""
    given = settings["policy"]["auxiliary"]
    if given is None:
        return None
    momentum = momentum_of_run(settings["trainer"]["max_steps"])
    filled = {"horizon": settings["chunk"], "momentum": momentum}
    return Auxiliary(**{**given, **{k: v for k, v in filled.items() if given.get(k) is None}})


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


def backbone(settings: Settings) -> Backbone | LidarBackbone | None:
    """The encoder of the `backbone` group, as pretrained.py completed it; None for the one of the sizes."""
    given = settings["backbone"]
    if not given["run"]:
        return None
    return described_backbone({**given["built_as"], "frozen": given["frozen"]})


def measured_statistics(shown: Demonstrations) -> Statistics:
    """Of the training episodes."""
    low, high = shown.bounds
    return Statistics.measured(
        shown.training, action_low=low, action_high=high, action_free=shown.action_free
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
        options: of the environments its demonstrations were recorded in, where it is known.
        memory: steps of history it reads, 0 for most.
        checkpoint: folder it was read from.
    """

    policy: ImitationPolicy
    settings: Settings
    memory: int
    options: EnvOptions | None
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
        options = settings["env"] and EnvOptions(**settings["env"])
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
        options=options,
        checkpoint=checkpoint,
    )


def env_options(given: Settings, policies: Sequence[LoadedPolicy | ExportedPolicy]) -> EnvOptions:
    """Of the environments that policies are rolled out in: as their demonstrations were recorded, where it is known,
    with pictures of the size they see. What `given` (None: not given) says otherwise is printed.

    Raises:
        ValueError: if the policies need different ones.
    """
    if any(m.policy.interface.points for m in policies):
        raise ValueError(
            "no environment here has a LiDAR: policies of drives are judged by their held-out errors (metrics.jsonl)"
        )
    chosen = {name: value for name, value in given.items() if value is not None}
    sizes = {m.policy.interface.image_size for m in policies} - {None}
    if len(sizes) > 1 or any(size is not None and size[0] != size[1] for size in sizes):
        raise ValueError(f"policies see pictures of {sizes}: evaluate them apart")
    for size in sizes:
        if size is not None and chosen.setdefault("image_size", size[0]) != size[0]:
            raise ValueError(
                f"env.image_size={chosen['image_size']}, but the policies see {size[0]} x {size[0]}"
            )
    recorded = [asdict(m.options) for m in policies if m.options is not None]
    for name in ("preset", "max_steps", "distractors"):
        values = {options[name] for options in recorded}
        if name in chosen and values - {chosen[name]}:
            print(f"env.{name}={chosen[name]}, but the demonstrations were recorded with {_listed(values)}")
        elif name not in chosen and len(values) > 1:
            raise ValueError(
                f"the demonstrations of the policies were recorded with env.{name} of {_listed(values)}: name one, or "
                f"evaluate them apart"
            )
        elif name not in chosen and values:
            (chosen[name],) = values
    return EnvOptions(**chosen)


def _listed(values: set[Any]) -> str:
    return " and ".join(sorted(map(str, values)))


def described(made_for: Interface, shown: Demonstrations, settings: Settings) -> Settings:
    """The settings for config.json: a run is loaded without its demonstrations, and knows which ones it has seen."""
    return {
        **settings,
        "interface": asdict(made_for),
        "env": None if shown.options is None else asdict(shown.options),
        "training_seeds": seeds_by_task(shown.training, besides=settings.get("training_seeds")),
    }
