"""Does a world model of LiDAR drives predict the future, and does it help to know the actions?

python scripts/study_driving.py                              everything: encoder, drives, models, table, figure
python scripts/study_driving.py --encoder runs/.../NAME      with an encoder that pretrain_lidar.py has trained

An encoder pretrained by AD-L-JEPA on other streets is frozen. Its bird's-eye features, averaged over cells of 1.6 m and
projected on fixed whitened components, are the latents: no model can make its own targets easier. Models see 1 s
(3 maps) and imagine 2 s in steps of 0.5 s (5 pairs of speed and yaw rate). What is reported is measured on drives of
another seed, which had no part in training or in any choice; the validation drives' figures are stored beside it. Every
part is kept under --runs and is continued if the study is started again.
"""

import argparse
import hashlib
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import driving_evaluation as ev
import numpy as np
import torch
from runs import load_task, locate, run_settings
from settings import USER_ERRORS
from studies import pretrained
from torch import nn
from tqdm import tqdm

from envs.driving.drive_store import FeatureEpisodes, build_drives, read_drive
from envs.driving.drives import DriveSpec
from envs.episodes import ActionBlocks, split_items
from lidar.drive_features import (
    BEVGrid,
    LidarBEVEncoder,
    PCAProjection,
    cloud_batch,
    encode_sweeps,
    obstacle_map,
)
from lidar.pretraining import recalibrated_encoder
from lidar.world_model import BEVWorldModel, BEVWorldModelTask
from worldmodel.batches import EpisodeBatch
from worldmodel.episodes import EpisodeDataset, collate_episodes
from worldmodel.targets import SharedTarget
from worldmodel.training import RunFolder, TrainerConfig, fit
from worldmodel.training.checkpoints import load_checkpoint, load_strict, write_json
from worldmodel.training.provenance import provenance
from worldmodel.training.schedules import WarmupCosine

# 51.2 m ahead instead of the small default's 25.6 m: at 14 m/s the scene of 2 s later begins 28 m ahead.
PRETRAINING = ["model.point_range=[0,-12.8,-3,51.2,12.8,1]", "probe.enabled=false"]
ARMS = {
    "motion": "conditioned, maps moved by the ego motion",
    "action": "conditioned, actions as input only",
    "none": "unconditioned",
}
PAIRS = (
    ("motion", "copy_last"),
    ("motion", "copy_moved"),
    ("motion", "none"),
    ("motion", "shuffled"),
    ("motion", "constant"),
    ("action", "copy_last"),
    ("action", "copy_moved"),
    ("action", "none"),
    ("none", "copy_last"),
)
VALIDATION = 0.3  # of the drives: watched while training and while the model was designed
TEST_SEED = 1  # of the drives that are reported
CALIBRATION = 32  # sweeps of training drives on which BatchNorm is recalibrated


@dataclass(frozen=True, kw_only=True)
class Part:
    """One side of the split: per drive latents [T, K, H, W] float32, actions [T - 1, 2], obstacles [T, H, W] bool.

    Latents and obstacles are `every` sweeps apart.
    """

    maps: list[np.ndarray]
    actions: list[np.ndarray]
    obstacles: list[np.ndarray]
    every: int = 1

    def steps(self) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Latents and obstacles in whole steps, and the actions."""
        stride = ev.BLOCK // self.every
        return [z[::stride] for z in self.maps], self.actions, [o[::stride] for o in self.obstacles]

    def mean(self) -> torch.Tensor:
        """Mean latent [K, H, W] of each cell."""
        return torch.from_numpy(np.concatenate(self.steps()[0]).mean(axis=0))


def frozen_encoder(run: Path, files: list[Path]) -> tuple[LidarBEVEncoder, str]:
    """The encoder of a pretraining run, BatchNorm recalibrated on sweeps of `files`, and a name that tells it apart."""
    folder, checkpoint = locate(run)
    task = load_task(run_settings(folder), checkpoint)
    voxelizer = task.voxelizer.every_voxel
    sweeps = [
        sweep
        for path in files[:: max(1, len(files) * 2 // CALIBRATION)]
        for sweep in read_drive(path).points[::20][:2]
    ]
    batches = [voxelizer(cloud_batch(torch.from_numpy(sweep)[None])) for sweep in sweeps]
    encoder = LidarBEVEncoder(encoder=recalibrated_encoder(task.model.encoder, batches), voxelizer=voxelizer)
    digest = hashlib.sha256()
    for name, value in encoder.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return encoder.eval(), digest.hexdigest()[:10]


def drive_maps(
    encoder: LidarBEVEncoder, files: list[Path], folder: Path, *, every: int = 1
) -> list[dict[str, np.ndarray]]:
    """Maps [T, C, H, W] and obstacles [T, H, W] of every drive (of sweeps `every` apart), encoded once."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = []
    for path in tqdm(
        files, desc="encoding drives", unit="drive", mininterval=0.5 if sys.stderr.isatty() else 30
    ):
        cached = folder / path.name
        if not cached.is_file():
            drive = read_drive(path)
            values = {
                "maps": encode_sweeps(encoder, drive.points[::every]),
                "obstacles": np.stack([obstacle_map(p, encoder.grid) for p in drive.points[::every]]),
                "actions": drive.actions,
            }
            temporary = cached.with_suffix(".tmp.npz")
            np.savez(temporary, **values)
            temporary.replace(cached)
        with np.load(cached) as values:
            stored.append({name: values[name] for name in values.files})
    return stored


def fitted_projection(stored: list[dict[str, np.ndarray]], *, components: int) -> PCAProjection:
    """Principal components of the cells of training drives."""
    cells = [s["maps"][:: ev.BLOCK].transpose(0, 2, 3, 1).reshape(-1, s["maps"].shape[1]) for s in stored]
    return PCAProjection.fitted(torch.from_numpy(np.concatenate(cells)), components=components)


def part(stored: list[dict[str, np.ndarray]], projection: PCAProjection, *, every: int = 1) -> Part:
    """Latents of drives."""
    return Part(
        maps=[projection(torch.from_numpy(s["maps"]).float()).numpy() for s in stored],
        actions=[s["actions"] for s in stored],
        obstacles=[s["obstacles"] for s in stored],
        every=every,
    )


def trained(
    arm: str,
    seed: int,
    *,
    train: Part,
    grid: BEVGrid,
    heldout: EpisodeBatch,
    settings: dict[str, Any],
    runs: Path,
) -> BEVWorldModel:
    """One model, trained now, continued or taken from its run folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BEVWorldModel(
            encoder=nn.Identity(),
            channels=train.maps[0].shape[1],
            grid=grid,
            action_dim=2 * ev.BLOCK,
            condition=arm,  # type: ignore[arg-type]
            window=ev.CONTEXT,
            width=settings["width"],
            prior=train.mean(),
        )
    task = BEVWorldModelTask(model=model, target=SharedTarget(), context=ev.CONTEXT, horizon=ev.HORIZON)
    source = ActionBlocks(FeatureEpisodes(train.maps, train.actions), ev.BLOCK)
    run = RunFolder(runs / f"{arm}-seed{seed}")
    run.open({**settings, "arm": arm, "seed": seed}, resume=True, volatile=())
    config = TrainerConfig(
        max_steps=settings["steps"],
        batch_size=settings["batch_size"],
        schedule=WarmupCosine(max_lr=settings["max_lr"], warmup=20),
        seed=seed,
        device="cpu",
        eval_every=max(1, settings["steps"] // 2),
        keep_checkpoints=1,
    )
    result = fit(
        task,
        dataset=EpisodeDataset(source, steps=ev.CONTEXT + ev.HORIZON),
        collate=collate_episodes,
        heldout=[heldout],
        run=run,
        config=config,
        device=torch.device("cpu"),
    )
    if result.interrupted:
        raise KeyboardInterrupt
    latest = run.latest_checkpoint()
    assert latest is not None
    load_strict(task, load_checkpoint(latest).model, source=str(latest))
    return task.eval().model


def measured(
    train: Part, test: Part, models: dict[str, list[BEVWorldModel]], grid: BEVGrid, figure: Path | None
) -> dict[str, Any]:
    """All numbers of the study on the drives of `test`; draws the figure."""
    held = ev.cut(*test.steps())
    readout = ev.fit_readout(train.steps()[0], train.steps()[2])
    maps = {name: [z] for name, z in ev.baseline_predictions(held, mean=train.mean(), grid=grid).items()}
    names = dict(ev.BASELINES)
    for arm, seeds in models.items():
        maps[arm] = [ev.imagine(model, held, held.future) for model in seeds]
        names[arm] = ARMS[arm]
    first = next(iter(models))
    for kind, future in ev.altered_actions(held.future, held.state.actions[:, -1]).items():
        maps[kind] = [ev.imagine(model, held, future) for model in models[first]]
    names["shuffled"] = f"{ARMS[first]}; actions of another drive"
    names["constant"] = f"{ARMS[first]}; last speed and yaw rate held"
    errors = {name: np.stack([ev.drive_errors(z, held) for z in seeds]) for name, seeds in maps.items()}
    methods = ev.summary(errors)
    precision = {
        name: np.mean([ev.obstacle_precision(z, held, readout) for z in seeds], 0).tolist()
        for name, seeds in maps.items()
    }
    precision["true"] = ev.obstacle_precision(held.goal, held, readout)
    ratios = {f"{a} / {b}": ev.ratio(errors[a], errors[b]) for a, b in PAIRS if a in errors and b in errors}
    speed = held.future[:, :, ::2].mean(dim=(1, 2))
    chosen = int(speed.argsort()[len(speed) // 2])
    shown = {
        "copy_last": "newest map (copy-last)",
        "copy_moved": names["copy_moved"],
        "none": names["none"],
        "motion": names["motion"],
    }
    scores = {
        label: ev.obstacle_scores(maps[name][0][chosen, -1], readout)
        for name, label in shown.items()
        if name in maps
    }
    scores["true latents"] = ev.obstacle_scores(held.goal[chosen, -1], readout)
    scores["truth: returns 0.5 to 2.5 m above the road"] = torch.from_numpy(
        held.obstacles[chosen, -1]
    ).float()
    title = f"obstacles 2 s ahead, linear readout; held-out stretch of median speed ({float(speed[chosen]):.1f} m/s)"
    if figure is not None:
        ev.picture(figure, methods=methods, names=names, scores=scores, grid=grid, title=title)
    return {
        "methods": methods,
        "names": names,
        "ratios": ratios,
        "obstacle_precision": precision,
        "stretches": len(held.drive),
    }


def gate(result: dict[str, Any]) -> dict[str, bool]:
    """Whether the upper ends of the intervals lie below 1 at 0.5, 1 and 2 s."""
    at = [ev.SECONDS.index(s) for s in (0.5, 1.0, 2.0)]
    return {
        name: all(result["ratios"][pair]["interval"][1][i] < 1 for i in at)
        for name, pair in {
            "better than copy-last": "motion / copy_last",
            "conditioned better than unconditioned": "motion / none",
            "conditioned better than unconditioned, without moving maps": "action / none",
        }.items()
        if pair in result["ratios"]
    }


def table(content: dict[str, Any]) -> str:
    """Markdown of a result."""
    columns = [f"{s:g} s" for s in ev.SECONDS]
    data = content["data"]
    lines = [
        f"Mean squared error of latents ({data['components']} whitened components a cell, 1.6 m cells) on "
        f"{data['test']} held-out drives ({content['stretches']} stretches) after training on {data['train']}; "
        f"95 % intervals over drives, mean of {len(content['seeds'])} seeds.",
        "",
        "| method | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, label in content["names"].items():
        row = content["methods"][name]
        cells = [
            f"{m:.3f} ({a:.3f} .. {b:.3f})" for m, a, b in zip(row["mse"], *row["interval"], strict=True)
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "Ratios of errors, paired over drives (below 1: the first is better):", ""]
    lines += ["| ratio | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for pair, row in content["ratios"].items():
        cells = [
            f"{m:.3f} ({a:.3f} .. {b:.3f})" for m, a, b in zip(row["ratio"], *row["interval"], strict=True)
        ]
        lines.append(f"| {pair} | " + " | ".join(cells) + " |")
    lines += ["", "Average precision of obstacles read from the latents by a linear probe:", ""]
    lines += ["| method | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in content["obstacle_precision"].items():
        label = content["names"].get(name, "the true latents")
        lines.append(f"| {label} | " + " | ".join(f"{v:.3f}" for v in row) + " |")
    gates = ", ".join(f"{name}: {'yes' if passed else 'no'}" for name, passed in content["gates"].items())
    return "\n".join([*lines, "", f"At 0.5, 1 and 2 s, interval below 1: {gates}.", ""])


def study(arguments: argparse.Namespace) -> None:
    """The whole job; see the module's text."""
    run = arguments.encoder or arguments.runs / "encoder"
    if arguments.encoder is None:
        result = pretrained(run, PRETRAINING)
        if "failed" in result:
            raise ValueError(f"pretraining the encoder failed: {result['failed']}")
    spec = DriveSpec(drives=arguments.drives, frames=arguments.frames)
    files = build_drives(arguments.data, spec=spec, workers=arguments.workers)
    test_spec = replace(spec, drives=arguments.test_drives, seed=TEST_SEED)
    test_files = build_drives(arguments.data, spec=test_spec, workers=arguments.workers)
    chosen, held_out = split_items(len(files), fractions=(1 - VALIDATION, VALIDATION), seed=0)
    encoder, name = frozen_encoder(run, [files[i] for i in chosen])
    features = arguments.runs / f"features-{name}-{spec.fingerprint()}"
    stored = drive_maps(encoder, files, features)
    projection = fitted_projection([stored[i] for i in chosen], components=arguments.components)
    train, validation = (part([stored[i] for i in items], projection) for items in (chosen, held_out))
    features = arguments.runs / f"features-{name}-{test_spec.fingerprint()}-every{ev.BLOCK}"
    test = part(drive_maps(encoder, test_files, features, every=ev.BLOCK), projection, every=ev.BLOCK)
    settings = {
        "drives": asdict(spec),
        "encoder": name,
        **{k: getattr(arguments, k) for k in ("components", "steps", "batch_size", "max_lr", "width")},
    }
    key = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:8]
    heldout = ev.cut(*validation.steps()).batch
    models = {
        arm: [
            trained(arm, seed, train=train, grid=encoder.grid, heldout=heldout, settings=settings,
                    runs=arguments.runs / f"models-{key}")
            for seed in arguments.seeds
        ]
        for arm in arguments.arms
    }  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "driving_world_model.json"
    result = measured(train, test, models, encoder.grid, path.with_suffix(".png"))
    speeds = np.concatenate(train.actions)
    content = {
        **result,
        "gates": gate(result),
        "validation": {
            k: v for k, v in measured(train, validation, models, encoder.grid, None).items() if k != "names"
        },
        "settings": settings,
        "seeds": arguments.seeds,
        "data": {
            "train": len(train.maps),
            "validation": len(validation.maps),
            "test": len(test.maps),
            "components": arguments.components,
            "explained_variance": float(projection.explained),
            "mean_speed": float(speeds[:, 0].mean()),
            "std_yaw_rate": float(speeds[:, 1].std()),
        },
        "parameters": sum(p.numel() for p in next(iter(models.values()))[0].parameters()),
        **provenance(),
    }
    write_json(path, content)
    path.with_suffix(".md").write_text(table(content))
    print(f"{table(content)}\n{path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--encoder", type=Path, help="run folder of pretrain_lidar.py; default: made under --runs"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/driving"), help="features and models are kept here"
    )
    parser.add_argument("--data", type=Path, default=Path("data/drives"), help="drives are kept here")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/results"), help="folder of JSON, table and figure"
    )
    parser.add_argument("--drives", type=int, default=64, help="for training and validation")
    parser.add_argument("--test-drives", type=int, default=20, help="further drives, of another seed")
    parser.add_argument("--frames", type=int, default=41, help="sweeps per drive, 0.1 s apart; at least 31")
    parser.add_argument("--components", type=int, default=8, help="channels of the latents")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=160, help="optimiser steps per model")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-lr", type=float, default=4e-3)
    parser.add_argument("--width", type=int, default=24, help="channels of the network")
    parser.add_argument("--workers", type=int, default=1, help="processes that simulate")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        study(arguments)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nstopped; start again with the same settings to go on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
