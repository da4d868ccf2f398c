"""ACT-JEPA against ACT, a raw-state head and others: world-model probe, held-out errors, closed loop.

python scripts/study_act_jepa.py small                        4 Meta-World tasks, minutes per arm and seed
python scripts/study_act_jepa.py paper15                      the 15 tasks of the paper from states, 40 episodes each
python scripts/study_act_jepa.py small --arms act act_jepa --seeds 0 1 2

Every (arm, seed) is a cell: trained, measured, stored under --runs and not made again when the study is restarted. The
report holds every cell that is there. Demonstrations are recorded first if they are not there. Held-out demonstrations,
episodes and probes are the same for all arms; nothing is chosen by them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from imitation import datasets, demonstrations, load_policy

from policies.imitation.chunks import chunk_batches
from policies.imitation.closed_loop import Execution, ExpertActor, PolicyActor, RandomActor
from policies.imitation.evaluation import Arm, TaskProtocol, evaluate_arms
from policies.imitation.probe import ProbeConfig, probe
from policies.report import rate
from worldmodel.evaluation.intervals import interval, paired
from worldmodel.training.checkpoints import fingerprint, write_json
from worldmodel.training.provenance import provenance

Cell = dict[str, Any]
HORIZON = 30  # states the probe reads
GATE = 0.92  # ATE of ACT-JEPA over that of ACT, on the mean of the seeds


@dataclass(frozen=True, kw_only=True)
class Study:
    """Demonstrations, sizes and budgets of a study; `training` and `heldout` are episodes per task."""

    tasks: tuple[str, ...]
    training: int
    heldout: int
    episodes: int
    overrides: tuple[str, ...] = ()
    image_size: int | None = None
    budgets: tuple[int, ...] = (250, 1000)
    steps: int = 500


FOUR = ("button-press-topdown", "drawer-open", "door-open", "push")
EIGHT = (*FOUR, "window-open", "pick-place", "reach", "coffee-push")
FIFTEEN = (
    "button-press", "button-press-wall", "button-press-topdown", "button-press-topdown-wall",
    "coffee-button", "coffee-pull", "coffee-push", "drawer-open", "faucet-open", "faucet-close", "disassemble",
    "door-open", "door-close", "window-open", "window-close",
)  # fmt: skip
MEDIUM = (
    "size.dim=128", "size.hidden=512", "size.predictor_dim=64", "size.predictor_hidden=256",
)  # fmt: skip
STUDIES = {
    "small": Study(tasks=FOUR, training=10, heldout=5, episodes=15, budgets=(250, 1000, 4000)),
    "eight": Study(tasks=EIGHT, training=10, heldout=5, episodes=15, overrides=MEDIUM, steps=800),
    "paper15": Study(tasks=FIFTEEN, training=40, heldout=10, episodes=20, overrides=MEDIUM, steps=2000),
    "paper15_image": Study(
        tasks=FIFTEEN, training=40, heldout=10, episodes=20, steps=2000, image_size=64,
        overrides=(*MEDIUM, "observe.environment=false", "observe.image=true"),
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Overrides of train_policy.py, and how many times the steps of the study it is trained for."""

    overrides: tuple[str, ...] = ()
    steps: float = 1.0


ARMS = {
    "act": Variant(overrides=("policy=act",)),
    "act_jepa": Variant(overrides=("policy=act_jepa",)),
    "raw_state": Variant(overrides=("policy=raw_state",)),
    # ACT-JEPA costs about twice as much per step (the table says how much): ACT given the same time.
    "act_matched": Variant(overrides=("policy=act",), steps=2.0),
    "bc": Variant(overrides=("policy=bc", "chunk=1")),
    "bc_chunk": Variant(overrides=("policy=bc",)),
    "flow": Variant(overrides=("policy=flow",)),
    "autoregressive": Variant(overrides=("policy=autoregressive", "chunk=15")),
    "act_cvae": Variant(overrides=("policy=act_cvae",)),
    "act_jepa_sigreg": Variant(overrides=("policy=act_jepa", "policy.auxiliary.target=shared_latent")),
    "act_jepa_0.1": Variant(overrides=("policy=act_jepa", "policy.auxiliary.weight=0.1")),
    "act_jepa_paper_ema": Variant(overrides=("policy=act_jepa", "policy.auxiliary.momentum=0.996")),
    "act_jepa_drop_first": Variant(overrides=("policy=act_jepa", "policy.auxiliary.drop_first=true")),
    "act_jepa_causal": Variant(overrides=("policy=act_jepa", "policy.auxiliary.causal=true")),
}
DEFAULT = ("act", "act_jepa", "raw_state", "act_matched", "bc")


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
    names = [f"metaworld/{task}" for task in study.tasks]
    size = ["--no-image"] if study.image_size is None else ["--image-size", str(study.image_size)]
    count = study.training + study.heldout
    called("record_demonstrations.py", *names, "--out", str(folder), "--episodes", str(count), *size)


def train(study: Study, arm: str, seed: int, *, data: Path, folder: Path) -> float:
    """One run of train_policy.py, continued if it was stopped; median seconds of a step."""
    variant = ARMS[arm]
    called(
        "train_policy.py", f"demonstrations.root={data}", f"demonstrations.heldout_per_task={study.heldout}",
        f"run.dir={folder}", "resume=true", f"seed={seed}", "trainer.progress=false", "trainer.device=auto",
        f"trainer.max_steps={round(variant.steps * study.steps)}", *study.overrides, *variant.overrides,
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["time/step_s"] for line in lines if "time/step_s" in line)


def measure(study: Study, arm: str, folder: Path) -> Cell:
    """Probe and closed loop of a trained policy."""
    loaded = load_policy(folder)
    shown = demonstrations(loaded.settings)
    training, heldout = datasets(loaded.settings, shown, horizon=HORIZON)  # the same for all chunks
    config = ProbeConfig(budgets=study.budgets)
    batches = {
        "training": chunk_batches(training, batch_size=256, seed=1),
        "heldout": chunk_batches(heldout, batch_size=256, seed=1),
    }
    found = probe(loaded.policy, **batches, config=config)
    began = time.process_time()
    actor = PolicyActor(loaded.policy, execution=Execution(), memory=loaded.memory)
    settings = {"fingerprint": fingerprint(loaded.checkpoint)}
    success = closed_loop(study, Arm(name=arm, actors=(actor,), settings=(settings,)), folder / "episodes")
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "probe": [asdict(score) for score in found.scores],
        "probe_mean": asdict(found.mean),
        "probe_persistence": asdict(found.persistence) if found.persistence else None,
        "probe_converged": found.converged(),
        "success": success,
        "evaluation_cpu_s": time.process_time() - began,
        "parameters": sum(p.numel() for p in loaded.policy.parameters()),
        "heldout": {k.removeprefix("heldout/"): v for k, v in last.items() if k.startswith("heldout/")},
    }


def closed_loop(study: Study, arm: Arm, folder: Path) -> list[list[bool]]:
    """Success [tasks, episodes] on the test seeds."""
    protocol = TaskProtocol(tasks=tuple(f"metaworld/{t}" for t in study.tasks), episodes=study.episodes)
    return evaluate_arms([arm], protocol=protocol, folder=folder).success(arm.name)[0].tolist()


def report(name: str, study: Study, cells: dict[str, dict[int, Cell]], baselines: Cell) -> str:
    """Markdown of all cells there are."""
    budgets = [str(b) for b in study.budgets]
    head = [
        "arm",
        "seeds",
        *(f"probe RMSE, {b} steps" for b in budgets),
        *(f"ATE, {b} steps" for b in budgets),
    ]
    head += ["held-out action L1", "success (95 %)", "of each seed", "ms per training step", "parameters"]
    lines = [
        f"# ACT-JEPA, study `{name}`", "",
        f"{len(study.tasks)} Meta-World tasks, {study.training} demonstrations each, {study.heldout} held out, "
        f"{study.steps} steps of 64; {study.episodes} episodes per task on test seeds. The probe reads 30 coming "
        f"states from the frozen encoder, in z-scores, of held-out demonstrations; mean +- sd over training seeds.", "",
        "| " + " | ".join(head) + " |", "|---" * len(head) + "|",
    ]  # fmt: skip
    for what, success in baselines.items():
        found = rate(torch.tensor(success).reshape(1, -1).numpy())
        rest = " |" * (2 * len(budgets) + 1)
        lines.append(f"| {what} | |{rest} {found.value:.3f} ({found.low:.3f} to {found.high:.3f}) | | | |")
    for arm, found_cells in cells.items():
        mine = [found_cells[s] for s in sorted(found_cells)]
        values: list[str] = []
        for key in ("rmse", "ate"):
            values += [_mean([c["probe"][i][key] for c in mine]) for i in range(len(budgets))]
        table = torch.tensor([c["success"] for c in mine]).flatten(1).numpy()
        got = rate(table)
        each = " ".join(f"{v:.2f}" for v in table.mean(1))
        lines.append(
            f"| {arm} | {len(mine)} | "
            + " | ".join(values)
            + f" | {_mean([c['heldout']['action_l1'] for c in mine])} "
            f"| {got.value:.3f} ({got.low:.3f} to {got.high:.3f}) | {each} | "
            f"{1e3 * statistics.median(c['step_s'] for c in mine):.0f} | {mine[0]['parameters']:,} |"
        )
    still = next((c["probe_persistence"] for arm in cells.values() for c in arm.values()), None)
    if still is not None:
        lines += [
            "",
            f"Reading nothing: RMSE {still['rmse']:.3f}, ATE {still['ate']:.3f} if states stay as they are.",
        ]
    return "\n".join([*lines, "", *_against_act(study, cells), ""])


def _against_act(study: Study, cells: dict[str, dict[int, Cell]]) -> list[str]:
    """Ratios of the ATE to ACT's, same training seeds, and the gate."""
    lines = [
        "| arm against ACT | probe steps | ATE ratio of the means | ATE difference (95 %) | worst seed |",
        "|---|---|---|---|---|",
    ]
    if "act" not in cells:
        return []
    verdict = "Gate: ACT-JEPA was not run."
    for arm, mine in cells.items():
        seeds = sorted(mine.keys() & cells["act"].keys())
        if arm == "act" or not seeds:
            continue
        for i, budget in enumerate(study.budgets):
            a = [mine[s]["probe"][i]["ate"] for s in seeds]
            b = [cells["act"][s]["probe"][i]["ate"] for s in seeds]
            ratio, difference = statistics.fmean(a) / statistics.fmean(b), paired(a, b)
            worst = max(x / y for x, y in zip(a, b, strict=True))
            lines.append(
                f"| {arm} | {budget} | {ratio:.3f} | {difference.mean:+.3f} ({difference.low:+.3f} to "
                f"{difference.high:+.3f}) | {worst:.3f} |"
            )
            if arm == "act_jepa":
                passed = "pass" if ratio <= GATE else "fail"
                verdict = (
                    f"Gate: ATE of ACT-JEPA / ACT <= {GATE} at {budget} probe steps: {ratio:.3f}, {passed}."
                )
    return [*lines, "", verdict]


def _mean(values: list[float]) -> str:
    found = interval(values)
    return f"{found.mean:.3f}" + (f" +- {found.sd:.3f}" if found.count > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--arms", nargs="*", choices=sorted(ARMS), default=list(DEFAULT))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="training seeds")
    parser.add_argument("--runs", type=Path, default=Path("runs/act_jepa"), help="where cells are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--note", default="", help="a remark to store with the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    study, root = STUDIES[args.study], args.runs / args.study
    data = root / "demonstrations"
    record(study, data)
    for seed in args.seeds:
        for arm in args.arms:
            folder = root / f"{arm}_{seed}"
            if (folder / "cell.json").is_file():
                continue
            step_s = train(study, arm, seed, data=data, folder=folder)
            cell = {"step_s": step_s, **measure(study, arm, folder), **provenance()}
            write_json(folder / "cell.json", cell)
            scores = ", ".join(f"ATE({s['steps']}) {s['ate']:.3f}" for s in cell["probe"])
            print(
                f"{arm}, seed {seed}: {scores}, success {torch.tensor(cell['success']).float().mean():.3f}",
                flush=True,
            )
    baselines = {
        name: closed_loop(study, Arm(name=name, actors=(actor,), settings=({},)), root / "baselines")
        for name, actor in (("random", RandomActor()), ("expert", ExpertActor()))
    }
    cells: dict[str, dict[int, Cell]] = {}
    for arm in ARMS:
        for path in sorted(root.glob(f"{arm}_[0-9]*/cell.json")):
            if (seed_text := path.parent.name.removeprefix(f"{arm}_")).isdigit():
                cells.setdefault(arm, {})[int(seed_text)] = json.loads(path.read_text())
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
