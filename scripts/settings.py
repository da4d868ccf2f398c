"""Plain settings, as Hydra composes them, to the library's typed constructors. An unknown key is an error there."""

from typing import Any

from lidar.datasets import DatasetError, FrameError
from lidar.pretraining import LidarPretraining
from lidar.recipe import OBJECTIVES, CompatConfig, EncoderConfig, build_task
from worldmodel.protocols import RepresentationCollapse
from worldmodel.training import TrainerConfig, TrainingDiverged
from worldmodel.training.checkpoints import CheckpointError
from worldmodel.training.run_folder import RunFolderError
from worldmodel.training.schedules import OneCycle

# Errors whose message tells a user what to do: shown without a traceback.
USER_ERRORS = (
    ValueError, ImportError, DatasetError, FrameError, RunFolderError, CheckpointError,
    TrainingDiverged, RepresentationCollapse, FileNotFoundError, PermissionError,
)  # fmt: skip


def _without(settings: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if k not in keys}


def encoder_config(settings: dict[str, Any]) -> EncoderConfig:
    """The `model` group."""
    return EncoderConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings["model"].items()})


def recipe(settings: dict[str, Any]) -> LidarPretraining:
    """The task that a whole config describes."""
    objective = OBJECTIVES[settings["objective"]["name"]](**_without(settings["objective"], "name"))
    return build_task(
        encoder=encoder_config(settings),
        objective=objective,
        compat=CompatConfig(**settings["compat"]),
        collapse_std=settings["collapse_std"],
        seed=settings["seed"],
    )


def trainer_settings(settings: dict[str, Any]) -> tuple[TrainerConfig, int]:
    """The `trainer` group, and the number of held-out frames."""
    trainer = settings["trainer"]
    schedule = OneCycle(max_lr=trainer["max_lr"], warmup=trainer["warmup"])
    rest = _without(trainer, "max_lr", "warmup", "heldout_frames")
    return TrainerConfig(schedule=schedule, seed=settings["seed"], **rest), trainer["heldout_frames"]
