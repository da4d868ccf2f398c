"""What study_driving.py measures: errors of imagined latents per drive and horizon, intervals, a readout, pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lidar.drive_features import BEVGrid
from lidar.world_model import BEVWorldModel, compose, ego_motion, moved
from worldmodel.batches import EpisodeBatch, LatentState
from worldmodel.probes import LinearProbe, average_precision, fit_linear_probe

BLOCK = 5  # sweeps per step of the world model: 0.5 s at 10 Hz
CONTEXT, HORIZON = 3, 4
SECONDS = tuple(0.5 * (i + 1) for i in range(HORIZON))
BASELINES = {
    "copy_last": "copy-last",
    "copy_moved": "copy-last, deviations from the mean moved by the true ego motion",
    "mean": "mean latent of each cell",
}


@dataclass(frozen=True, kw_only=True)
class Stretches:
    """Every stretch of some drives that starts on a whole step.

    Attributes:
        batch: observations [N, CONTEXT + HORIZON, K, H, W] and action blocks.
        drive: [N] which drive each is from.
        obstacles: [N, HORIZON, H, W] bool, what is there at the predicted steps.
    """

    batch: EpisodeBatch
    drive: np.ndarray
    obstacles: np.ndarray

    @property
    def state(self) -> LatentState:
        z, actions = self.batch.observations[:, :CONTEXT], self.batch.actions[:, : CONTEXT - 1]
        return LatentState(latents=z, actions=actions)

    @property
    def future(self) -> torch.Tensor:
        return self.batch.actions[:, CONTEXT - 1 :]

    @property
    def goal(self) -> torch.Tensor:
        return self.batch.observations[:, CONTEXT:]


def cut(
    latents: Sequence[np.ndarray], actions: Sequence[np.ndarray], obstacles: Sequence[np.ndarray]
) -> Stretches:
    """Stretches of drives: per drive, in whole steps, latents [S, K, H, W], obstacles [S, H, W]; actions [T - 1, 2].

    Raises:
        ValueError: if a drive is shorter than a stretch.
    """
    steps = CONTEXT + HORIZON
    if min(len(z) for z in latents) < steps:
        raise ValueError(f"drives need at least {(steps - 1) * BLOCK + 1} sweeps: raise --frames")
    maps, blocks, drive, truth = [], [], [], []
    for number, (z, a, o) in enumerate(zip(latents, actions, obstacles, strict=True)):
        block = a[: (len(z) - 1) * BLOCK].reshape(len(z) - 1, -1)
        for start in range(len(z) - steps + 1):
            maps.append(z[start : start + steps])
            blocks.append(block[start : start + steps - 1])
            truth.append(o[start + CONTEXT : start + steps])
            drive.append(number)
    batch = EpisodeBatch(
        observations=torch.from_numpy(np.stack(maps)),
        actions=torch.from_numpy(np.stack(blocks)),
        seeds=tuple(range(len(maps))),
    )
    return Stretches(batch=batch, drive=np.array(drive), obstacles=np.stack(truth))


@torch.no_grad()
def imagine(model: BEVWorldModel, stretches: Stretches, future: torch.Tensor) -> torch.Tensor:
    """Imagined maps [N, HORIZON, K, H, W] for future actions."""
    parts = []
    for rows in torch.arange(len(future)).split(64):
        state = stretches.state
        part = LatentState(latents=state.latents[rows], actions=state.actions[rows])
        parts.append(model.rollout(part, future[rows]))
    return torch.cat(parts)


def baseline_predictions(
    stretches: Stretches, *, mean: torch.Tensor, grid: BEVGrid
) -> dict[str, torch.Tensor]:
    """Predictions [N, HORIZON, K, H, W] that need no training; deviations from the `mean` [K, H, W] are moved."""
    last = stretches.state.latents[:, -1]
    shifted, total = [], torch.zeros(len(last), 3)
    for action in stretches.future.unbind(1):
        total = compose(total, ego_motion(action))
        shifted.append(mean + moved(last - mean, total, grid)[0])
    return {
        "copy_last": last[:, None].expand_as(stretches.goal),
        "copy_moved": torch.stack(shifted, dim=1),
        "mean": mean.expand_as(stretches.goal),
    }


def altered_actions(future: torch.Tensor, last: torch.Tensor) -> dict[str, torch.Tensor]:
    """Futures [N, HORIZON, A] that are not the true ones: of another stretch, and the last (speed, yaw rate) held."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(future)))
    held = last[:, None, -2:].repeat(1, future.shape[1], future.shape[2] // 2)
    return {"shuffled": future[order], "constant": held}


def drive_errors(prediction: torch.Tensor, stretches: Stretches) -> np.ndarray:
    """Mean squared error [drives, HORIZON], over stretches, channels and cells."""
    error = (prediction - stretches.goal).double().square().mean(dim=(2, 3, 4)).numpy()
    return np.stack([error[stretches.drive == d].mean(axis=0) for d in np.unique(stretches.drive)])


def interval(
    statistic: Callable[[np.ndarray], np.ndarray], drives: int, *, draws: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """95 % bootstrap interval over drives of a statistic of drive indices."""
    rng = np.random.default_rng(0)
    values = np.stack([statistic(rng.integers(drives, size=drives)) for _ in range(draws)])
    low, high = np.percentile(values, (2.5, 97.5), axis=0)
    return low, high


def summary(errors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Per method: error per horizon with its interval and the spread over seeds, and its ratio to copy-last.

    Args:
        errors: [seeds, drives, HORIZON] by method; one seed for methods without training.
    """
    base = errors["copy_last"].mean(axis=0)
    result = {}
    for name, values in errors.items():
        own = values.mean(axis=0)
        low, high = interval(lambda i, own=own: own[i].mean(axis=0), len(own))
        ratio_low, ratio_high = interval(
            lambda i, own=own: own[i].mean(axis=0) / base[i].mean(axis=0), len(own)
        )
        result[name] = {
            "mse": own.mean(axis=0).tolist(),
            "interval": [low.tolist(), high.tolist()],
            "seeds": values.mean(axis=1).tolist(),
            "over_copy_last": (own.mean(axis=0) / base.mean(axis=0)).tolist(),
            "over_copy_last_interval": [ratio_low.tolist(), ratio_high.tolist()],
        }
    return result


def ratio(above: np.ndarray, below: np.ndarray) -> dict[str, Any]:
    """Ratio per horizon of two errors [seeds, drives, HORIZON], paired over drives, and the seeds' own ratios."""
    a, b = above.mean(axis=0), below.mean(axis=0)
    low, high = interval(lambda i: a[i].mean(axis=0) / b[i].mean(axis=0), len(a))
    return {
        "ratio": (a.mean(axis=0) / b.mean(axis=0)).tolist(),
        "interval": [low.tolist(), high.tolist()],
        "seeds": (above.mean(axis=1) / below.mean(axis=1)).tolist(),
    }


def fit_readout(latents: Sequence[np.ndarray], obstacles: Sequence[np.ndarray]) -> LinearProbe:
    """Linear probe of obstacles from the latent of a cell, on at most 60,000 cells of training drives."""
    cells = np.concatenate([z.transpose(0, 2, 3, 1).reshape(-1, z.shape[1]) for z in latents])
    truth = np.concatenate([o.ravel() for o in obstacles])
    chosen = np.random.default_rng(0).permutation(len(cells))[:60_000]
    return fit_linear_probe(
        torch.from_numpy(cells[chosen]), torch.from_numpy(truth[chosen].astype(np.int64)), num_classes=2
    )


def obstacle_scores(maps: torch.Tensor, readout: LinearProbe) -> torch.Tensor:
    """Probability of an obstacle [..., H, W] of maps [..., K, H, W]."""
    cells = maps.movedim(-3, -1)
    return readout.scores(cells.flatten(0, -2))[:, 1].unflatten(0, cells.shape[:-1])


def obstacle_precision(maps: torch.Tensor, stretches: Stretches, readout: LinearProbe) -> list[float]:
    """Average precision of obstacles per horizon, cells of all held-out stretches pooled."""
    scores = obstacle_scores(maps, readout)
    truth = torch.from_numpy(stretches.obstacles)
    return [average_precision(scores[:, h].flatten(), truth[:, h].flatten()) for h in range(HORIZON)]


def picture(
    path: Path,
    *,
    methods: Mapping[str, dict[str, Any]],
    names: Mapping[str, str],
    scores: Mapping[str, torch.Tensor],
    grid: BEVGrid,
    title: str,
) -> None:
    """Error against horizon, and the obstacles read from one stretch's maps 2 s ahead.

    Args:
        methods: of `summary`.
        names: labels of the methods to draw.
        scores: obstacle probability or truth [H, W] by label.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.35))
    axes = left.subplots()
    for name, label in names.items():
        values = methods[name]
        axes.plot(SECONDS, values["mse"], marker="o", label=label, lw=1.5, ms=3.5)
        axes.fill_between(SECONDS, *values["interval"], alpha=0.12)
    axes.set(
        xlabel="seconds ahead", ylabel="mean squared error of the latent", xticks=SECONDS, ylim=(0, None)
    )
    axes.legend(fontsize=6)
    axes.grid(alpha=0.3)
    extent = (
        grid.origin[0],
        grid.origin[0] + grid.columns * grid.cell,
        grid.origin[1],
        grid.origin[1] + grid.rows * grid.cell,
    )
    panels = right.subplots((len(scores) + 1) // 2, 2, sharex=True, sharey=True, squeeze=False)
    right.suptitle(title, fontsize=8)
    for panel, (label, map_) in zip(panels.flat, scores.items(), strict=False):
        panel.imshow(map_.numpy(), origin="lower", extent=extent, vmin=0, vmax=1, cmap="magma")
        panel.set_title(label, fontsize=6)
        panel.tick_params(labelsize=6)
    for panel in panels[-1]:
        panel.set_xlabel("metres ahead", fontsize=7)
    figure.savefig(path, dpi=130)
