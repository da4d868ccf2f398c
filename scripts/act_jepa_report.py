"""Tables of study_act_jepa.py, made of its stored cells."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from act_jepa_arms import ARMS, Study

from policies.intervals import seeds_and_problems
from policies.report import rate
from worldmodel.evaluation.intervals import interval, paired

Cell = dict[str, Any]
Cells = dict[str, dict[int, Cell]]  # by arm and training seed
GATE = 0.92  # ATE of ACT-JEPA over that of ACT, on the mean of the seeds


def cell_folder(root: Path, arm: str, shown: int, seed: int) -> Path:
    """Where the cell of an arm is."""
    return root / f"{arm}-{shown}-{seed}"


def stored_cells(root: Path, study: Study) -> dict[int, Cells]:
    """All finished cells under a folder, by the number of demonstrations shown."""
    found: dict[int, Cells] = {}
    for shown in study.shown:
        for arm in ARMS:
            for path in sorted(root.glob(f"{cell_folder(root, arm, shown, 0).name[:-1]}*/cell.json")):
                seed = int(path.parent.name.rsplit("-", 1)[1])
                found.setdefault(shown, {}).setdefault(arm, {})[seed] = json.loads(path.read_text())
    return found


def report(name: str, study: Study, cells: dict[int, Cells], baselines: Mapping[str, Any]) -> str:
    """Markdown of all cells there are."""
    seen = "states and pictures" if study.image_size else "states and the other numbers of the simulator"
    distractors = f" States carry {study.distractors} numbers of noise." if study.distractors else ""
    lines = [
        f"# ACT-JEPA, study `{name}`", "",
        f"{len(study.tasks)} task{'s' * (len(study.tasks) > 1)} ({', '.join(study.tasks)}) from {seen}, "
        f"{study.steps} steps of 64; {study.heldout} demonstrations per task held out; {study.episodes} episodes per "
        f"task on test seeds, the same for all arms.{distractors} The probe reads 30 coming states from the frozen "
        f"encoder, in z-scores, of held-out demonstrations. Mean +- sd over training seeds; success with 95 % "
        f"intervals over training seeds and episodes.",
    ]  # fmt: skip
    for shown, mine in cells.items():
        lines += ["", f"## {shown} demonstrations per task", "", *_table(study, mine, baselines)]
        lines += ["", *_against_act(study, mine)]
    return "\n".join([*lines, ""])


def _table(study: Study, cells: Cells, baselines: Mapping[str, Any]) -> list[str]:
    budgets = study.budgets
    head = ["arm", "seeds", *(f"probe {what}, {b} steps" for what in ("RMSE", "ATE") for b in budgets)]
    head += [
        "held-out L1, first action",
        "of the chunk",
        *(["action L1, transferred"] if study.transfer else []),
    ]
    head += [f"success, executing {e}" for e in study.execute]
    head += ["of each seed", "ms per training step", "steps", "trained parameters"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    empty = " |" * (2 * len(budgets) + 2 + bool(study.transfer))
    for what, success in baselines.items():
        lines.append(f"| {what} | |{empty} {_rate([success])} |" + " |" * (len(study.execute) + 3))
    for arm, family in cells.items():
        mine = [family[s] for s in sorted(family)]
        values = [
            _mean([c["probe"][i][k] for c in mine]) for k in ("rmse", "ate") for i in range(len(budgets))
        ]
        for part in ("first", "chunk"):
            known = [c["action_l1"][part] for c in mine if c["action_l1"]]
            values.append(_mean(known) if known and (part == "first" or arm != "bc") else "")
        if study.transfer:
            values.append(_mean([c["transfer"]["l1"] for c in mine]) if mine[0]["transfer"] else "")
        # One action at a time: there is nothing to choose for policies without chunks.
        values += [
            _rate([c["success"].get(str(e), c["success"].get("1")) for c in mine]) for e in study.execute
        ]
        each = " ".join(f"{np.mean(_success(c, study.execute[-1])):.2f}" for c in mine)
        step_ms = 1e3 * statistics.median(c["step_s"] for c in mine)
        steps = round((ARMS[arm].steps + ARMS[arm].first_steps) * study.steps)
        lines.append(
            f"| {arm} | {len(mine)} | {' | '.join(values)} | {each} | {step_ms:.0f} | {steps} | "
            f"{mine[0]['parameters']:,} |"
        )
    lines += ["", "Milliseconds are of the wall, measured beside other work: compare, do not quote."]
    still = next((c["probe_persistence"] for family in cells.values() for c in family.values()), None)
    if still is not None:
        told = f"RMSE {still['rmse']:.3f}, ATE {still['ate']:.3f}"
        lines += ["", f"If states stayed as they are: {told}."]
    return lines


def _against_act(study: Study, cells: Cells) -> list[str]:
    """Ratios of the ATE to ACT's and paired differences of success, same training seeds and episodes; the gate."""
    if "act" not in cells:
        return []
    head = ["arm against ACT", "seeds", *(f"ATE ratio, {b} steps (worst seed)" for b in study.budgets)]
    head += [f"ATE difference, {study.budgets[-1]} steps (95 %)"]
    head += [f"success difference, executing {e} (95 %)" for e in study.execute]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    verdicts = []
    for arm, family in cells.items():
        seeds = sorted(family.keys() & cells["act"].keys())
        if arm == "act" or not seeds:
            continue
        values = []
        for i, budget in enumerate(study.budgets):
            a, b = ([c[s]["probe"][i]["ate"] for s in seeds] for c in (family, cells["act"]))
            ratio = statistics.fmean(a) / statistics.fmean(b)
            values.append(f"{ratio:.3f} ({max(x / y for x, y in zip(a, b, strict=True)):.3f})")
            if arm == "act_jepa":
                verdicts.append(
                    f"{ratio:.3f} at {budget} probe steps ({'pass' if ratio <= GATE else 'fail'})"
                )
        difference = paired(a, b)
        values.append(f"{difference.mean:+.3f}" + _range(difference) * (len(seeds) > 1))
        for execute in study.execute:
            mine, its = (
                np.array([np.ravel(_success(c[s], execute)) for s in seeds], float)
                for c in (family, cells["act"])
            )
            found = seeds_and_problems(mine - its)
            values.append(f"{found.value:+.3f}{_range(found)}")
        lines.append(f"| {arm} | {len(seeds)} | {' | '.join(values)} |")
    if verdicts:
        lines += ["", f"Gate, ATE of ACT-JEPA / ACT <= {GATE}: {', '.join(verdicts)}."]
    return lines


def _success(cell: Cell, execute: int) -> Any:
    return cell["success"].get(str(execute), cell["success"].get("1"))


def _range(found: Any) -> str:
    return f" ({found.low:+.3f} to {found.high:+.3f})"


def _rate(success: list[Any]) -> str:
    found = rate(np.array(success).reshape(len(success), -1))
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _mean(values: list[float]) -> str:
    found = interval(values)
    return f"{found.mean:.3f}" + (f" +- {found.sd:.3f}" if found.count > 1 else "")
