"""Pretrain a LiDAR encoder with AD-L-JEPA, or a baseline, and write a report.

python scripts/pretrain_lidar.py                                   simulated streets, minutes on two cores
python scripts/pretrain_lidar.py data=kitti data.root=DIR          your data (also: folder, kitti_sequences, ...)
python scripts/pretrain_lidar.py objective=occupancy               masked occupancy prediction (also: sigreg)
python scripts/pretrain_lidar.py run.dir=DIR resume=true           continue where a run stopped
"""

import hydra
import training_command
from omegaconf import DictConfig
from pretraining_data import data_checks, pretraining_data
from settings import recipe, trainer_settings

from lidar.experiment import ProbeConfig, checked, heldout_batches, train
from lidar.report import finish
from worldmodel.distributed import barrier, process_group, rank

VOLATILE = ("probe.", "data.root", "data.workers", *training_command.VOLATILE)


def run(settings: dict) -> int:
    """One pretraining run; the exit status is 130 if it was stopped before its end."""
    trainer, heldout_frames = trainer_settings(settings)
    with process_group(trainer.device) as device:
        main_rank = rank() == 0
        folder = training_command.run_folder(settings, "pretrain_lidar")
        if main_rank:
            folder.check(settings, resume=settings["resume"], volatile=VOLATILE)
            if settings["resume"] and not folder.config.is_file():
                print(f"nothing to resume in {folder.path}: this is a new run", flush=True)
        task = recipe(settings)
        point_range = task.voxelizer.grid.point_range
        checks = data_checks(settings["data"])
        talk = trainer.progress and main_rank
        data = checked(pretraining_data(settings["data"], progress=talk), checks, point_range, progress=talk)
        if main_rank:
            folder.open(settings, resume=settings["resume"], volatile=VOLATILE)
            print(
                "\n".join([*data.notes, f"{len(data.train)} training frames, run folder {folder.path}"]),
                flush=True,
            )
        barrier()
        heldout = heldout_batches(
            data, point_range, frames=heldout_frames, batch_size=4, on_error=checks.on_error
        )
        result = train(
            task, data=data, checks=checks, heldout=heldout, run=folder, config=trainer, device=device
        )
    if not main_rank:
        return 0
    if result.interrupted:
        print(training_command.how_to_go_on(result, folder, "pretrain_lidar"))
        return 130
    page = finish(
        task, run=folder, data=data, heldout=heldout, probe_config=ProbeConfig(**settings["probe"]),
        seed=trainer.seed, device=device,
    )  # fmt: skip
    print(f"report: {page}\nencoder: python scripts/export_encoder.py {folder.path} encoder.safetensors")
    return 0


@hydra.main(version_base="1.3", config_path="../configs", config_name="pretrain_lidar")
def main(config: DictConfig) -> None:
    training_command.finish(run, config, missing="add data.root=DIR, the folder of your frames")


if __name__ == "__main__":
    main()
