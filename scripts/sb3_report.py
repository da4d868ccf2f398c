"""What study_sb3.py found, as tables and learning curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from policies.report import rate
from policies.sb3_study import RLProtocol
from worldmodel.evaluation.intervals import interval, paired

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Cell = dict[str, Any]
Cells = dict[str, dict[int, Cell]]  # by arm and seed


def steps_to(cell: Cell, success: float) -> int | None:
    """Environment steps until an evaluation first reached this success."""
    return next((p["env_steps"] for p in cell["curve"] if p["success"] >= success), None)


def report(
    protocol: RLProtocol,
    cells: Cells,
    titles: Mapping[str, str],
    *,
    baseline: list[bool],
    pretraining: Sequence[float],
) -> str:
    """Markdown of all cells there are.

    Args:
        titles: of the arms.
        baseline: success of random actions on the final problems.
        pretraining: seconds of each world model.
    """
    x, y = protocol.layout
    lines = [
        "# PPO on Two Rooms from pictures", "",
        f"GoalTask(TwoRooms), layout ({x:g}, {y:g}), {protocol.max_steps} steps per episode, "
        f"{protocol.env_steps} of training. PPO: {protocol.envs} environments, {protocol.rollout} steps, "
        f"batch {protocol.batch}, {protocol.epochs} epochs, learning rate {protocol.lr:g}, gamma {protocol.gamma:g}, "
        "otherwise defaults. Final "
        f"success: deterministic actions on {len(baseline)} {protocol.split} problems, 95 % interval (Wilson; with "
        f"several seeds, bootstrap over seeds and problems). Success on the way: mean over the evaluations, on "
        f"{protocol.curve_problems} problems.", "",
        "| features | seeds | final success (95 %) | of each seed | success on the way | steps to 0.5 | "
        "CPU s of training | trained parameters |",
        "|---" * 8 + "|",
        f"| random actions | | {_rate([baseline])} | | | | | |",
    ]  # fmt: skip
    for arm, found in cells.items():
        mine = [found[s] for s in sorted(found)]
        each = " ".join(f"{np.mean(c['success']):.2f}" for c in mine)
        half = " ".join(str(steps_to(c, 0.5) or "-") for c in mine)
        seconds = float(np.mean([c["curve"][-1]["cpu_s"] for c in mine]))
        lines.append(
            f"| {titles[arm]} | {len(mine)} | {_rate([c['success'] for c in mine])} | {each} | "
            f"{_mean([_on_the_way(c) for c in mine])} | {half} | {seconds:.0f} | {mine[0]['trained_parameters']:,} |"
        )
    lines += ["", "Against stable-baselines3's extractor, paired by seed:", "",
              "| features | final success (95 %) | success on the way (95 %) |", "|---|---|---|"]  # fmt: skip
    plain = cells.get("plain", {})
    for arm, found in cells.items():
        seeds = sorted(found.keys() & plain.keys())
        if arm != "plain" and len(seeds) > 1:
            pair = [(found[s], plain[s]) for s in seeds]
            final = _difference([(np.mean(a["success"]), np.mean(b["success"])) for a, b in pair])
            way = _difference([(_on_the_way(a), _on_the_way(b)) for a, b in pair])
            lines.append(f"| {titles[arm]} | {final} | {way} |")
    seconds = ", ".join(f"{s:.0f}" for s in pretraining)
    last = (
        f"Seed i starts from world model i of {len(pretraining)}, counted in turns. Pretraining them took {seconds} s, "
        f"once, for all layouts; it is not part of the CPU seconds above."
    )
    return "\n".join([*lines, "", last, ""])


def _on_the_way(cell: Cell) -> float:
    return float(np.mean([p["success"] for p in cell["curve"]]))


def _rate(success: list[list[bool]]) -> str:
    found = rate(np.array(success))
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _mean(values: list[float]) -> str:
    found = interval(values)
    return f"{found.mean:.3f}" + (f" +- {found.sd:.3f}" if found.count > 1 else "")


def _difference(pairs: list[tuple[Any, Any]]) -> str:
    found = paired([float(a) for a, _ in pairs], [float(b) for _, b in pairs])
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def figure(cells: Cells, titles: Mapping[str, str], *, baseline: list[bool], path: Path) -> None:
    """Success against environment steps and CPU seconds: means over seeds, shaded from lowest to highest."""
    drawing, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for axis, key, label in zip(
        axes, ("env_steps", "cpu_s"), ("environment steps", "CPU seconds of training"), strict=True
    ):
        for arm, found in cells.items():
            curves = [c["curve"] for c in found.values()]
            places = np.mean([[p[key] for p in curve] for curve in curves], axis=0)
            success = np.array([[p["success"] for p in curve] for curve in curves])
            axis.plot(places, success.mean(0), label=titles[arm])
            axis.fill_between(places, success.min(0), success.max(0), alpha=0.15)
        axis.axhline(float(np.mean(baseline)), color="0.6", ls=":", label="random actions")
        axis.set(xlabel=label, ylim=(-0.02, 1.02))
    axes[0].set_ylabel("success")
    axes[0].legend(fontsize=7)
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)
    plt.close(drawing)
