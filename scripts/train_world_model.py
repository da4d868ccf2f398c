"""Train a world model on episodes of a simulator, without labels, rewards or a decoder.

python scripts/train_world_model.py                                Two Rooms, JEPA dynamics model
python scripts/train_world_model.py episodes=push_t world_model=dynamics_state
python scripts/train_world_model.py world_model=inverse_dynamics world_model.of=DIR      the cheap alternative
python scripts/train_world_model.py run.dir=DIR resume=true        continue where a run stopped

Then: python scripts/evaluate_planner.py --help
"""

import shlex
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from settings import USER_ERRORS
from world_models import source, stretch, task

from worldmodel.distributed import barrier, broadcast_text, process_group, rank
from worldmodel.episodes import EpisodeDataset, collate_episodes, episode_batches
from worldmodel.training import RunFolder, TrainerConfig, fit
from worldmodel.training.schedules import WarmupCosine

# What may differ between the starts of one run: nothing that changes a number.
VOLATILE = (
    "resume",
    "run.",
    *(f"trainer.{key}" for key in ("device", "num_workers", "progress", "wandb", "stop_after")),
    *(f"trainer.{key}" for key in ("keep_checkpoints", "checkpoint_every", "eval_every")),
)
HELDOUT_SEED = 1


def trainer_config(settings: dict) -> TrainerConfig:
    """The `trainer` group."""
    trainer = dict(settings["trainer"])
    schedule = WarmupCosine(**{key: trainer.pop(key) for key in ("max_lr", "warmup", "end_lr")})
    del trainer["heldout_episodes"]
    return TrainerConfig(schedule=schedule, seed=settings["seed"], **trainer)


def run(settings: dict) -> int:
    """One training run; the exit status is 130 if it was stopped before its end."""
    config = trainer_config(settings)
    with process_group(config.device) as device:
        located = RunFolder.locate(
            settings["run"]["dir"], job="train_world_model", root=Path("runs"), resume=settings["resume"]
        )
        folder = RunFolder(Path(broadcast_text(str(located.path))))
        episodes = source(settings["episodes"], "train")
        model = task(settings, episodes)
        if rank() == 0:
            folder.check(settings, resume=settings["resume"], volatile=VOLATILE)
            folder.open(settings, resume=settings["resume"], volatile=VOLATILE)
            print(f"{len(episodes)} training episodes, run folder {folder.path}", flush=True)
        barrier()
        steps, held = stretch(settings), settings["trainer"]["heldout_episodes"]
        heldout = episode_batches(
            source({**settings["episodes"], "episodes": held}, "selection"),
            steps=steps, count=held, batch_size=128, seed=HELDOUT_SEED,
        )  # fmt: skip
        result = fit(
            model, dataset=EpisodeDataset(episodes, steps=steps), collate=collate_episodes, heldout=heldout,
            run=folder, config=config, device=device,
        )  # fmt: skip
    if rank() == 0 and result.interrupted:
        others = [a for a in sys.argv[1:] if not a.startswith(("run.dir=", "resume="))]
        words = shlex.join([f"run.dir={folder.path}", "resume=true", *others])
        print(f"stopped after step {result.step} of {result.max_steps}; continue with\n"
              f"  python scripts/train_world_model.py {words}")  # fmt: skip
    return 130 if result.interrupted else 0


@hydra.main(version_base="1.3", config_path="../configs", config_name="train_world_model")
def main(config: DictConfig) -> None:
    try:
        status = run(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))  # type: ignore[arg-type]
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nstopped; start again with the same settings to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(status)


if __name__ == "__main__":
    main()
