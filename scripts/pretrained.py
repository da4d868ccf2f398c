"""What train_policy.py takes over from other runs: image encoders of world models, context encoders of policies."""

import json
from pathlib import Path
from typing import Any

from imitation import load_policy
from runs import locate
from torch import nn
from world_models import load_world_model

from policies.imitation.context import ContextEncoder
from policies.imitation.policy import ImitationPolicy
from policies.imitation.vision import ImageTokens
from worldmodel.training.checkpoints import load_strict
from worldmodel.training.run_folder import RunFolderError

Settings = dict[str, Any]


def completed(settings: Settings) -> Settings:
    """The settings with what they take from other runs: how the encoder of backbone.run is built (policies are loaded
    without that run), and which episodes the policy of start.run has seen (`training_seeds`).

    Raises:
        RunFolderError: if they are no such runs.
    """
    given, start = settings["backbone"], settings["start"]["run"]
    if given["run"]:
        world_model = load_world_model(Path(given["run"]))
        known = world_model.settings["world_model"]
        built_as = {
            "encoder": known["encoder"],
            "embed_dim": known["embed_dim"],
            "options": known["encoder_options"],
            "image_size": getattr(world_model.model.encoder, "image_size", None),
        }
        settings = {**settings, "backbone": {**given, "built_as": built_as}}
    if start:
        run, _ = locate(Path(start))
        seen = json.loads(run.config.read_text()).get("training_seeds")
        if seen is None:
            raise RunFolderError(f"{run.config} does not say which episodes were trained on: train it again")
        settings = {**settings, "training_seeds": seen}
    return settings


def load_pretrained(made: ImitationPolicy, settings: Settings) -> None:
    """Weights of backbone.run and of start.run, where they are given.

    Raises:
        ValueError: if the policy to start from sees something else, or this one has no place for it.
        CheckpointError: if sizes differ.
    """
    if settings["backbone"]["run"]:
        pretrained = load_world_model(Path(settings["backbone"]["run"]))
        for tokens in _all(made, ImageTokens):  # the copy that makes image targets begins alike
            source = f"the encoder of {pretrained.checkpoint}"
            load_strict(tokens.backbone, pretrained.model.encoder.state_dict(), source=source)
    if settings["start"]["run"]:
        _start(made, Path(settings["start"]["run"]), frozen=settings["start"]["frozen"])


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
    return (
        f"a state of {seen.state_dim}, an environment of {seen.environment_dim}, images of {seen.image_size} and the "
        f"tasks {', '.join(seen.tasks)}"
    )


def _all(policy: ImitationPolicy, kind: type[nn.Module]) -> list[Any]:
    return [m for m in policy.network.modules() if isinstance(m, kind)]
