"""World models as settings describe them: episodes, encoders, tasks, and trained runs for planners to load."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runs import locate
from torch import nn

from envs.episodes import ActionBlocks, ActionSpec, EpisodeSource, Items
from envs.point_maze import PointMazeEpisodes
from envs.push_t import PushTEpisodes
from envs.two_rooms import TwoRoomsEpisodes
from worldmodel.jepa_dynamics import (
    DynamicsModel,
    DynamicsWeights,
    GoalCode,
    JEPADynamics,
)
from worldmodel.lejepa import LeJEPA
from worldmodel.nn.dynamics import RecurrentPredictor, ResidualPredictor
from worldmodel.nn.encoders import build_encoder
from worldmodel.nn.patch_map import ConvPredictor, PatchMap
from worldmodel.planning import InverseDynamics
from worldmodel.planning.inverse_dynamics import InverseDynamicsTask
from worldmodel.regularizers import SIGReg
from worldmodel.seq_jepa import SeqJEPA, SeqWorldModel
from worldmodel.targets import EMATarget, SharedTarget
from worldmodel.training.checkpoints import load_checkpoint, load_strict
from worldmodel.training.run_folder import RunFolderError

Settings = dict[str, Any]


def lerobot(
    *,
    split: str,
    root: str,
    observation: str | None = None,
    action: str = "action",
    episodes: int | None = None,
    min_frames: int = 1,
    in_memory: bool = True,
) -> EpisodeSource:
    """One side of a LeRobot data set: its last tenth for "selection", the episodes before it for "train".

    Args:
        episodes: at most so many of that side.
        min_frames: shorter episodes are left out.

    Raises:
        ValueError: for another split, or fewer than two episodes that are long enough.
    """
    from envs.lerobot import LeRobotDataset, LeRobotEpisodes

    dataset = LeRobotDataset(root)
    items = np.flatnonzero([e.length >= min_frames for e in dataset.episodes])
    if split not in ("train", "selection") or len(items) < 2:
        raise ValueError(
            f"{root} with {len(items)} of {len(dataset)} episodes of at least {min_frames} frames has no split "
            f"{split!r}: a data set of two or more is split into train and selection"
        )
    trained = len(items) - max(1, len(items) // 10)
    items = items[:trained] if split == "train" else items[trained:]
    whole = LeRobotEpisodes(
        dataset, observation=observation, action=action, channels_first=True, in_memory=in_memory
    )
    return Items(whole, items[:episodes])


SOURCES: dict[str, Callable[..., EpisodeSource]] = {
    "lerobot": lerobot,
    "two_rooms": TwoRoomsEpisodes,
    "point_maze": PointMazeEpisodes,
    "push_t": PushTEpisodes,
}
PREDICTORS = {"residual": ResidualPredictor, "recurrent": RecurrentPredictor, "conv": ConvPredictor}


def source(settings: Settings, split: str) -> EpisodeSource:
    """The `episodes` group: episodes of one split, actions in blocks.

    Raises:
        ValueError: for an unknown name.
    """
    options = {k: v for k, v in settings.items() if k not in ("name", "block")}
    name = settings["name"]
    if name not in SOURCES:
        raise ValueError(f"episodes is {', '.join(SOURCES)}, got {name!r}")
    return ActionBlocks(SOURCES[name](split=split, **options), settings["block"])


def encoder(settings: Settings, shape: tuple[int, ...]) -> nn.Module:
    """Encoder of observations of a shape; those that are no images need `mlp`."""
    return build_encoder(
        settings["encoder"], shape, dim=settings["embed_dim"], options=settings["encoder_options"]
    )


def action_scale(given: float | None, spec: ActionSpec) -> torch.Tensor:
    """[A]: the number given, or half the range of each action, 1 where it has no bounds."""
    if given is not None:
        return torch.full((spec.dim,), float(given))
    half = (torch.from_numpy(spec.high) - torch.from_numpy(spec.low)) / 2
    return torch.where(half.isfinite() & (half > 0), half, 1.0)


def dynamics(settings: Settings, episodes: EpisodeSource, *, seed: int) -> JEPADynamics:
    """The task of world_model=dynamics.

    Raises:
        ValueError: for an unknown predictor, or one that does not fit the encoder: conv reads maps, the others vectors.
    """
    channels, actions = settings["embed_dim"], episodes.action.dim
    name, spatial = settings["predictor"], settings["encoder"] == "patch_map"
    if name not in PREDICTORS or (name == "conv") != spatial:
        raise ValueError(
            f"world_model.predictor is residual or recurrent, or conv with encoder=patch_map, got {name!r} with "
            f"encoder={settings['encoder']!r}"
        )
    reader = encoder(settings, episodes.observation_shape)
    numbers = channels * reader.grid[0] * reader.grid[1] if isinstance(reader, PatchMap) else channels
    model = DynamicsModel(
        encoder=reader,
        predictor=PREDICTORS[name](channels, actions, hidden=settings["predictor_hidden"]),
        action_scale=action_scale(settings["action_scale"], episodes.action),
        goal_code=GoalCode(numbers, settings["code_dim"]) if settings["code_dim"] else None,
    )
    weights = DynamicsWeights(**settings["weights"])
    return JEPADynamics(
        model=model,
        dim=numbers,
        action_dim=actions,
        code_dim=settings["code_dim"],
        weights=weights,
        sigreg=SIGReg(seed=seed) if weights.sigreg else None,
    )


def seq_jepa(settings: Settings, episodes: EpisodeSource, *, seed: int) -> SeqJEPA:
    """The task of world_model=seq_jepa."""
    views = settings["views"] if isinstance(settings["views"], int) else tuple(settings["views"])
    most = views if isinstance(views, int) else views[1]
    model = SeqWorldModel(
        encoder=encoder(settings, episodes.observation_shape),
        embed_dim=settings["embed_dim"],
        action_dim=episodes.action.dim,
        window=most,
        max_views=most,
        **{
            k: settings[k] for k in ("condition", "action_scale", "action_embed", "hidden", "layers", "heads")
        },
        **{k: settings[k] for k in ("mlp_ratio", "dropout", "positions", "token_std")},
    )
    if settings["target"] == "ema":
        momentum = settings["ema_momentum"]
        target = EMATarget(model.encoder, momentum=momentum, schedule="cosine", copy_buffers=True)
        return SeqJEPA(model=model, target=target, views=views)
    if settings["target"] != "sigreg":
        raise ValueError(f"world_model.target is ema or sigreg, got {settings['target']!r}")
    lejepa = LeJEPA(sigreg=SIGReg(seed=seed), weight=settings["sigreg_weight"])
    return SeqJEPA(model=model, target=SharedTarget(), lejepa=lejepa, views=views)


def inverse_dynamics(settings: Settings, episodes: EpisodeSource, *, seed: int) -> InverseDynamicsTask:
    """The task of world_model=inverse_dynamics.

    Raises:
        ValueError: if the world model was trained with other actions.
    """
    known = load_world_model(Path(settings["of"]))
    if known.actions != episodes.action.dim:
        raise ValueError(
            f"the world model of {settings['of']} has actions of {known.actions} numbers, these episodes of "
            f"{episodes.action.dim}: name its `episodes`, with the same block"
        )
    with torch.no_grad():
        latent = known.model.encode(torch.zeros(1, 1, *episodes.observation_shape))
    head = InverseDynamics(
        latent_dim=latent.numel(),
        action_dim=episodes.action.dim,
        hidden=settings["hidden"],
        layers=settings["layers"],
    )
    return InverseDynamicsTask(
        model=known.model,
        head=head,
        max_distance=settings["max_distance"],
        action_scale=action_scale(settings["action_scale"], episodes.action),
    )


def task(settings: Settings, episodes: EpisodeSource) -> SeqJEPA | JEPADynamics | InverseDynamicsTask:
    """The task that a whole config describes, its weights drawn from the seed."""
    makers: dict[str, Callable[..., SeqJEPA | JEPADynamics | InverseDynamicsTask]] = {
        "dynamics": dynamics,
        "seq_jepa": seq_jepa,
        "inverse_dynamics": inverse_dynamics,
    }
    name, seed = settings["world_model"]["name"], settings["seed"]
    if name not in makers:
        raise ValueError(f"world_model is {', '.join(makers)}, got {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return makers[name](settings["world_model"], episodes, seed=seed)


def stretch(settings: Settings) -> int:
    """Observations of a training stretch."""
    model = settings["world_model"]
    if model["name"] == "dynamics":
        return model["observations"]
    if model["name"] == "inverse_dynamics":
        return model["max_distance"] + 1
    return (model["views"] if isinstance(model["views"], int) else model["views"][1]) + 1


@dataclass(frozen=True, kw_only=True)
class LoadedWorldModel:
    """A trained world model and what a planner must know of it.

    Attributes:
        model: a `WorldModel`, frozen and in evaluation mode.
        settings: of its run.
        actions: numbers of an action of the model.
        block: environment steps per action of the model.
        window: observed latents it makes use of.
        checkpoint: folder it was read from.
    """

    model: DynamicsModel | SeqWorldModel
    settings: Settings
    actions: int
    block: int
    window: int
    checkpoint: Path


def load_world_model(path: Path) -> LoadedWorldModel:
    """The world model of a run folder (its newest checkpoint) or of a checkpoint.

    Raises:
        RunFolderError: if it is no run of train_world_model.py.
        CheckpointError: if the checkpoint is damaged or of another model.
    """
    whole, settings, checkpoint = _trained(path)
    if not isinstance(whole, SeqJEPA | JEPADynamics):
        raise RunFolderError(f"{path} holds an inverse-dynamics head: name the world model it reads")
    return LoadedWorldModel(
        model=whole.model.eval().requires_grad_(False),
        settings=settings,
        actions=_episodes(settings).action.dim,
        block=settings["episodes"]["block"],
        window=getattr(whole.model, "window", None) or 1,
        checkpoint=checkpoint,
    )


def load_inverse_dynamics(path: Path, model: LoadedWorldModel) -> InverseDynamics:
    """The head of a run of world_model=inverse_dynamics.

    Raises:
        RunFolderError: if it is something else, or was trained on another world model.
    """
    whole, settings, _ = _trained(path)
    if not isinstance(whole, InverseDynamicsTask):
        raise RunFolderError(f"{path} is no run of world_model=inverse_dynamics")
    if locate(Path(settings["world_model"]["of"]))[1] != model.checkpoint:
        raise RunFolderError(
            f"{path} was trained on {settings['world_model']['of']}, not on {model.checkpoint}"
        )
    return whole.head.eval().requires_grad_(False)


def _episodes(settings: Settings) -> EpisodeSource:
    """One episode of a run's source: for its shapes."""
    return source({**settings["episodes"], "episodes": 1}, "train")


def _trained(path: Path) -> tuple[SeqJEPA | JEPADynamics | InverseDynamicsTask, Settings, Path]:
    run, checkpoint = locate(path)
    try:
        settings = json.loads(run.config.read_text())
        whole = task(settings, _episodes(settings))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{run.config} does not describe a world model of this version ({type(error).__name__}: {error})"
        ) from error
    load_strict(whole, load_checkpoint(checkpoint).model, source=str(checkpoint))
    return whole, settings, checkpoint
