"""Which modes of AD-L-JEPA's prediction problem did a run learn first: those of high covariance, or of high regression?

python scripts/pretrain_lidar.py trainer.checkpoint_every=10 trainer.keep_checkpoints=1000
python scripts/mode_diagnostic.py runs/pretrain_lidar/NAME

The modes come from cell descriptors (voxels by height, intensity) of masked cells and of the visible cells around them;
every checkpoint's context features of the same cells tell how much of each mode it holds. The theory is for deep linear
networks: here it is a lens, not a law. docs/objectives.md tells how to read it.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from pretraining_data import pretraining_data
from runs import load_task, run_settings
from settings import USER_ERRORS
from tqdm import tqdm

from lidar.ad_l_jepa import split_voxels
from lidar.batch import VoxelBatch
from lidar.encoder import SparseEncoder
from lidar.experiment import heldout_batches
from lidar.modes import Neighbourhood, cell_descriptors
from lidar.pretraining import LidarPretraining, recalibrated_encoder
from worldmodel.theory import learning_order, linear_map, mode_energy, mode_report, modes
from worldmodel.training import RunFolder
from worldmodel.training.checkpoints import list_checkpoints, write_json
from worldmodel.training.provenance import provenance


class ModeProblem:
    """Context and target descriptors of held-out frames, the same for every checkpoint.

    Args:
        task: gives grid, voxelisation and masks; its weights do not matter.
        batches: held-out frames.
        window: side of the neighbourhood in cells.
    """

    def __init__(self, task: LidarPretraining, batches: list[Any], *, window: int) -> None:
        encoder = task.model.encoder
        self.visible: list[VoxelBatch] = []
        self.near: list[Neighbourhood] = []
        context, target = [], []
        for batch in batches:
            voxels = task.voxelizer.every_voxel(batch)
            masks = task.model.draw_masks(voxels, batch.seeds)
            near = Neighbourhood(masks=masks, window=window)
            descriptors = cell_descriptors(voxels, encoder)
            context.append(near.pooled(descriptors))
            target.append(near.own(descriptors))
            self.visible.append(split_voxels(voxels, masks, stride=encoder.stride)[0])
            self.near.append(near)
        x, y = torch.cat(context).double(), torch.cat(target).double()
        # Height levels that are always empty carry nothing; the others are brought to one scale.
        scale = y.std(0)
        kept = (scale > 1e-3 * scale.max()) & (x.std(0) > 0)
        self.x, self.y = x[:, kept] / scale[kept], y[:, kept] / scale[kept]

    @torch.no_grad()
    def features(self, encoder: SparseEncoder) -> torch.Tensor:
        """Context features of the visible cells around each masked cell, pooled as the descriptors were: [N, C]."""
        frozen = recalibrated_encoder(encoder, self.visible)
        return torch.cat(
            [near.pooled(frozen(voxels)) for near, voxels in zip(self.near, self.visible, strict=True)]
        )


def diagnose(path: Path, *, frames: int, window: int) -> dict[str, Any]:
    """Modes, their energies over the checkpoints of a run, and what the order of learning goes with."""
    run = RunFolder(path)
    settings = run_settings(run)
    checkpoints = list_checkpoints(run.checkpoints)
    if len(checkpoints) < 5:
        raise ValueError(
            f"{path} keeps {len(checkpoints)} checkpoints: the order of learning needs many. Train with "
            "trainer.checkpoint_every=10 trainer.keep_checkpoints=1000"
        )
    task = load_task(settings, checkpoints[0])
    data = pretraining_data(settings["data"], progress=True)
    point_range = task.voxelizer.grid.point_range
    batches = heldout_batches(data, point_range, frames=frames, batch_size=4, on_error="raise")
    if not batches:
        raise ValueError(f"{path}: the run held no frames out, there are no pairs to look at")
    problem = ModeProblem(task, batches, window=window)
    found = modes(problem.x, problem.y)
    steps, energies, linear = [], [], []
    for checkpoint in tqdm(checkpoints, desc="checkpoints", unit="checkpoint"):
        features = problem.features(load_task(settings, checkpoint).model.encoder).double()
        # A common growth of all features is no learning of a mode.
        features = features / features.std(0).square().sum().sqrt()
        energies.append(mode_energy(features, problem.x, found))
        linear.append(linear_map(features, problem.x).r2)
        steps.append(int(checkpoint.name.removeprefix("step_")))
    order = learning_order(energies, steps)
    summary = mode_report(order=order, modes=found)
    return {
        "run": path.name,
        "objective": settings["objective"]["name"],
        "cells": len(problem.x),
        "covariance": found.covariance.tolist(),
        "regression": found.regression.tolist(),
        "asymmetry": found.asymmetry,
        "steps": steps,
        "energies": np.array(energies).tolist(),
        "linear_r2": linear,
        "order": [None if np.isnan(v) else float(v) for v in order],
        "with_regression": asdict(summary.with_regression),
        "with_covariance": asdict(summary.with_covariance),
        "covariance_with_regression": asdict(summary.covariance_with_regression),
        "compared": summary.compared,
        "unmoved": summary.unmoved,
    }


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"{result['objective']}: {result['cells']} masked cells, {len(result['steps'])} checkpoints. Share of the "
        f"features that is linear in the descriptors: {result['linear_r2'][0]:.2f} untrained, "
        f"{result['linear_r2'][-1]:.2f} trained. Share of Sigma_yx that is not symmetric and was dropped: "
        f"{result['asymmetry']:.2f}. {result['compared']} of {len(result['order'])} modes changed by 5 % or more.",
        "",
        "| rank correlation | value | 95 % interval | p |",
        "|---|---|---|---|",
    ]
    for key, name in (
        ("with_covariance", "half-learnt step with lambda (MAE-like if negative)"),
        ("with_regression", "half-learnt step with rho (JEPA-like if negative)"),
        ("covariance_with_regression", "lambda with rho (near 1: the data cannot tell)"),
    ):
        r = result[key]
        lines.append(
            f"| {name} | {r['value']:+.2f} | {r['low']:+.2f} .. {r['high']:+.2f} | {r['p_value']:.3f} |"
        )
    lines += [
        "",
        "| mode | lambda | rho | energy untrained | energy trained | half-learnt at step |",
        "|---" * 6 + "|",
    ]
    first, last = result["energies"][0], result["energies"][-1]
    for i, (covariance, rho) in enumerate(zip(result["covariance"], result["regression"], strict=True)):
        at = result["order"][i]
        lines.append(
            f"| {i + 1} | {covariance:.3f} | {rho:.3f} | {first[i]:.3f} | {last[i]:.3f} "
            f"| {'did not move' if at is None else f'{at:.0f}'} |"
        )
    return "\n".join([*lines, ""])


def figure(result: dict[str, Any], path: Path) -> None:
    """Modes by lambda and rho, coloured by when they were half learnt; energies over training."""
    rho, covariance = np.array(result["regression"]), np.array(result["covariance"])
    order = np.array([np.nan if v is None else v for v in result["order"]])
    energies, steps = np.array(result["energies"]), np.array(result["steps"])
    drawing, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6))
    moved = ~np.isnan(order)
    left.scatter(covariance[~moved], rho[~moved], facecolors="none", edgecolors="0.6", label="did not move")
    points = left.scatter(covariance[moved], rho[moved], c=order[moved], cmap="viridis")
    drawing.colorbar(points, ax=left, label="half-learnt at step")
    left.set_xlabel("covariance lambda of target and context")
    left.set_ylabel("regression rho")
    left.set_title(f"{len(rho)} modes of the prediction problem")
    if (~moved).any():
        left.legend(fontsize=8)
    # By rank: a single mode of large rho would take all the colour.
    for place, i in enumerate(np.argsort(rho)):
        right.plot(
            steps, energies[:, i] / energies[0, i], color=plt.cm.viridis_r(place / len(rho)), linewidth=1.2
        )
    colours = plt.cm.ScalarMappable(plt.Normalize(1, len(rho)), cmap="viridis_r")
    drawing.colorbar(colours, ax=right, label="rank of rho, lowest to highest")
    left.set_xscale("log" if (covariance > 0).all() else "linear")
    right.set_xlabel("step")
    right.set_ylabel("energy / energy of the untrained encoder")
    right.set_title(f"AD-L-JEPA, {result['objective']}")
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder with many checkpoints")
    parser.add_argument("--frames", type=int, default=32, help="held-out frames")
    parser.add_argument("--window", type=int, default=5, help="side of the neighbourhood in BEV cells")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        result = diagnose(arguments.run, frames=arguments.frames, window=arguments.window)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "mode_diagnostic.json"
    write_json(path, {**result, **provenance()})
    path.with_suffix(".md").write_text(markdown(result))
    figure(result, path.with_suffix(".png"))
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
