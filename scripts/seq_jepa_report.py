"""Gates, tables and the figure of the seq-JEPA study, from its stored cells."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from seq_jepa_arms import ARMS

from worldmodel.evaluation.intervals import interval, paired

Cells = Sequence[dict[str, Any]]
LENGTHS = range(1, 9)
PATHS = (1, 2, 3, 5)


@dataclass(frozen=True)
class Term:
    """A number of one arm."""

    arm: str
    score: str


@dataclass(frozen=True)
class Gate:
    """The mean over seeds of term - minus must reach the threshold; without a threshold it is reported only.

    Differences of accuracies are in points, of R^2 and losses as they are.
    """

    name: str
    term: Term
    minus: Term | None
    threshold: float | None
    scale: float = 1.0


def _accuracy(name: str, a: Term, b: Term, threshold: float | None) -> Gate:
    return Gate(name, a, b, threshold, scale=100.0)


ACT = {n: f"acc_aggregate/{n}" for n in LENGTHS}
GATES: dict[str, tuple[Gate, ...]] = {
    "digits": (
        Gate("loss, shuffled - true, act", Term("act", "health/error_shuffled"), Term("act", "health/error"), 0.5),
        Gate("feature std, act", Term("act", "health/z_std"), None, 0.8),
        _accuracy("acc aggregate(5), act - random init", Term("act", ACT[5]), Term("random", ACT[5]), 5.0),
        _accuracy("acc aggregate(5) - aggregate(1), act", Term("act", ACT[5]), Term("act", ACT[1]), 1.0),
        _accuracy("acc aggregate(5) - mean-pooled z(5), act", Term("act", ACT[5]), Term("act", "acc_mean/5"), None),
        _accuracy("acc aggregate(5), act - no act", Term("act", ACT[5]), Term("no_act", ACT[5]), None),
        Gate("relative R2, act - no act", Term("act", "r2_relative"), Term("no_act", "r2_relative"), 0.03),
        Gate("relative R2, act - random init", Term("act", "r2_relative"), Term("random", "r2_relative"), 0.12),
        Gate("PI(3), full - no actions, act", Term("act", "path/3/full"), Term("act", "path/3/actions_zeroed"), 0.5),
        Gate("PI(3), full - last action, act", Term("act", "path/3/full"), Term("act", "path/3/last_action"), 0.4),
        Gate("PI(3), M_tr = 3 - M_tr = 1", Term("act", "path/3/full"), Term("act_m1", "path/3/full"), 0.1),
        Gate("PI(3), full - vision zeroed, act", Term("act", "path/3/full"), Term("act", "path/3/vision_zeroed"), None),
        Gate("PI(3), act - random init", Term("act", "path/3/full"), Term("random", "path/3/full"), None),
        Gate(
            "PI(3), full - random aggregator on trained z",
            Term("act", "path/3/full"),
            Term("act", "path/3/random_aggregator"),
            None,
        ),
        Gate(
            "pose R2 of the aggregate, act - no act",
            Term("act", "r2_aggregate_pose"),
            Term("no_act", "r2_aggregate_pose"),
            0.5,
        ),
    ),
    "objects30": (
        Gate("PI(3), full - no actions, act", Term("act", "path/3/full"), Term("act", "path/3/actions_zeroed"), 0.25),
        Gate("relative R2, act - no act", Term("act", "r2_relative"), Term("no_act", "r2_relative"), 0.1),
        Gate("relative R2, act - random init", Term("act", "r2_relative"), Term("random", "r2_relative"), 0.15),
        Gate(
            "pose R2 of the aggregate, act - no act",
            Term("act", "r2_aggregate_pose"),
            Term("no_act", "r2_aggregate_pose"),
            0.5,
        ),
        Gate("PI(3), full - last action, act", Term("act", "path/3/full"), Term("act", "path/3/last_action"), 0.15),
        Gate("feature std, act", Term("act", "health/z_std"), None, None),
    ),
    "objects90": (
        _accuracy("acc aggregate(5) - mean-pooled z(5), act", Term("act", ACT[5]), Term("act", "acc_mean/5"), 3.0),
        _accuracy("acc aggregate(8) - aggregate(1), act", Term("act", ACT[8]), Term("act", ACT[1]), 20.0),
        _accuracy("acc aggregate(5), act - random init", Term("act", ACT[5]), Term("random", ACT[5]), 20.0),
        Gate("relative R2, act - no act", Term("act", "r2_relative"), Term("no_act", "r2_relative"), None),
        Gate("feature std, act", Term("act", "health/z_std"), None, None),
    ),
}  # fmt: skip


def values(cells: Cells, term: Term) -> dict[int, float]:
    """The number by seed."""
    return {
        c["seed"]: c["scores"][term.score]
        for c in cells
        if c["arm"] == term.arm and term.score in c["scores"]
    }


def gates(cells: Cells, *, data: str) -> list[dict[str, Any]]:
    """Every gate of a data set: its paired difference over the seeds both arms have, and the verdict."""
    rows = []
    for gate in GATES[data]:
        a = values(cells, gate.term)
        b = values(cells, gate.minus) if gate.minus else dict.fromkeys(a, 0.0)
        seeds = sorted(a.keys() & b.keys())
        row: dict[str, Any] = {"gate": gate.name, "threshold": gate.threshold, "seeds": seeds}
        if seeds:
            found = paired([gate.scale * a[s] for s in seeds], [gate.scale * b[s] for s in seeds])
            row |= {**asdict(found), "worst": min(gate.scale * (a[s] - b[s]) for s in seeds)}
            row["passed"] = None if gate.threshold is None else found.mean >= gate.threshold
        rows.append(row)
    return rows


Row = tuple[str, str, Callable[[float], str]]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _three(value: float) -> str:
    return f"{value:.3f}"


def _degrees(value: float) -> str:
    return f"{value:.1f}"


ROWS: list[Row] = [
    ("loss on test items (1 - cos)", "health/error", _three),
    ("the same, shuffled targets", "health/error_shuffled", _three),
    ("feature std (1 = isotropic)", "health/z_std", _three),
    ("effective rank of z, centred", "health/rankme_centered", _degrees),
    *((f"acc aggregate, M_val = {m} [%]", f"acc_aggregate/{m}", _percent) for m in LENGTHS),
    *((f"acc mean-pooled z, {m} view{'s' * (m > 1)} [%]", f"acc_mean/{m}", _percent) for m in LENGTHS),
    ("relative rotation R2 from (z_1, z_2)", "r2_relative", _three),
    ("- linear head", "r2_relative_linear", _three),
    ("- angle of error [degrees]", "degrees_relative", _degrees),
    ("- angle of error of the mean rotation [degrees]", "degrees_relative_constant", _degrees),
    ("absolute rotation R2 from z", "r2_absolute", _three),
    ("- as a rotation vector", "r2_absolute_vector", _three),
    ("- angle of error [degrees]", "degrees_absolute", _degrees),
    ("pose R2 of the aggregate (last views of two sequences)", "r2_aggregate_pose", _three),
    *(
        (f"path integration R2, M = {m}, {title}", f"path/{m}/{name}", _three)
        for name, title in (
            ("full", "full"),
            ("actions_zeroed", "actions zeroed"),
            ("vision_zeroed", "vision zeroed"),
            ("last_action", "last action only"),
            ("random_aggregator", "untrained aggregator"),
        )
        for m in PATHS
    ),
    ("retrieval MRR", "retrieval/mrr", _three),
    ("- chance", "retrieval/chance_mrr", _three),
    ("retrieval Hit@1 [%]", "retrieval/hit1", _percent),
    ("- chance [%]", "retrieval/chance_hit1", _percent),
    ("retrieval Hit@5 [%]", "retrieval/hit5", _percent),
    ("- chance [%]", "retrieval/chance_hit5", _percent),
]  # fmt: skip


def _cell(found: dict[int, float], show: Callable[[float], str]) -> str:
    if not found:
        return "-"
    summary = interval([found[s] for s in sorted(found)])
    spread = f" +- {show(summary.sd)}" if summary.count > 1 else ""
    return f"{show(summary.mean)}{spread}"


def report(result: dict[str, Any]) -> str:
    """Markdown: gates with verdicts, then every number of every arm."""
    cells: Cells = result["cells"]
    arms = [name for name in ARMS if any(c["arm"] == name for c in cells)]
    lines = [
        f"# seq-JEPA, {result['data']}",
        "",
        f"Commit of the report {result['commit']}; cells trained at "
        f"{', '.join(sorted({c['trained_at']['commit'] for c in cells}))}. {result['note']}",
        f"Arms not run: {', '.join(ARMS[a].title for a in ARMS if a not in arms) or 'none'}.",
        "",
        "## Gates",
        "",
        "Mean over seeds of the paired difference, its 95 % t interval and the worst seed. Accuracies in points.",
        "",
        "| gate | threshold | mean | 95 % interval | worst | seeds | verdict |",
        "|---" * 7 + "|",
    ]
    for row in result["gates"]:
        threshold = "report only" if row["threshold"] is None else f">= {row['threshold']:g}"
        if not row["seeds"]:
            lines.append(f"| {row['gate']} | {threshold} | | | | 0 | not run |")
            continue
        verdict = {None: "-", True: "pass", False: "FAIL"}[row["passed"]]
        lines.append(
            f"| {row['gate']} | {threshold} | {row['mean']:.3f} | {row['low']:.3f} .. {row['high']:.3f} | "
            f"{row['worst']:.3f} | {row['count']} | {verdict} |"
        )
    seeds = {name: len({c["seed"] for c in cells if c["arm"] == name}) for name in arms}
    lines += ["", "## All figures", "", "Mean +- sample standard deviation over seeds.", ""]
    lines.append("| | " + " | ".join(f"{ARMS[a].title} ({seeds[a]})" for a in arms) + " |")
    lines.append("|---" * (len(arms) + 1) + "|")
    for title, score, show in ROWS:
        entries = [_cell(values(cells, Term(arm, score)), show) for arm in arms]
        if any(e != "-" for e in entries):
            lines.append(f"| {title} | " + " | ".join(entries) + " |")
    return "\n".join([*lines, ""])


def figure(result: dict[str, Any], path: Path) -> None:
    """Accuracy by number of views, path integration beside its controls, relative R^2 of every arm."""
    cells: Cells = result["cells"]
    arms = [name for name in ARMS if any(c["arm"] == name for c in cells)]
    drawing, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.2))
    shown = [a for a in ("random", "act", "no_act") if a in arms]
    for colour, arm in enumerate(shown):
        for kind, style in (("aggregate", "-"), ("mean", "--")):
            found = {m: values(cells, Term(arm, f"acc_{kind}/{m}")) for m in LENGTHS}
            lengths = [m for m in LENGTHS if found[m]]
            label = f"{ARMS[arm].title}, {'aggregate' if kind == 'aggregate' else 'mean-pooled z'}"
            curve = [100 * _mean(found[m]) for m in lengths]
            left.plot(lengths, curve, style, marker="o", color=f"C{colour}", label=label)
    left.set(xlabel="views M_val", ylabel="linear probe accuracy [%]")
    names = ("full", "random_aggregator", "vision_zeroed", "last_action", "actions_zeroed")
    for name in names if "act" in arms else ():
        curve = [_mean(values(cells, Term("act", f"path/{m}/{name}"))) for m in PATHS]
        middle.plot(PATHS, curve, "o-", label=name.replace("_", " "))
    middle.set(xlabel="views M", ylabel="path integration R2, act")
    relative = {a: values(cells, Term(a, "r2_relative")) for a in arms}
    right.barh(
        [ARMS[a].title for a in arms],
        [_mean(relative[a]) for a in arms],
        xerr=[interval(list(relative[a].values())).sd if len(relative[a]) > 1 else 0.0 for a in arms],
    )
    right.invert_yaxis()
    right.set(xlabel="relative rotation R2 from (z_1, z_2)")
    for axis in (left, middle):
        axis.legend(fontsize=7)
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


def _mean(found: dict[int, float]) -> float:
    return interval(list(found.values())).mean if found else math.nan
