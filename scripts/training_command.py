"""What the commands that train have in common: the run folder, the loop, Ctrl-C, errors, and how to go on."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from settings import USER_ERRORS
from torch import nn
from torch.utils.data import Dataset

from worldmodel.distributed import barrier, broadcast_text, process_group, rank
from worldmodel.training import RunFolder, TrainerConfig, fit
from worldmodel.training.loop import FitResult
from worldmodel.training.schedules import WarmupCosine

Settings = dict[str, Any]

# What may differ between the starts of one run: nothing that changes a number.
VOLATILE = (
    "resume",
    "run.",
    *(f"trainer.{key}" for key in ("device", "num_workers", "progress", "wandb", "stop_after")),
    *(f"trainer.{key}" for key in ("keep_checkpoints", "checkpoint_every", "eval_every")),
)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run trains.

    Attributes:
        task: a `Task`.
        dataset, collate: training samples, and samples to batches.
        heldout: batches for the monitors.
        settings: of the run, with what was found out while preparing it; stored in its folder.
        summary: what is printed at the start, in a few words.
    """

    task: nn.Module
    dataset: Dataset[Any]
    collate: Callable[[list[Any]], Any]
    heldout: Sequence[Any]
    settings: Settings
    summary: str


def trainer_config(settings: Settings, *, heldout: str) -> TrainerConfig:
    """The `trainer` group.

    Args:
        heldout: its key for the size of the held-out set, not the loop's business. A warm-up below 1 is a share
            of the steps.
    """
    trainer = {key: value for key, value in settings["trainer"].items() if key != heldout}
    warmup = trainer.pop("warmup")
    steps = max(1, round(warmup * trainer["max_steps"])) if 0 < warmup < 1 else warmup
    schedule = WarmupCosine(warmup=steps, **{key: trainer.pop(key) for key in ("max_lr", "end_lr")})
    return TrainerConfig(schedule=schedule, seed=settings["seed"], **trainer)


def run_folder(settings: Settings, job: str) -> RunFolder:
    """The folder of the run, the same on all ranks."""
    located = RunFolder.locate(settings["run"]["dir"], job=job, root=Path("runs"), resume=settings["resume"])
    return RunFolder(Path(broadcast_text(str(located.path))))


def train(
    settings: Settings, *, job: str, config: TrainerConfig, prepare: Callable[[Settings], Prepared]
) -> int:
    """One training run; the exit status is 130 if it was stopped before its end."""
    with process_group(config.device) as device:
        folder = run_folder(settings, job)
        made = prepare(settings)
        if rank() == 0:
            folder.check(made.settings, resume=settings["resume"], volatile=VOLATILE)
            folder.open(made.settings, resume=settings["resume"], volatile=VOLATILE)
            print(f"{made.summary}, run folder {folder.path}", flush=True)
        barrier()
        result = fit(
            made.task, dataset=made.dataset, collate=made.collate, heldout=made.heldout, run=folder, config=config,
            device=device,
        )  # fmt: skip
    if rank() == 0 and result.interrupted:
        print(how_to_go_on(result, folder, job))
    return 130 if result.interrupted else 0


def how_to_go_on(result: FitResult, folder: RunFolder, job: str) -> str:
    """The command that continues a stopped run."""
    others = [a for a in sys.argv[1:] if not a.startswith(("run.dir=", "resume="))]
    words = shlex.join([f"run.dir={folder.path}", "resume=true", *others])
    return (
        f"stopped after step {result.step} of {result.max_steps}; continue (under the same launcher) with\n"
        f"  python scripts/{job}.py {words}"
    )


def finish(run: Callable[[Settings], int], config: DictConfig, *, missing: str = "name it") -> None:
    """Run and exit; errors that a user can mend are shown without a traceback.

    Args:
        missing: what to do about a setting without a default.
    """
    try:
        status = run(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))  # type: ignore[arg-type]
    except MissingMandatoryValue as error:
        sys.exit(f"error: {str(error).splitlines()[0]}: {missing}")
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nstopped; start again with the same settings to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(status)
