"""What train_policy.py takes over from other runs: encoders of images and of LiDAR sweeps, context encoders."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from imitation import load_policy
from runs import load_task, locate, run_settings
from settings import encoder_config
from torch import nn
from world_models import load_world_model

from envs.demonstrations import Demonstration
from policies.imitation.context import ContextEncoder
from policies.imitation.lidar_tokens import LidarTokens
from policies.imitation.policy import ImitationPolicy
from policies.imitation.vision import ImageTokens
from worldmodel.training.checkpoints import load_strict
from worldmodel.training.run_folder import RunFolderError

Settings = dict[str, Any]
CALIBRATION = 32  # sweeps, at most


def completed(settings: Settings) -> Settings:
    """The settings with what they take from other runs: how the encoder of backbone.run is built (policies are loaded
    without that run), and which episodes the policy of start.run has seen (`training_seeds`).

    Raises:
        RunFolderError: if they are no such runs.
    """
    given, start = settings["backbone"], settings["start"]["run"]
    if given["weights"] not in ("pretrained", "random"):
        raise ValueError(f"backbone.weights is pretrained or random, got {given['weights']!r}")
    if given["run"]:
        settings = {
            **settings,
            "backbone": {**given, "built_as": _built_as(Path(given["run"]), given["pool"])},
        }
    if start:
        run, _ = locate(Path(start))
        seen = json.loads(run.config.read_text()).get("training_seeds")
        if seen is None:
            raise RunFolderError(f"{run.config} does not say which episodes were trained on: train it again")
        settings = {**settings, "training_seeds": seen}
    return settings


def _built_as(run: Path, pool: int) -> Settings:
    """Of a pretraining run or a world model: what `policies.imitation.build.described_backbone` takes but `frozen`."""
    if _is_lidar(run):
        known = asdict(encoder_config(run_settings(locate(run)[0])))
        # A run of spconv is read anywhere: the weights are the same.
        return {"kind": "lidar", "encoder": {**known, "backend": "auto"}, "pool": pool}
    world_model = load_world_model(run)
    known = world_model.settings["world_model"]
    return {
        "encoder": known["encoder"],
        "embed_dim": known["embed_dim"],
        "options": known["encoder_options"],
        "image_size": getattr(world_model.model.encoder, "image_size", None),
    }


def _is_lidar(run: Path) -> bool:
    folder, _ = locate(run)
    try:
        return "objective" in json.loads(folder.config.read_text())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{folder.config} cannot be read: {error}") from error


def load_pretrained(made: ImitationPolicy, settings: Settings, training: Sequence[Demonstration]) -> None:
    """Weights of backbone.run and of start.run, where they are given.

    Args:
        training: demonstrations, on whose sweeps the BatchNorm of a LiDAR encoder is recalibrated.

    Raises:
        ValueError: if the policy to start from sees something else, or this one has no place for it.
        CheckpointError: if sizes differ.
    """
    given = settings["backbone"]
    if given["run"]:
        _load_backbone(made, Path(given["run"]), training, random=given["weights"] == "random")
    if settings["start"]["run"]:
        _start(made, Path(settings["start"]["run"]), frozen=settings["start"]["frozen"])


def _load_backbone(
    made: ImitationPolicy, run: Path, training: Sequence[Demonstration], *, random: bool
) -> None:
    for tokens in _all(made, LidarTokens):
        folder, checkpoint = locate(run)
        if not random:
            weights = load_task(run_settings(folder), checkpoint).model.encoder.state_dict()
            load_strict(tokens.backbone.encoder, weights, source=f"the encoder of {checkpoint}")
        tokens.recalibrate(_sweeps(training))
    if not random and (images := _all(made, ImageTokens)):
        pretrained = load_world_model(run)
        for tokens in images:  # the copy that makes image targets begins alike
            source = f"the encoder of {pretrained.checkpoint}"
            load_strict(tokens.backbone, pretrained.model.encoder.state_dict(), source=source)


def _sweeps(training: Sequence[Demonstration]) -> list[torch.Tensor]:
    """Evenly spaced among all."""
    everything = [sweep for d in training for sweep in d.points or ()]
    chosen = range(0, len(everything), max(1, -(-len(everything) // CALIBRATION)))
    return [torch.from_numpy(everything[i]) for i in chosen]


def _start(made: ImitationPolicy, run: Path, *, frozen: bool) -> None:
    first = load_policy(run)
    mine, its = (_seen(p) for p in (made, first.policy))
    if mine != its:
        raise ValueError(f"start.run={run} sees {its}, this policy {mine}")
    contexts = _all(made, ContextEncoder), _all(first.policy, ContextEncoder)
    if not all(contexts) or hasattr(made.network, "targets"):
        raise ValueError(
            "start.run takes over the context encoder of policy=act, act_cvae, flow or act_jepa, for policy=act, "
            "act_cvae or flow"
        )
    context = contexts[0][0]
    load_strict(context, contexts[1][0].state_dict(), source=f"the context encoder of {first.checkpoint}")
    # It was trained on observations in these units.
    for name, buffer in made.statistics.named_buffers():
        if name.startswith(("state_", "environment_")):
            buffer.copy_(getattr(first.policy.statistics, name))
    if frozen:
        context.freeze()


def _seen(policy: ImitationPolicy) -> str:
    seen = policy.interface
    sweeps = [f"LiDAR sweeps on {t.backbone.grid}" for t in _all(policy, LidarTokens)] or ["no LiDAR sweeps"]
    return (
        f"a state of {seen.state_dim}, an environment of {seen.environment_dim}, images of {seen.image_size}, "
        f"{sweeps[0]} and the tasks {', '.join(seen.tasks)}"
    )


def _all(policy: ImitationPolicy, kind: type[nn.Module]) -> list[Any]:
    return [m for m in policy.network.modules() if isinstance(m, kind)]
