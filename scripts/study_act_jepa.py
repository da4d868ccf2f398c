"""ACT-JEPA against ACT, a raw-state head and others: world-model probe, held-out errors, closed loop.

python scripts/study_act_jepa.py small                        4 Meta-World tasks, minutes per arm and seed
python scripts/study_act_jepa.py eight --shown 5 25 --arms act act_jepa act_jepa_free
python scripts/study_act_jepa.py distracted                   states with 16 numbers of noise
python scripts/study_act_jepa.py small_image --arms act act_jepa raw_state act_jepa_image   from pictures
python scripts/study_act_jepa.py paper15 --arms act act_jepa  the 15 tasks of the paper from states
python scripts/study_act_jepa.py paper15_image --seeds 0      the same from pictures

Every arm, training seed and number of demonstrations is a cell: trained, measured, stored under --runs and not made
again when the study is restarted. The report holds every cell that is there. Demonstrations are recorded first if they
are not there. Held-out demonstrations, episodes and probes are the same for all arms; nothing is chosen by them.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from act_jepa_arms import ARMS, DEFAULT, HORIZON, STUDIES, Study
from act_jepa_report import Cell, cell_folder, report, stored_cells
from imitation import datasets, demonstrations, load_policy, measured_statistics
from studies import called

from envs.manipulation import EnvOptions
from policies.imitation.batches import ChunkBatch
from policies.imitation.chunks import chunk_batches
from policies.imitation.closed_loop import Actor, Execution, ExpertActor, PolicyActor, RandomActor
from policies.imitation.evaluation import Arm, TaskProtocol, evaluate_arms
from policies.imitation.policy import ImitationPolicy
from policies.imitation.probe import ProbeConfig, probe
from policies.imitation.statistics import Statistics
from worldmodel.training.checkpoints import fingerprint, write_json
from worldmodel.training.provenance import provenance

STATES = 4  # numbers of Meta-World's proprioception, before distractors


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
        seen = [
            f"demonstrations.per_task={study.training}", f"demonstrations.action_free={hidden}",
            f"demonstrations.repeat_labelled={max(1, round(hidden / shown))}",
        ]  # fmt: skip
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


def measure(study: Study, arm: str, shown: int, folder: Path) -> Cell:
    """Probes, held-out errors and closed loop of a trained policy."""
    loaded = load_policy(folder)
    config = ProbeConfig(budgets=study.budgets, columns=STATES if study.distractors else None)
    # The same episodes, in the same units, for all arms: also those that have seen more.
    seen = {**loaded.settings["demonstrations"], "per_task": shown, "action_free": 0, "repeat_labelled": 1}
    settings = {**loaded.settings, "demonstrations": seen}
    there = demonstrations(settings)
    units = measured_statistics(there)
    training, heldout = (
        chunk_batches(part, batch_size=256, seed=1) for part in datasets(settings, there, horizon=HORIZON)
    )
    found = probe(loaded.policy, training=training, heldout=heldout, config=config, units=units)
    transfer = None
    if study.transfer and loaded.policy.interface.chunk == HORIZON:
        once = replace(config, budgets=(study.transfer,))
        read = probe(
            loaded.policy, training=training, heldout=heldout, what="action", config=once, units=units
        )
        transfer = asdict(read.scores[-1])
    began = time.process_time()
    success = {}
    for execute in study.execute if loaded.policy.interface.chunk == HORIZON else (1,):
        chosen = Execution(execute=execute)
        actor = PolicyActor(loaded.policy, execution=chosen, memory=loaded.memory)
        about = {"fingerprint": fingerprint(loaded.checkpoint), "execute": execute}
        success[str(execute)] = closed_loop(study, arm, actor, about, folder / f"episodes_{execute}")
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    names = [(name, p.numel()) for name, p in loaded.policy.named_parameters()]
    return {
        "probe": [asdict(score) for score in found.scores],
        "probe_mean": asdict(found.mean),
        "probe_persistence": asdict(found.persistence) if found.persistence else None,
        "probe_converged": found.converged(),
        "transfer": transfer,
        "success": success,
        "evaluation_cpu_s": time.process_time() - began,
        "parameters": sum(count for name, count in names if ".teacher." not in name),
        "action_l1": None if loaded.memory else action_errors(loaded.policy, heldout, units),
        "heldout": {k.removeprefix("heldout/"): v for k, v in last.items() if k.startswith("heldout/")},
    }


def action_errors(policy: ImitationPolicy, heldout: list[ChunkBatch], units: Statistics) -> dict[str, float]:
    """Mean absolute error of the first action and of the whole chunk, in z-scores of `units`."""
    errors, known = [], []
    for batch in heldout:
        noise = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        decided = policy.act(batch.observation, noise)
        errors.append((decided - batch.action).abs() / units.action_std)
        known.append(batch.action_counts)
    error, valid = torch.cat(errors), torch.cat(known)
    return {"first": float(error[:, 0][valid[:, 0]].mean()), "chunk": float(error[valid].mean())}


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
    made_as = {**json.loads(json.dumps(asdict(study))), "arm": json.loads(json.dumps(asdict(ARMS[arm])))}
    if (folder / "cell.json").is_file():
        if json.loads((folder / "cell.json").read_text())["made_as"] != made_as:
            raise SystemExit(
                f"{folder} is of another study or arm of that name: move it away, or choose other --runs"
            )
        return
    step_s = train(study, arm, shown, seed, data=root / "demonstrations", folder=folder)
    cell = {"made_as": made_as, "step_s": step_s, **measure(study, arm, shown, folder), **provenance()}
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
