"""Train an imitation policy on recorded demonstrations.

python scripts/train_policy.py demonstrations.root=data/metaworld                    ACT-JEPA, small
python scripts/train_policy.py demonstrations.root=data/metaworld policy=act         or act_cvae, raw_state, bc, flow
python scripts/train_policy.py demonstrations.root=DIR size=paper observe.image=true trainer.max_steps=4000
python scripts/train_policy.py run.dir=DIR resume=true ...                           continue where a run stopped

Then: python scripts/evaluate_policy.py --help
"""

import shlex
import sys
from pathlib import Path

import hydra
from imitation import datasets, demonstrations, described, interface, measured_statistics, policy
from omegaconf import DictConfig, OmegaConf
from settings import USER_ERRORS

from policies.imitation.chunks import chunk_batches, collate_chunks
from worldmodel.distributed import barrier, broadcast_text, process_group, rank
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
    steps = max(1, round(trainer.pop("warmup") * trainer["max_steps"]))
    schedule = WarmupCosine(warmup=steps, **{key: trainer.pop(key) for key in ("max_lr", "end_lr")})
    del trainer["heldout_stretches"]
    return TrainerConfig(schedule=schedule, seed=settings["seed"], **trainer)


def run(settings: dict) -> int:
    """One training run; the exit status is 130 if it was stopped before its end."""
    config = trainer_config(settings)
    with process_group(config.device) as device:
        located = RunFolder.locate(
            settings["run"]["dir"], job="train_policy", root=Path("runs"), resume=settings["resume"]
        )
        folder = RunFolder(Path(broadcast_text(str(located.path))))
        shown = demonstrations(settings)
        made_for = interface(settings, shown)
        settings = {**settings, "interface": described(made_for)}
        training, heldout = datasets(settings, shown)
        task = policy(settings, made_for, measured_statistics(shown))
        if rank() == 0:
            folder.check(settings, resume=settings["resume"], volatile=VOLATILE)
            folder.open(settings, resume=settings["resume"], volatile=VOLATILE)
            print(
                f"{len(shown.training)} demonstrations of {len(shown.tasks)} tasks, {len(training)} steps; "
                f"{len(shown.heldout)} held out; run folder {folder.path}",
                flush=True,
            )
        barrier()
        held = settings["trainer"]["heldout_stretches"]
        result = fit(
            task, dataset=training, collate=collate_chunks,
            heldout=chunk_batches(heldout, batch_size=128, count=held, seed=HELDOUT_SEED),
            run=folder, config=config, device=device,
        )  # fmt: skip
    if rank() == 0 and result.interrupted:
        others = [a for a in sys.argv[1:] if not a.startswith(("run.dir=", "resume="))]
        words = shlex.join([f"run.dir={folder.path}", "resume=true", *others])
        print(f"stopped after step {result.step} of {result.max_steps}; continue with\n"
              f"  python scripts/train_policy.py {words}")  # fmt: skip
    return 130 if result.interrupted else 0


@hydra.main(version_base="1.3", config_path="../configs", config_name="train_policy")
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
