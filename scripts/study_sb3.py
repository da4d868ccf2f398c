"""PPO on Two Rooms from pictures: a pretrained JEPA encoder as features extractor against stable-baselines3's own.

python scripts/study_sb3.py --run DIR DIR                    runs of train_world_model.py; seed i takes run i of them
python scripts/study_sb3.py                                  trains a small world model first
python scripts/study_sb3.py --arms plain jepa_frozen --seeds 0 --split selection --out /tmp/chosen

Every (arm, seed) is a cell: trained, evaluated, stored under --runs and not made again when the study is restarted. The
report holds every cell that is there. The settings of PPO are the same for all arms. The layout is one that no world
model was trained on.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from runs import locate
from sb3_report import Cell, Cells, figure, report
from settings import USER_ERRORS
from torch import nn
from world_models import load_world_model, source, task

from policies.baselines import RandomAgent
from policies.sb3 import observation_encoder
from policies.sb3_study import RLProtocol, learn, ppo
from worldmodel.jepa_dynamics import DynamicsModel
from worldmodel.nn.batch_norm import recalibrated
from worldmodel.training.checkpoints import fingerprint, write_json
from worldmodel.training.provenance import provenance

SMALL = ("episodes.episodes=4000", "trainer.max_steps=1000", "trainer.progress=false")
CALIBRATION = 512  # pictures that the batch statistics of a random encoder are measured on


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A features extractor: stable-baselines3's own without an encoder."""

    title: str
    encoder: bool = True
    pretrained: bool = False
    frozen: bool = True


ARMS = {
    "plain": Variant(title="CombinedExtractor (NatureCNN), from scratch", encoder=False),
    "jepa_frozen": Variant(title="JEPAFeatures, pretrained, frozen", pretrained=True),
    "jepa_trained": Variant(title="JEPAFeatures, pretrained, trained on", pretrained=True, frozen=False),
    "random_frozen": Variant(title="JEPAFeatures, random weights, frozen"),
    "random_trained": Variant(title="JEPAFeatures, random weights, trained", frozen=False),
}


def train_small(folder: Path) -> Path:
    """A world model of this folder, trained or continued now unless it is there."""
    script = str(Path(__file__).with_name("train_world_model.py"))
    command = [sys.executable, script, f"run.dir={folder}", "resume=true", *SMALL]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit("no world model was trained: see above, or name a run with --run DIR")
    return folder


def encoder_of(run: Path, *, pretrained: bool, seed: int) -> tuple[nn.Module, str]:
    """The encoder of a run up to its goal code, and the fingerprint of its weights; or the same with random weights.

    The batch statistics of random weights are measured on training episodes: without, their codes are not of unit
    variance, as those of a trained encoder are.

    Raises:
        ValueError: if the run is of another model or environment.
    """
    loaded = load_world_model(run)
    if loaded.settings["episodes"]["name"] != "two_rooms" or not isinstance(loaded.model, DynamicsModel):
        raise ValueError(
            f"{run} is no run of episodes=two_rooms world_model=dynamics: name one with --run DIR"
        )
    if pretrained:
        return observation_encoder(loaded.model), fingerprint(loaded.checkpoint)
    episodes = source({**loaded.settings["episodes"], "episodes": CALIBRATION}, "train")
    fresh = observation_encoder(task({**loaded.settings, "seed": seed}, episodes).model)
    rng = np.random.default_rng(seed)
    seen = [episodes.sample(i, steps=2, generator=rng).observations[0] for i in range(CALIBRATION)]
    batch = torch.from_numpy(np.stack(seen)).float() / 255
    return recalibrated(fresh, [batch], lambda module, x: module(x)), "random weights"


def make_cell(protocol: RLProtocol, arm: str, seed: int, run: Path) -> Cell:
    """One arm and seed, trained and evaluated."""
    variant, encoder, weights = ARMS[arm], None, "none"
    if variant.encoder:
        encoder, weights = encoder_of(run, pretrained=variant.pretrained, seed=seed)
    model = ppo(protocol, seed=seed, encoder=encoder, frozen=variant.frozen)
    name = f"{arm}, seed {seed}"
    found = learn(
        protocol, model,
        on_point=lambda p: print(
            f"{name}: {p['env_steps']} steps, {p['cpu_s']:.0f} CPU s, success {p['success']:.2f}", flush=True
        ),
    )  # fmt: skip
    return {**found, "weights": weights, **provenance()}


def cells_of(
    protocol: RLProtocol, arms: Sequence[str], seeds: Sequence[int], *, models: Sequence[Path], folder: Path
) -> Cells:
    """The cells asked for, made unless they are there, and all others of the folder.

    Raises:
        ValueError: if a cell was made with another protocol or other pretrained weights.
    """
    for seed in seeds:
        for arm in arms:
            path = folder / f"{arm}_{seed}.json"
            if not path.is_file():
                cell = make_cell(protocol, arm, seed, models[seed % len(models)])
                folder.mkdir(parents=True, exist_ok=True)
                write_json(path, cell)
    cells: Cells = {}
    known = {fingerprint(locate(run)[1]) for run in models}
    for arm, variant in ARMS.items():
        for path in sorted(folder.glob(f"{arm}_*.json")):
            cell = json.loads(path.read_text())
            if cell["protocol"] != json.loads(json.dumps(asdict(protocol))):
                raise ValueError(
                    f"{path} was made with other settings: choose another folder with --runs, or delete it"
                )
            if variant.pretrained and cell["weights"] not in known:
                raise ValueError(
                    f"{path} is of another world model: name its run, or choose another folder with --runs"
                )
            cells.setdefault(arm, {})[int(path.stem.removeprefix(f"{arm}_"))] = cell
    return cells


def pretraining_s(run: Path) -> float:
    """Seconds that the training steps of a run took."""
    lines = [json.loads(line) for line in (locate(run)[0].path / "metrics.jsonl").read_text().splitlines()]
    return sum(line["time/step_s"] + line["time/data_s"] for line in lines if "time/step_s" in line)


def main(arguments: list[str] | None = None, *, base: RLProtocol | None = None) -> None:
    """Parse the command line, make the cells, write the report; `base` has the settings the command line leaves."""
    base = base or RLProtocol()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", nargs="*", type=Path, default=[], help="world models; default: one is trained"
    )
    parser.add_argument("--arms", nargs="*", choices=sorted(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--env-steps", type=int, default=base.env_steps)
    parser.add_argument("--split", choices=("selection", "test"), default="test")
    parser.add_argument("--runs", type=Path, default=Path("runs/study_sb3"), help="where cells are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--note", default="", help="a remark to store with the results")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    protocol = replace(base, env_steps=args.env_steps, split=args.split)
    models = args.run or [train_small(args.runs / "world_model")]
    try:
        cells = cells_of(protocol, args.arms, args.seeds, models=models, folder=args.runs / args.split)
    except USER_ERRORS as error:
        raise SystemExit(f"error: {error}") from error
    baseline = protocol.success(RandomAgent(), protocol.problems)
    pretraining = [pretraining_s(run) for run in models]
    text = report(
        protocol, cells, {name: ARMS[name].title for name in ARMS}, baseline=baseline, pretraining=pretraining
    )
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "sb3_two_rooms.json"
    content = {
        "protocol": asdict(protocol),
        "arms": {name: asdict(ARMS[name]) for name in cells},
        "cells": cells,
        "random": baseline,
        "pretraining_s": pretraining,
        "note": args.note,
        **provenance(),
    }
    write_json(path, content)
    path.with_suffix(".md").write_text(text)
    figure(cells, {name: ARMS[name].title for name in ARMS}, baseline=baseline, path=path.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
