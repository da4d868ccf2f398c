"""Tables of study_label_efficiency.py, made of its stored cells."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from worldmodel.evaluation.intervals import interval, paired

Cell = dict[str, Any]
MODERATE = 1
BAR = 2.0  # points of mAP over scratch at 20 scenes
METRICS = {"3d": "3-D mAP", "bev": "BEV mAP", "centre": "mAP by centres"}


def by_class(cell: Cell, metric: str) -> dict[str, float | None]:
    """AP R40 in percent: of KITTI's moderate objects by overlap, or of all its objects by centres."""
    if metric == "centre":
        return {name: found["centre"]["R40"] for name, found in cell["sensor_frame"].items()}
    return {name: found[metric]["R40"][MODERATE] for name, found in cell["evaluation"].items()}


def mean_ap(cell: Cell, metric: str = "3d") -> float:
    """Mean over the classes in percent; a class without objects is left out."""
    return statistics.fmean(v for v in by_class(cell, metric).values() if v is not None)


def report(
    protocol: Mapping[str, Any],
    cells: Mapping[str, Mapping[int, Mapping[int, Cell]]],
    costs: Mapping[str, Sequence[Mapping[str, float]]],
) -> str:
    """Markdown of all cells there are: by arm, labelled scenes and seed."""
    budgets = sorted({scenes for by_scenes in cells.values() for scenes in by_scenes})
    classes = list(next(iter(next(iter(next(iter(cells.values())).values())).values()))["evaluation"])
    lines = [
        "# Labels and pretraining", "",
        f"{protocol['detector']}, {protocol['steps']} steps whatever the labels, mode {protocol['mode']}; encoders "
        f"pretrained for {protocol['pretraining_steps']} steps on all {protocol['training']} training scenes without "
        f"labels. AP R40 of the last checkpoint on held-out scenes, in percent, mean +- sd over seeds: of KITTI's "
        f"moderate objects at its least 3-D and BEV overlaps, and of all its objects by centres less than 1 m (cars) "
        f"or 0.6 m apart. The difference to scratch is paired by seed (same labelled scenes, batches and "
        f"initialisation), with its 95 % interval.",
    ]  # fmt: skip
    if words := [*protocol["extra"], *protocol.get("pretraining_extra", ())]:
        lines[-1] += f" Settings: `{' '.join(words)}`."
    verdicts = []
    for scenes in budgets:
        mine = {arm: by_scenes[scenes] for arm, by_scenes in cells.items() if scenes in by_scenes}
        head = ["arm", "seeds"]
        head += [word for told in METRICS.values() for word in (told, "difference to scratch (95 %)")]
        head += [f"{name}, 3-D" for name in classes]
        lines += ["", f"## {scenes} labelled scenes", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for arm, family in mine.items():
            seeds = sorted(family)
            row = [arm, str(len(seeds))]
            for metric in METRICS:
                row.append(_mean([mean_ap(family[s], metric) for s in seeds]))
                row.append(_difference(family, mine.get("scratch", {}), metric) if arm != "scratch" else "")
            row += [_mean([by_class(family[s], "3d")[c] for s in seeds]) for c in classes]
            lines.append(f"| {' | '.join(row)} |")
            both = [s for s in seeds if s in mine.get("scratch", {})]
            if scenes == 20 and both and not arm.startswith("scratch"):
                gain = statistics.fmean(mean_ap(family[s]) - mean_ap(mine["scratch"][s]) for s in both)
                verdicts.append(f"{arm} {gain:+.2f} ({'reached' if gain >= BAR else 'not reached'})")
    if verdicts:
        lines += ["", f"At 20 scenes, {BAR:+g} points of 3-D mAP over scratch: {', '.join(verdicts)}."]
    known = {arm: rows for arm, rows in costs.items() if rows}
    if known:
        lines += ["", "| pretraining | runs | CPU min | peak memory, MiB |", "|---|---|---|---|"]
        for arm, rows in known.items():
            minutes = statistics.median(r["cpu_s"] for r in rows) / 60
            lines.append(f"| {arm} | {len(rows)} | {minutes:.1f} | {max(r['peak_mib'] for r in rows):.0f} |")
    return "\n".join([*lines, ""])


def _difference(family: Mapping[int, Cell], scratch: Mapping[int, Cell], metric: str) -> str:
    both = sorted(set(family) & set(scratch))
    if not both:
        return ""
    found = paired([mean_ap(family[s], metric) for s in both], [mean_ap(scratch[s], metric) for s in both])
    return f"{found.mean:+.2f}" + (f" ({found.low:+.2f} to {found.high:+.2f})" if len(both) > 1 else "")


def _mean(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    found = interval(known)
    return f"{found.mean:.2f}" + (f" +- {found.sd:.2f}" if found.count > 1 else "")
