"""Time the parts of a pretraining run and write docs/results/benchmark.json with a table made from it.

python scripts/benchmark_pipeline.py [--real DIR]

Each part runs in a process of its own, so that its peak memory is its own. The full-size step uses real KITTI scans
(DIR/training/velodyne/*.bin, full turns) where --real names them, else simulated ones.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from settings import recipe
from torch.utils.data import DataLoader

from envs.driving.kitti_export import DatasetSpec, build_dataset
from lidar.augment import Augmentation
from lidar.datasets import KittiObject, LidarFrames, collate
from worldmodel.training.checkpoints import write_json
from worldmodel.training.order import BatchOrder
from worldmodel.training.provenance import provenance

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def settings(*overrides: str) -> dict[str, Any]:
    """The composed settings of the pretraining command."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose("pretrain_lidar", overrides=list(overrides))
    return OmegaConf.to_container(composed, resolve=True)  # type: ignore[return-value]


def frames(root: Path, count: int, *, azimuth: tuple[float, float] | None) -> KittiObject:
    """Simulated scans, made once in `root`."""
    spec = DatasetSpec(azimuth_range=azimuth, train=count, probe=0, val=0)
    return KittiObject(root=build_dataset(root, spec=spec, workers=2, progress=False), split="train")


def simulator(root: Path, real: Path | None) -> dict[str, float]:
    """Frames per second of simulation, files written, pool start included; sector of the default and full turns."""
    figures = {}
    for name, azimuth, count in (("sector", (-45.0, 45.0), 240), ("turn", None, 80)):
        for workers in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                spec = DatasetSpec(azimuth_range=azimuth, train=count, probe=0, val=0, seed=7)
                # A first small set starts the pool's modules from the page cache, as a second run would.
                build_dataset(
                    Path(folder), spec=DatasetSpec(train=2, probe=0, val=0), workers=workers, progress=False
                )
                began = time.perf_counter()
                build_dataset(Path(folder), spec=spec, workers=workers, progress=False)
                figures[f"{name}, {workers} processes, frames/s"] = count / (time.perf_counter() - began)
    return figures


def loading(root: Path, real: Path | None) -> dict[str, float]:
    """Frames per second read, validated, augmented, cropped, shuffled and batched."""
    figures = {}
    sources = {"sector": frames(root, 64, azimuth=(-45.0, 45.0)), "full turn": frames(root, 16, azimuth=None)}
    for name, source in sources.items():
        dataset = LidarFrames(
            source=source, refs=source.frames, point_range=(0, -40, -3, 70.4, 40, 1), augment=Augmentation()
        )
        for workers in (0, 2):
            order = BatchOrder(
                size=len(dataset),
                micro_batch=4,
                accumulate=1,
                rank=0,
                world=1,
                seed=0,
                start_step=0,
                max_steps=60,
            )
            loader = DataLoader(dataset, batch_sampler=order, collate_fn=collate, num_workers=workers)  # type: ignore[arg-type]
            batches = iter(loader)
            for _ in range(10):
                next(batches)
            began = time.perf_counter()
            count = sum(batch.batch_size for batch in batches)
            figures[f"{name}, {workers} workers, frames/s"] = count / (time.perf_counter() - began)
    return figures


def steps(config: dict[str, Any], source: KittiObject, *, batch: int, count: int) -> dict[str, float]:
    """Seconds and frames per second of whole optimiser steps, data at hand."""
    task = recipe(config)
    point_range = task.voxelizer.grid.point_range
    dataset = LidarFrames(
        source=source,
        refs=source.frames,
        point_range=point_range,
        augment=Augmentation(rotation=0.0, scaling=(1, 1)),
    )
    batches = [
        collate([dataset[((i * batch + j) % len(dataset), j)] for j in range(batch)])
        for i in range(min(count, 4))
    ]
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-4)
    seconds = []
    for step in range(count):
        began = time.perf_counter()
        loss = task.training_step(batches[step % len(batches)], step)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        task.after_step(step, count)
        seconds.append(time.perf_counter() - began)
        if not torch.isfinite(loss.total):
            raise RuntimeError("the loss is not finite")
    median = statistics.median(seconds[1:] or seconds)
    voxels = task.voxelizer(batches[0])
    return {
        "median step, s": median,
        "frames/s": batch / median,
        "points per frame": len(batches[0].points) / batch,
        "voxels per frame": len(voxels.features) / batch,
        "loss after the last step": float(loss.total.detach()),
    }


def small_step(root: Path, real: Path | None) -> dict[str, float]:
    """Training steps of the small default, batch 4."""
    return steps(settings(), frames(root, 64, azimuth=(-45.0, 45.0)), batch=4, count=30)


def small_step_bf16(root: Path, real: Path | None) -> dict[str, float]:
    """The same under bf16 autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        return small_step(root, real)


def full_step(root: Path, real: Path | None) -> dict[str, float]:
    """Training steps at KITTI size, 1600 x 1408 x 41 voxels, batch 2, the recipe's cap of 16,000 voxels."""
    source = KittiObject(root=real) if real else frames(root, 4, azimuth=None)
    return steps(settings("model=kitti"), source, batch=2, count=3)


def full_step_uncapped(root: Path, real: Path | None) -> dict[str, float]:
    """The same with every voxel."""
    source = KittiObject(root=real) if real else frames(root, 4, azimuth=None)
    return steps(
        settings("model=kitti", "model.max_voxels=null", "model.max_points_per_voxel=null"),
        source,
        batch=2,
        count=3,
    )


PARTS: dict[str, Callable[[Path, Path | None], dict[str, float]]] = {
    f.__name__: f for f in (simulator, loading, small_step, small_step_bf16, full_step, full_step_uncapped)
}


def in_own_process(part: str, threads: int, root: Path, real: Path | None) -> dict[str, Any]:
    """Run one part and return its figures and its peak memory."""
    command = [sys.executable, __file__, "--part", part, "--threads", str(threads), "--scratch", str(root)]
    if real:
        command += ["--real", str(real)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{part} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line per figure."""
    lines = ["| part | threads | figure | value |", "|---|---|---|---|"]
    for row in rows:
        for name, value in row["figures"].items():
            lines.append(f"| {row['part']} | {row['threads']} | {name} | {value:,.3g} |")
        lines.append(f"| {row['part']} | {row['threads']} | peak memory, MiB | {row['peak_mib']:,.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", type=Path, help="KITTI object root with full scans")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--parts", nargs="*", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--part", choices=sorted(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument(
        "--scratch", type=Path, default=Path("data/benchmark"), help="cache of simulated scans"
    )
    arguments = parser.parse_args()
    if arguments.part:
        torch.set_num_threads(arguments.threads)
        figures = PARTS[arguments.part](arguments.scratch, arguments.real)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            json.dumps(
                {"part": arguments.part, "threads": arguments.threads, "figures": figures, "peak_mib": peak}
            )
        )
        return
    rows = []
    for part in arguments.parts:
        for threads in (1, 2) if part.startswith(("small", "full")) else (1,):
            rows.append(in_own_process(part, threads, arguments.scratch, arguments.real))
            print(table(rows[-1:]), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "benchmark.json"
    write_json(path, {"rows": rows, "scans": "real KITTI" if arguments.real else "simulated", **provenance()})
    path.with_suffix(".md").write_text(table(rows))
    print(path)


if __name__ == "__main__":
    main()
