"""Export the encoder of a pretraining run for OpenPCDet, mmdetection3d or this project.

python scripts/export_encoder.py runs/pretrain_lidar/NAME encoder.safetensors
python scripts/export_encoder.py runs/pretrain_lidar/NAME encoder.pth --recalibrate --frames 64
python scripts/export_encoder.py runs/pretrain_lidar/NAME/checkpoints/step_00000600 encoder.pth --framework mmdet3d

A .pth file is for the framework's own loader (OpenPCDet: tools/train.py --pretrained_model encoder.pth). What was
exported, from which run, and the grid it needs stand beside it in OUT.json.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from pretraining_data import data_checks, pretraining_data
from runs import locate, run_settings
from settings import USER_ERRORS, encoder_config

from lidar.batch import PointCloudBatch, VoxelBatch
from lidar.encoder import SparseEncoder
from lidar.experiment import heldout_batches
from lidar.interop import CONVENTIONS, SUFFIXES, export_encoder, load_encoder
from lidar.recipe import EncoderConfig
from worldmodel.nn.batch_norm import recalibrated
from worldmodel.training import RunFolder
from worldmodel.training.checkpoints import load_checkpoint, write_json
from worldmodel.training.provenance import provenance

VOXEL_BACKBONE_8X = (16, 32, 64, 64, 128)


def full_clouds(
    settings: dict[str, Any], source: str, *, frames: int, config: EncoderConfig
) -> list[VoxelBatch]:
    """Training frames, evenly spaced, whole: no mask, no augmentation, no cap on voxels.

    Args:
        settings: of the run.
        source: "" for the run's own data, a run folder for that run's, else a folder in place of data.root.
        frames: how many; all of them if there are fewer.
        config: the run's grid.
    """
    data_settings = settings["data"]
    if source and RunFolder(Path(source)).config.is_file():
        data_settings = run_settings(RunFolder(Path(source)))["data"]
    elif source and data_settings["name"] == "simulated":
        raise ValueError(
            "the run learnt from simulated frames: give --recalibrate without a folder to take those, or a run "
            "folder to take that run's data"
        )
    elif source:
        data_settings = {**data_settings, "root": source}
    data = pretraining_data(data_settings, progress=True)
    count = min(frames, len(data.train))
    chosen = tuple(data.train[i * len(data.train) // count] for i in range(count))
    batches = heldout_batches(
        replace(data, heldout=chosen),
        config.point_range,
        frames=count,
        batch_size=4,
        on_error=data_checks(data_settings).on_error,
    )
    voxelizer = replace(config, max_voxels=None).voxelizer
    return [voxelizer(batch) for batch in batches]


def random_cloud(config: EncoderConfig, *, points: int = 4000) -> VoxelBatch:
    """Points all over the grid, to compare two encoders on where no data are at hand."""
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor(config.point_range[:3]), torch.tensor(config.point_range[3:])
    values = torch.rand(points, config.in_channels, generator=generator)
    values[:, :3] = low + values[:, :3] * (high - low)
    cloud = PointCloudBatch(
        points=values,
        batch_index=torch.zeros(points, dtype=torch.int64),
        batch_size=1,
        frame_ids=("random",),
        seeds=(0,),
    )
    return config.voxelizer(cloud)


@torch.no_grad()
def verify(
    encoder: SparseEncoder, path: Path, *, config: EncoderConfig, voxels: VoxelBatch, prefix: str
) -> str:
    """Read a file back into a fresh encoder and compare features; the load report.

    Raises:
        RuntimeError: if one feature differs.
    """
    copy = config.encoder(synced=False)
    report = load_encoder(copy, path, prefix=prefix)
    if not torch.equal(encoder.eval()(voxels), copy.eval()(voxels)):
        raise RuntimeError(
            f"{path}: read back, the encoder gives other features than the one that was exported"
        )
    return report.summary()


def export(arguments: argparse.Namespace) -> None:
    """The whole job; see the module's text."""
    run, checkpoint_path = locate(arguments.run)
    settings = run_settings(run)
    # CPU and plain torch, whatever the run used: the weights are the same and features repeat bit for bit.
    config = replace(encoder_config(settings), backend="torch")
    checkpoint = load_checkpoint(checkpoint_path)
    branch = "model.target.encoder." if arguments.target else "model.encoder."
    if arguments.target and not any(name.startswith(branch) for name in checkpoint.model):
        raise ValueError(f"{checkpoint_path} has no EMA target, as with SIGReg: leave out --target")
    encoder = config.encoder(synced=False)
    taken = load_encoder(encoder, checkpoint_path / "model.safetensors", prefix=branch)
    print(f"{checkpoint_path}: {taken.summary()}")
    steps = checkpoint.state["max_steps"]
    if checkpoint.step < steps:
        print(f"note: step {checkpoint.step} of {steps}, the run is not at its end")
    if config.widths != VOXEL_BACKBONE_8X:
        print(f"note: widths {config.widths} are not those of VoxelBackBone8x {VOXEL_BACKBONE_8X}; "
              f"OpenPCDet and mmdetection3d cannot build this encoder, lidar.interop.load_encoder can")  # fmt: skip

    clouds: list[VoxelBatch] = []
    if arguments.recalibrate is not None:
        clouds = full_clouds(settings, arguments.recalibrate, frames=arguments.frames, config=config)
        encoder = recalibrated(encoder, clouds, lambda module, voxels: module(voxels))  # type: ignore[assignment]
    frames = sum(voxels.batch_size for voxels in clouds)

    convention = CONVENTIONS[arguments.framework]
    layout = arguments.layout or convention.layout
    prefix = convention.prefix if arguments.prefix is None else arguments.prefix
    about = {
        "point_features": "mean of x, y, z in metres (sensor frame) and intensity in 0..1 over a voxel's points",
        "run": run.path.resolve().name,
        "step": checkpoint.step,
        "max_steps": steps,
        "branch": "target" if arguments.target else "context",
        "batch_norm_recalibrated_on": frames,
        "framework": arguments.framework,
        "prefix": prefix,
        "layout": layout,
        "encoder": asdict(encoder_config(settings)),
        "sparse_shape_zyx": encoder.input_shape,
        "stride": encoder.stride,
        "bev": {"channels": encoder.bev_channels, "shape_yx": encoder.bev_shape},
        "parameters": sum(p.numel() for p in encoder.parameters()),
    }
    count = export_encoder(
        encoder,
        arguments.out,
        framework=arguments.framework,
        prefix=prefix,
        layout=layout,
        metadata={"about": json.dumps(about)},
    )
    voxels = clouds[0] if clouds else random_cloud(config)
    summary = verify(encoder, arguments.out, config=config, voxels=voxels, prefix=prefix)
    sha256 = hashlib.sha256(arguments.out.read_bytes()).hexdigest()
    beside = arguments.out.with_name(f"{arguments.out.name}.json")
    write_json(beside, {**about, "tensors": count, "sha256": sha256, "provenance": provenance()})
    print(f"{arguments.out}: {summary}\nfeatures equal bit for bit after reading back "
          f"({len(voxels.coordinates)} voxels{'' if clouds else ' at random'}); described in {beside}")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="run folder (its newest checkpoint) or one checkpoint"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help=f"file to write: {' or '.join(SUFFIXES)}")
    parser.add_argument(
        "--recalibrate",
        nargs="?",
        const="",
        metavar="DIR",
        help="measure BatchNorm's running statistics anew on whole training clouds: the run's own, those under DIR "
        "in place of data.root, or, if DIR is a run folder, that run's. In training they saw masked clouds only",
    )
    parser.add_argument("--frames", type=int, default=32, help="clouds for --recalibrate (default 32)")
    parser.add_argument(
        "--framework", choices=tuple(CONVENTIONS), default="openpcdet", help="whose tensor names"
    )
    parser.add_argument("--prefix", help="in place of the framework's, e.g. pts_middle_encoder.")
    parser.add_argument(
        "--layout", choices=("spconv2", "spconv1"), help="default: what the framework's loader takes"
    )
    parser.add_argument(
        "--target", action="store_true", help="the EMA target encoder (after short runs it is worse)"
    )
    arguments = parser.parse_args(argv)
    if arguments.frames < 1:
        parser.error(f"--frames must be 1 or more, got {arguments.frames}")
    if arguments.out.suffix not in SUFFIXES:
        parser.error(f"OUT must end in {' or '.join(SUFFIXES)}, got {arguments.out}")
    try:
        export(arguments)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
