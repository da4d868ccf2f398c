"""RankMe of the untrained small encoder on simulated and on real scans: the yardstick the trained one is held against.

python scripts/measure_random_encoder.py --real KITTI_OBJECT_DIR
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pretraining_data import pretraining_data
from settings import recipe

from lidar.datasets import KittiObject
from lidar.experiment import PretrainingData, heldout_batches
from lidar.pretraining import encoder_health, occupied_features
from worldmodel.monitors import EmbeddingMonitor
from worldmodel.nn.batch_norm import recalibrated
from worldmodel.objectives import unit
from worldmodel.training.checkpoints import write_json
from worldmodel.training.provenance import provenance

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def measure(settings: dict[str, Any], data: PretrainingData, seed: int) -> dict[str, float]:
    """Rank and spread of one random encoder, BatchNorm recalibrated on the frames, and as initialised."""
    task = recipe({**settings, "seed": seed})
    point_range = task.voxelizer.grid.point_range
    batches = heldout_batches(data, point_range, frames=32, batch_size=4, on_error="raise")
    voxels = [task.voxelizer(b) for b in batches]
    health = encoder_health(task.model.encoder, voxels)
    frozen = recalibrated(task.model.encoder, [], lambda module, v: module(v))
    monitor = EmbeddingMonitor(task.model.encoder.bev_channels)
    for v in voxels:
        monitor.update(unit(occupied_features(frozen, v)[0]))  # type: ignore[arg-type]
    dimensions = task.model.encoder.bev_channels
    return {
        "dimensions": dimensions,
        "rankme": health.rankme,
        "largest possible ratio": dimensions / health.rankme,
        "std_over_gamma": health.std * dimensions**0.5,
        "mean_cosine": health.mean_cosine,
        "rankme, BatchNorm not recalibrated": monitor.compute().rankme,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", type=Path, help="KITTI object root with full scans")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        settings: dict[str, Any] = OmegaConf.to_container(compose("pretrain_lidar"), resolve=True)  # type: ignore[assignment]
    sources = {"simulated": pretraining_data(settings["data"], progress=True)}
    if arguments.real:
        real = KittiObject(root=arguments.real)
        sources["real KITTI"] = PretrainingData(source=real, train=(), heldout=real.frames)
    rows = [
        {"frames": name, "seed": seed, **measure(settings, data, seed)}
        for name, data in sources.items()
        for seed in (0, 1, 2)
    ]
    path = arguments.out / "random_encoder.json"
    write_json(path, {"rows": rows, **provenance()})
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        lines.append(
            "| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |"
        )
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
