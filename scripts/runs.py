"""Pretraining runs as other scripts read them: settings, checkpoints, the trained task."""

import json
from pathlib import Path
from typing import Any

from settings import encoder_config, recipe

from lidar.pretraining import LidarPretraining
from worldmodel.training import RunFolder
from worldmodel.training.checkpoints import load_checkpoint, load_strict
from worldmodel.training.run_folder import RunFolderError


def locate(path: Path) -> tuple[RunFolder, Path]:
    """The run folder and the checkpoint that a path names: a run, whose newest checkpoint is meant, or a checkpoint."""
    if (path / "state.json").is_file():
        return RunFolder(path.parent.parent), path
    run = RunFolder(path)
    checkpoint = run.latest_checkpoint()
    if checkpoint is None:
        raise RunFolderError(
            f"{path} holds no checkpoint: name a run folder or one of its checkpoints/step_*"
        )
    return run, checkpoint


def run_settings(run: RunFolder) -> dict[str, Any]:
    """config.json of a pretraining run."""
    try:
        settings = json.loads(run.config.read_text())
        encoder_config(settings)
    except FileNotFoundError:
        raise RunFolderError(f"{run.path} holds no config.json: it is not the folder of a run") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{run.config} does not describe a pretraining run of this version ({type(error).__name__}: {error})"
        ) from error
    return settings


def load_task(settings: dict[str, Any], checkpoint: Path) -> LidarPretraining:
    """The task of a run as a checkpoint has it, beside its untrained encoder; fp32, CPU and plain torch.

    Raises:
        CheckpointError: if the checkpoint is damaged, or not of a model with these settings.
    """
    task = recipe({**settings, "model": {**settings["model"], "backend": "torch"}})
    load_strict(task, load_checkpoint(checkpoint).model, source=str(checkpoint))
    return task.eval()
