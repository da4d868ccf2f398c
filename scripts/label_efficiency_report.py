"""Tables of study_label_efficiency.py, made of its stored cells."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from worldmodel.evaluation.intervals import interval, paired

Cell = dict[str, Any]
MODERATE = 1
BAR = 2.0  # points of mAP over scratch at 20 scenes


def mean_ap(cell: Cell) -> float:
    """Mean over the classes of the 3-D AP R40, moderate, in percent; a class without objects is left out."""
    values = [m["3d"]["R40"][MODERATE] for m in cell["evaluation"].values()]
    return statistics.fmean(v for v in values if v is not None)


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
        f"labels. 3-D AP, R40, moderate, of the last checkpoint on held-out scenes, in percent: mean +- sd over seeds. "
        f"The difference to scratch is paired by seed (same labelled scenes, batches and initialisation), with its "
        f"95 % interval.",
    ]  # fmt: skip
    verdicts = []
    for scenes in budgets:
        mine = {arm: by_scenes[scenes] for arm, by_scenes in cells.items() if scenes in by_scenes}
        head = ["arm", "seeds", "mAP", "difference to scratch (95 %)", *classes]
        lines += [
            "",
            f"## {scenes} labelled scenes",
            "",
            "| " + " | ".join(head) + " |",
            "|---" * len(head) + "|",
        ]
        for arm, family in mine.items():
            seeds = sorted(family)
            values = [mean_ap(family[s]) for s in seeds]
            difference = ""
            both = [s for s in seeds if s in mine.get("scratch", {})]
            if arm != "scratch" and both:
                found = paired(
                    [mean_ap(family[s]) for s in both], [mean_ap(mine["scratch"][s]) for s in both]
                )
                difference = f"{found.mean:+.2f}" + (
                    f" ({found.low:+.2f} to {found.high:+.2f})" if len(both) > 1 else ""
                )
                if scenes == 20 and not arm.startswith("scratch"):
                    verdicts.append(
                        f"{arm} {found.mean:+.2f} ({'reached' if found.mean >= BAR else 'not reached'})"
                    )
            each = [
                _mean([family[s]["evaluation"][c]["3d"]["R40"][MODERATE] for s in seeds]) for c in classes
            ]
            lines.append(f"| {arm} | {len(seeds)} | {_mean(values)} | {difference} | {' | '.join(each)} |")
    if verdicts:
        lines += ["", f"At 20 scenes, {BAR:+g} points of mAP over scratch: {', '.join(verdicts)}."]
    known = {arm: rows for arm, rows in costs.items() if rows}
    if known:
        lines += ["", "| pretraining | runs | CPU min | peak memory, MiB |", "|---|---|---|---|"]
        for arm, rows in known.items():
            minutes = statistics.median(r["cpu_s"] for r in rows) / 60
            lines.append(f"| {arm} | {len(rows)} | {minutes:.1f} | {max(r['peak_mib'] for r in rows):.0f} |")
    return "\n".join([*lines, ""])


def _mean(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    found = interval(known)
    return f"{found.mean:.2f}" + (f" +- {found.sd:.2f}" if found.count > 1 else "")
