"""Train a world model on episodes of a simulator, without labels, rewards or a decoder.

python scripts/train_world_model.py                                Two Rooms, JEPA dynamics model
python scripts/train_world_model.py episodes=push_t world_model=dynamics_state
python scripts/train_world_model.py world_model=inverse_dynamics world_model.of=DIR      the cheap alternative
python scripts/train_world_model.py run.dir=DIR resume=true        continue where a run stopped

Then: python scripts/evaluate_planner.py --help
"""

import hydra
from omegaconf import DictConfig
from training_command import Prepared, Settings, finish, train, trainer_config
from world_models import source, stretch, task

from worldmodel.episodes import EpisodeDataset, collate_episodes, episode_batches

HELDOUT_SEED = 1


def prepare(settings: Settings) -> Prepared:
    """Episodes and model."""
    episodes = source(settings["episodes"], "train")
    steps, held = stretch(settings), settings["trainer"]["heldout_episodes"]
    heldout = episode_batches(
        source({**settings["episodes"], "episodes": held}, "selection"),
        steps=steps, count=held, batch_size=128, seed=HELDOUT_SEED,
    )  # fmt: skip
    return Prepared(
        task=task(settings, episodes),
        dataset=EpisodeDataset(episodes, steps=steps),
        collate=collate_episodes,
        heldout=heldout,
        settings=settings,
        summary=f"{len(episodes)} training episodes",
    )


def run(settings: Settings) -> int:
    """One training run; the exit status is 130 if it was stopped before its end."""
    config = trainer_config(settings, heldout="heldout_episodes")
    return train(settings, job="train_world_model", config=config, prepare=prepare)


@hydra.main(version_base="1.3", config_path="../configs", config_name="train_world_model")
def main(config: DictConfig) -> None:
    finish(run, config, missing="world_model.of is a run folder of a trained world model")


if __name__ == "__main__":
    main()
