"""Train an imitation policy on recorded demonstrations.

python scripts/train_policy.py demonstrations.root=data/metaworld                    ACT-JEPA, small
python scripts/train_policy.py demonstrations.root=data/metaworld policy=act         or act_cvae, raw_state, bc, flow
python scripts/train_policy.py demonstrations.root=DIR size=paper observe.image=true trainer.max_steps=4000
python scripts/train_policy.py demonstrations.root=DIR observe.image=true backbone.run=WORLD_MODEL_RUN
python scripts/train_policy.py demonstrations.root=DRIVES observe.points=true backbone.run=PRETRAINING_RUN chunk=10
python scripts/train_policy.py demonstrations.root=DIR policy=act start.run=POLICY_RUN   second of two stages
python scripts/train_policy.py run.dir=DIR resume=true ...                           continue where a run stopped

Then: python scripts/evaluate_policy.py --help
"""

import hydra
from imitation import datasets, demonstrations, described, interface, measured_statistics, policy
from omegaconf import DictConfig
from pretrained import completed, load_pretrained
from training_command import Prepared, Settings, finish, train, trainer_config

from policies.imitation.chunks import chunk_batches, collate_chunks
from worldmodel.training.averaging import AveragedTask

HELDOUT_SEED = 1


def prepare(settings: Settings) -> Prepared:
    """Demonstrations and policy."""
    settings = completed(settings)
    shown = demonstrations(settings)
    made_for = interface(settings, shown)
    training, heldout = datasets(settings, shown)
    held = settings["trainer"]["heldout_stretches"]
    # Sweeps fill the memory as in training.
    batch_size = settings["trainer"]["batch_size"] if made_for.points else 128
    made = policy(settings, made_for, measured_statistics(shown))
    load_pretrained(made, settings, shown.training)
    decay = settings["weight_average"]
    return Prepared(
        task=made if decay is None else AveragedTask(made, decay=decay),
        dataset=training,
        collate=collate_chunks,
        heldout=chunk_batches(heldout, batch_size=batch_size, count=held, seed=HELDOUT_SEED),
        settings=described(made_for, shown, settings),
        summary=f"{len(shown.training)} demonstrations of {len(shown.tasks)} tasks, {len(training)} steps; "
        f"{len(shown.heldout)} held out; failures left out: {shown.failures_left_out}",
    )


def run(settings: Settings) -> int:
    """One training run; the exit status is 130 if it was stopped before its end."""
    config = trainer_config(settings, heldout="heldout_stretches")
    return train(settings, job="train_policy", config=config, prepare=prepare)


@hydra.main(version_base="1.3", config_path="../configs", config_name="train_policy")
def main(config: DictConfig) -> None:
    finish(run, config, missing="add demonstrations.root=DIR, a data set of record_demonstrations.py")


if __name__ == "__main__":
    main()
