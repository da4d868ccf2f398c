"""One training loop for every model: order of data, schedules, checkpoints, metrics, the run folder."""

from worldmodel.training.config import TrainerConfig
from worldmodel.training.loop import FitResult, TrainingDiverged, fit
from worldmodel.training.run_folder import RunFolder

__all__ = ["FitResult", "RunFolder", "TrainerConfig", "TrainingDiverged", "fit"]
