"""Train a 3-D detector, from scratch or on a pretrained encoder.

python scripts/train_detector.py                                               SECOND on simulated streets, minutes
python scripts/train_detector.py pretrained.encoder=PRETRAINING_RUN detection_data.fraction=0.05
python scripts/train_detector.py detector=center_point_small pretrained.encoder=FILE.pth pretrained.mode=frozen
python scripts/train_detector.py recipe=second_kitti detection_data.root=DIR   full size
python scripts/train_detector.py detection_data=folder detection_data.root=DIR detection_data.labels=FILE.jsonl
python scripts/train_detector.py run.dir=DIR resume=true ...                   continue where a run stopped

Then: python scripts/evaluate_detector.py --help
"""

from pathlib import Path

import hydra
from detection import Settings, detector, heldout_frames, training_frames
from omegaconf import DictConfig
from runs import locate
from settings import trainer_settings
from training_command import Prepared, finish, train

from lidar.detection.checkpoints import load_detector, load_pretrained_encoder
from lidar.detection.fine_tuning import fine_tune, recalibrate_encoder
from lidar.detection.labelled import LabelledFrames, collate
from lidar.detection.voxel_detector import VoxelDetector
from worldmodel.distributed import rank
from worldmodel.training.order import sample_key

BATCH = 4  # of held-out frames


def pretrained(made: VoxelDetector, settings: Settings, frames: LabelledFrames) -> None:
    """Weights to start from, reported, and how the encoder is trained.

    Raises:
        CheckpointError: if any tensor does not fit; nothing is loaded then.
    """
    given = settings["pretrained"]
    if given["encoder"] and given["detector"]:
        raise ValueError("give pretrained.encoder or pretrained.detector, not both")
    for what, load in (("encoder", load_pretrained_encoder), ("detector", load_detector)):
        if given[what]:
            report = load(made, weights(Path(given[what]).expanduser()))
            if rank() == 0:
                print(report.summary(), flush=True)
    fine_tune(made, given["mode"], decay=given["decay"])
    if given["mode"] == "frozen":
        if not (given["encoder"] or given["detector"]):
            raise ValueError("pretrained.mode=frozen would keep random weights: give pretrained.encoder")
        count = min(given["calibration_frames"], len(frames))
        samples = [frames[sample_key(i, size=len(frames), seed=settings["seed"])] for i in range(count)]
        recalibrate_encoder(made, [collate([sample]).points for sample in samples])


def weights(path: Path) -> Path:
    """The file of weights that a path names: itself, or that of a run's newest checkpoint."""
    return path if path.is_file() else locate(path)[1] / "model.safetensors"


def prepare(settings: Settings) -> Prepared:
    """Detector and data."""
    made = detector(settings)
    frames = training_frames(settings, made)
    pretrained(made, settings, frames)
    watched = heldout_frames(settings, made, count=settings["trainer"]["heldout_frames"])
    samples = [watched[(i, 0)] for i in range(len(watched))]
    return Prepared(
        task=made,
        dataset=frames,
        collate=collate,
        heldout=[collate(samples[first : first + BATCH]) for first in range(0, len(samples), BATCH)],
        settings=settings,
        summary=f"{settings['detector']['name']}, {sum(p.numel() for p in made.parameters()):,} parameters, "
        f"{len(set(frames.refs))} labelled frames",
    )


def run(settings: Settings) -> int:
    """One training run; the exit status is 130 if it was stopped before its end."""
    config, _ = trainer_settings(settings)
    return train(settings, job="train_detector", config=config, prepare=prepare)


@hydra.main(version_base="1.3", config_path="../configs", config_name="train_detector")
def main(config: DictConfig) -> None:
    finish(run, config, missing="add detection_data.root=DIR, the folder of your frames")


if __name__ == "__main__":
    main()
