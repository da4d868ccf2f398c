"""Tables of study_label_efficiency.py, made of its stored cells."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from worldmodel.evaluation.intervals import MeanOverSeeds, interval, paired

Cell = dict[str, Any]
Family = Mapping[int, Sequence[Cell]]  # by seed
MODERATE = 1
BAR = 2.0  # points of mAP over scratch at 20 scenes
METRICS = {"3d": "3-D mAP", "bev": "BEV mAP", "centre": "mAP by centres"}


def by_class(cell: Cell, metric: str) -> dict[str, float | None]:
    """AP R40 in percent of the detector's classes: of KITTI's moderate objects by overlap, of all by centres."""
    if metric == "centre":
        return {name: found["centre"]["R40"] for name, found in cell["sensor_frame"].items()}
    return {name: cell["evaluation"][name][metric]["R40"][MODERATE] for name in cell["sensor_frame"]}


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
    classes = list(next(iter(next(iter(next(iter(cells.values())).values())).values()))["sensor_frame"])
    lines = [
        "# Labels and pretraining", "",
        f"{protocol['detector']}, {protocol['steps']} steps whatever the labels, mode {protocol['mode']}; encoders "
        f"pretrained for {protocol['pretraining_steps']} steps on all {protocol['training']} training scenes without "
        f"labels. AP R40 of the last checkpoint on held-out scenes, in percent, mean +- sd over seeds: of KITTI's "
        f"moderate objects at its least 3-D and BEV overlaps, and of all with a difficulty by centres less than 1 m "
        f"(cars) or 0.6 m apart; within the detector's range. The difference to scratch is paired by seed (same "
        f"labelled scenes, batches and initialisation), with its 95 % interval.",
    ]  # fmt: skip
    for script, words in (("train_detector", "extra"), ("pretrain_lidar", "pretraining_extra")):
        if protocol[words]:
            lines[-1] += f" Of {script}.py: `{' '.join(protocol[words])}`."
    verdicts = []
    compared = ["arm", "seeds"]
    compared += [word for told in METRICS.values() for word in (told, "difference to scratch (95 %)")]
    for scenes in budgets:
        mine = _of_budgets(cells, [scenes])
        scratch = mine.get("scratch", {})
        head = [*compared, *(f"{name}, 3-D" for name in classes)]
        lines += ["", f"## {scenes} labelled scenes", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for arm, family in mine.items():
            found = [by_class(family[s][0], "3d") for s in sorted(family)]
            row = [*_row(arm, family, scratch), *(_mean([f[name] for f in found]) for name in classes)]
            lines.append(f"| {' | '.join(row)} |")
            gain = _against(family, scratch, "3d")
            if scenes == 20 and gain and not arm.startswith("scratch"):
                reached = "reached" if gain.mean >= BAR else "not reached"
                verdicts.append(f"{arm} {gain.mean:+.2f} ({reached})")
    mine = _of_budgets(cells, budgets)
    if len(budgets) > 1 and len(mine) > 1:
        lines += ["", f"## Mean over {', '.join(map(str, budgets))} labelled scenes", ""]
        lines += [f"| {' | '.join(compared)} |", "|---" * len(compared) + "|"]
        lines += [f"| {' | '.join(_row(a, family, mine.get('scratch', {})))} |" for a, family in mine.items()]
    lines += _between(cells, budgets)
    if verdicts:
        lines += ["", f"At 20 scenes, {BAR:+g} points of 3-D mAP over scratch: {', '.join(verdicts)}."]
    known = {arm: rows for arm, rows in costs.items() if rows}
    if known:
        lines += ["", "| pretraining | runs | CPU min | peak memory, MiB |", "|---|---|---|---|"]
        for arm, rows in known.items():
            minutes = statistics.median(r["cpu_s"] for r in rows) / 60
            lines.append(f"| {arm} | {len(rows)} | {minutes:.1f} | {max(r['peak_mib'] for r in rows):.0f} |")
    return "\n".join([*lines, ""])


def _between(cells: Mapping[str, Mapping[int, Mapping[int, Cell]]], budgets: Sequence[int]) -> list[str]:
    """Every objective against every other: a table of the differences in 3-D mAP at each number of labels."""
    pairs = list(itertools.combinations([arm for arm in cells if not arm.startswith("scratch")], 2))
    if not pairs:
        return []
    columns = [[scenes] for scenes in budgets] + ([list(budgets)] if len(budgets) > 1 else [])
    head = ["difference", *(f"{c[0]} scenes" if len(c) == 1 else "mean" for c in columns)]
    lines = [
        "", "## Between objectives", "",
        f"3-D mAP of the first less that of the second, paired by seed, with 95 % intervals, none widened for the "
        f"{len(pairs) * len(columns)} of them.",
        "", f"| {' | '.join(head)} |", "|---" * len(head) + "|",
    ]  # fmt: skip
    of_columns = [_of_budgets(cells, column) for column in columns]
    for first, second in pairs:
        row = [_difference(mine.get(first, {}), mine.get(second, {}), "3d") for mine in of_columns]
        lines.append(f"| {first} - {second} | {' | '.join(row)} |")
    return lines


def _of_budgets(
    cells: Mapping[str, Mapping[int, Mapping[int, Cell]]], budgets: Sequence[int]
) -> dict[str, Family]:
    """By arm and seed the cells of all these numbers of labels; what does not have them all is left out."""
    whole: dict[str, Family] = {}
    for arm, by_scenes in cells.items():
        families = [by_scenes.get(scenes, {}) for scenes in budgets]
        seeds = set(families[0]).intersection(*families[1:])
        if seeds:
            whole[arm] = {seed: [family[seed] for family in families] for seed in sorted(seeds)}
    return whole


def _row(arm: str, family: Family, scratch: Family) -> list[str]:
    row = [arm, str(len(family))]
    for metric in METRICS:
        row.append(_mean([_score(cells, metric) for cells in family.values()]))
        row.append(_difference(family, scratch, metric) if arm != "scratch" else "")
    return row


def _score(cells: Sequence[Cell], metric: str) -> float:
    return statistics.fmean(mean_ap(cell, metric) for cell in cells)


def _against(family: Family, scratch: Family, metric: str) -> MeanOverSeeds | None:
    """The difference of each seed, averaged: cells of one seed share their pretraining, seeds are drawn anew."""
    both = sorted(set(family) & set(scratch))
    if not both:
        return None
    return paired([_score(family[s], metric) for s in both], [_score(scratch[s], metric) for s in both])


def _difference(family: Family, scratch: Family, metric: str) -> str:
    found = _against(family, scratch, metric)
    if found is None:
        return ""
    told = f"{found.mean:+.2f}" + (f" ({found.low:+.2f} to {found.high:+.2f})" if found.count > 1 else "")
    return told + (f", {found.count} seeds" if found.count < len(family) else "")


def _mean(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    found = interval(known)
    return f"{found.mean:.2f}" + (f" +- {found.sd:.2f}" if found.count > 1 else "")
