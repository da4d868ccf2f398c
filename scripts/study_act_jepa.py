"""ACT-JEPA against ACT, a raw-state head and others: world-model probe, held-out errors, closed loop.

python scripts/study_act_jepa.py small                        4 Meta-World tasks, minutes per arm and seed
python scripts/study_act_jepa.py eight --shown 5 25 --arms act act_jepa act_jepa_free
python scripts/study_act_jepa.py distracted                   states with 16 numbers of noise
python scripts/study_act_jepa.py paper15 --arms act act_jepa  the 15 tasks of the paper from states
python scripts/study_act_jepa.py paper15_image --seeds 0      the same from pictures

Every arm, training seed and number of demonstrations is a cell: trained, measured, stored under --runs and not made
again when the study is restarted. The report holds every cell that is there. Demonstrations are recorded first if they
are not there. Held-out demonstrations, episodes and probes are the same for all arms; nothing is chosen by them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from act_jepa_arms import ARMS, DEFAULT, HORIZON, STUDIES, Study
from act_jepa_report import Cell, cell_folder, report, stored_cells
from imitation import LoadedPolicy, datasets, demonstrations, load_policy

from envs.manipulation import EnvOptions
from policies.imitation.chunks import chunk_batches
from policies.imitation.closed_loop import Actor, Execution, ExpertActor, PolicyActor, RandomActor
from policies.imitation.evaluation import Arm, TaskProtocol, evaluate_arms
from policies.imitation.probe import ProbeConfig, probe
from worldmodel.training.checkpoints import fingerprint, write_json
from worldmodel.training.provenance import provenance

STATES = 4  # numbers of Meta-World's proprioception, before distractors


def called(script: str, *words: str) -> None:
    """Another script of this folder, in a process of its own.

    Raises:
        SystemExit: with the end of what it printed, if it fails.
    """
    command = [sys.executable, str(Path(__file__).with_name(script)), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{(done.stdout + done.stderr)[-2000:]}")


def record(study: Study, folder: Path) -> None:
    """The demonstrations, if they are not there."""
    size = ["--no-image"] if study.image_size is None else ["--image-size", str(study.image_size)]
    count = study.training + study.heldout
    called("record_demonstrations.py", *study.tasks, "--out", str(folder), "--episodes", str(count), *size,
           "--distractors", str(study.distractors))  # fmt: skip


def train(study: Study, arm: str, shown: int, seed: int, *, data: Path, folder: Path) -> float:
    """Its stages, continued if they were stopped; median seconds of a step of the last one."""
    variant = ARMS[arm]
    seen = [f"demonstrations.per_task={shown}"]
    if variant.action_free:
        hidden = study.training - shown
        seen = [f"demonstrations.per_task={study.training}", f"demonstrations.action_free={hidden}"]
    common = [
        f"demonstrations.root={data}", f"demonstrations.heldout_per_task={study.heldout}", f"seed={seed}",
        "resume=true", "trainer.progress=false", *seen, *study.overrides,
    ]  # fmt: skip
    start = []
    if variant.first:
        steps = round(variant.first_steps * study.steps)
        called(
            "train_policy.py",
            *common,
            f"run.dir={folder / 'first'}",
            f"trainer.max_steps={steps}",
            *variant.first,
        )
        start = [f"start.run={folder / 'first'}"]
    steps = round(variant.steps * study.steps)
    called(
        "train_policy.py",
        *common,
        f"run.dir={folder}",
        f"trainer.max_steps={steps}",
        *start,
        *variant.overrides,
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["time/step_s"] for line in lines if "time/step_s" in line)


def measure(study: Study, arm: str, folder: Path) -> Cell:
    """Probes and closed loop of a trained policy."""
    loaded = load_policy(folder)
    config = ProbeConfig(budgets=study.budgets, columns=STATES if study.distractors else None)
    training, heldout = (_batches(part) for part in datasets_of(loaded))
    found = probe(loaded.policy, training=training, heldout=heldout, config=config)
    transfer = None
    if study.transfer and loaded.policy.interface.chunk == HORIZON:
        once = replace(config, budgets=(study.transfer,))
        read = probe(loaded.policy, training=training, heldout=heldout, what="action", config=once)
        transfer = asdict(read.scores[-1])
    began = time.process_time()
    success = {}
    for execute in study.execute if loaded.policy.interface.chunk == HORIZON else (1,):
        chosen = Execution(execute=execute)
        actor = PolicyActor(loaded.policy, execution=chosen, memory=loaded.memory)
        settings = {"fingerprint": fingerprint(loaded.checkpoint), "execute": execute}
        success[str(execute)] = closed_loop(study, arm, actor, settings, folder / f"episodes_{execute}")
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "probe": [asdict(score) for score in found.scores],
        "probe_mean": asdict(found.mean),
        "probe_persistence": asdict(found.persistence) if found.persistence else None,
        "probe_converged": found.converged(),
        "transfer": transfer,
        "success": success,
        "evaluation_cpu_s": time.process_time() - began,
        "parameters": sum(p.numel() for p in loaded.policy.parameters()),
        "heldout": {k.removeprefix("heldout/"): v for k, v in last.items() if k.startswith("heldout/")},
    }


def datasets_of(loaded: LoadedPolicy) -> tuple[Any, Any]:
    """What the policy was trained on and what was held out, with the states that probes read."""
    return datasets(loaded.settings, demonstrations(loaded.settings), horizon=HORIZON)


def _batches(dataset: Any) -> Any:
    return chunk_batches(dataset, batch_size=256, seed=1)


def closed_loop(
    study: Study, name: str, actor: Actor, settings: dict[str, Any], folder: Path
) -> list[list[bool]]:
    """Success [tasks, episodes] on the test seeds."""
    options = EnvOptions(
        image_size=study.image_size or EnvOptions().image_size, distractors=study.distractors
    )
    protocol = TaskProtocol(tasks=study.tasks, episodes=study.episodes, options=options)
    arm = Arm(name=name, actors=(actor,), settings=(settings,))
    return evaluate_arms([arm], protocol=protocol, folder=folder).success(name)[0].tolist()


def make_cell(study: Study, arm: str, shown: int, seed: int, *, root: Path) -> None:
    """One cell, if it is not there."""
    folder = cell_folder(root, arm, shown, seed)
    if (folder / "cell.json").is_file():
        return
    step_s = train(study, arm, shown, seed, data=root / "demonstrations", folder=folder)
    cell = {"step_s": step_s, **measure(study, arm, folder), **provenance()}
    write_json(folder / "cell.json", cell)
    scores = ", ".join(f"ATE({s['steps']}) {s['ate']:.3f}" for s in cell["probe"])
    success = ", ".join(
        f"{torch.tensor(v).float().mean():.3f} executing {k}" for k, v in cell["success"].items()
    )
    print(f"{arm}, {shown} shown, seed {seed}: {scores}, success {success}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--arms", nargs="*", choices=sorted(ARMS), default=list(DEFAULT))
    parser.add_argument(
        "--shown", nargs="*", type=int, help="demonstrations per task; default: all of the study"
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="training seeds")
    parser.add_argument("--runs", type=Path, default=Path("runs/act_jepa"), help="where cells are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--note", default="", help="a remark to store with the results")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    study, root = STUDIES[args.study], args.runs / args.study
    chosen = study.shown if args.shown is None else tuple(args.shown)
    if set(chosen) - set(study.shown):
        parser.error(f"study {args.study} is of {', '.join(map(str, study.shown))} demonstrations per task")
    record(study, root / "demonstrations")
    for seed in args.seeds:
        for shown in chosen:
            for arm in args.arms:
                make_cell(study, arm, shown, seed, root=root)
    baselines = {
        name: closed_loop(study, name, actor, {}, root / "baselines")
        for name, actor in (("random", RandomActor()), ("expert", ExpertActor()))
    }
    cells = stored_cells(root, study)
    text = report(args.study, study, cells, baselines)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"act_jepa_{args.study}.json"
    content = {
        "study": asdict(study),
        "cells": cells,
        "baselines": baselines,
        "note": args.note,
        **provenance(),
    }
    write_json(path, content)
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
