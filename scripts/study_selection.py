"""Does a label-free score choose the right pretraining run? RankMe, SIGReg, LDA-rank and losses against the probe.

python scripts/study_selection.py            pretrain two sweeps (24 runs a seed, hours on two cores), measure, judge

Each sweep is one objective of the small LiDAR default over two of its hyperparameters. Every finished run is measured
without labels on its held-out frames; the label oracle is the run's frozen probe. Runs are kept under --runs and
continued if the study is started again. Nothing here chose the hyperparameters or the scores after seeing a result:
all runs of the grid are judged, at their final step.
"""

import argparse
import itertools
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from pretraining_data import pretraining_data
from runs import load_task, locate, run_settings
from studies import pretrained
from tqdm import tqdm

from lidar.experiment import PretrainingData, heldout_batches
from lidar.objectives import SIGRegObjective
from lidar.pretraining import (
    LidarPretraining,
    cell_discriminant,
    frozen_health,
    recalibrated_encoder,
)
from worldmodel.model_selection import Selector, judge
from worldmodel.training.checkpoints import write_json
from worldmodel.training.provenance import provenance


@dataclass(frozen=True)
class Sweep:
    """An objective and the values of two of its hyperparameters."""

    first: tuple[str, tuple[float, ...]]
    second: tuple[str, tuple[float, ...]]


SWEEPS = {
    "ema_variance": Sweep(("objective.lambda_reg", (0, 0.1, 1, 10)), ("model.mask_ratio", (0.25, 0.5, 0.75))),
    "sigreg": Sweep(("objective.weight", (0.02, 0.05, 0.2, 0.5)), ("trainer.max_lr", (0.0003, 0.001, 0.003))),
}
DATA_SEED = {10: 2, 11: 3}  # run seed to data seed: neither was used to choose the default or to report it
BUDGETS = (5, 20, 60)
ORACLE = "probe_20"
VIEWS, VIEW_FRAMES, HEALTH_FRAMES = 10, 24, 100
# Label-free scores and whether higher is better.
SCORES = {
    "RankMe": ("rankme", True),
    "RankMe, centred": ("rankme_centered", True),
    "LDA-rank": ("lda_rank", True),
    "LDA signal": ("lda_signal", True),
    "participation ratio": ("participation_ratio", True),
    "alpha-ReQ, distance to 1": ("alpha_distance", False),
    "SIGReg of the features": ("sigreg_standardised", False),
    "SIGReg as trained": ("trained_sigreg", False),
    "prediction error M1": ("m1", False),
    "held-out loss": ("loss", False),
    "loss / lambda^0.4": ("scaled_loss", False),
    "std / gamma": ("std_over_gamma", True),
}


@torch.no_grad()
def label_free(task: LidarPretraining, data: PretrainingData) -> dict[str, float]:
    """Every label-free score: of unit features of non-empty cells of held-out frames, and the held-out losses."""
    batches = heldout_batches(
        data, task.voxelizer.grid.point_range, frames=HEALTH_FRAMES, batch_size=4, on_error="raise"
    )
    whole = task.voxelizer.every_voxel
    voxels = [whole(batch) for batch in batches]
    encoder = recalibrated_encoder(task.model.encoder, voxels)
    health = frozen_health(encoder, voxels)
    views = cell_discriminant(encoder, batches, voxelizer=whole, frames=VIEW_FRAMES, views=VIEWS)
    loss = task.heldout_loss(batches)
    scores = {
        **health.as_dict(),
        "alpha_distance": abs(health.alpha_req - 1),
        "std_over_gamma": health.std * task.model.encoder.bev_channels**0.5,
        "lda_rank": views.rank,
        "lda_signal": views.signal,
        "lda_samples": views.count,
        "m1": loss["loss/jepa_m1"],
        "loss": loss["loss/total"],
    }
    if isinstance(task.model.objective, SIGRegObjective):
        scores["trained_sigreg"] = loss["loss/sigreg_over_floor"]
        # What LeJEPA's authors divide by, so that runs of different lambda compare (section on model selection).
        scores["scaled_loss"] = scaled_loss(loss["loss/total"], task.model.objective.lejepa.weight)
    return scores


def scaled_loss(loss: float, weight: float) -> float:
    """loss / lambda^0.4 (LeJEPA, arXiv 2511.08544, model selection)."""
    return loss / weight**0.4


def run_one(sweep: str, values: tuple[float, float], seed: int, *, runs: Path) -> dict[str, Any]:
    """Pretrain one point of a sweep, or take the finished run, and measure it."""
    names = (SWEEPS[sweep].first[0], SWEEPS[sweep].second[0])
    settings = [f"{name}={value}" for name, value in zip(names, values, strict=True)]
    slug = "_".join(s.split(".", 1)[1].replace("=", "-") for s in settings)
    folder = runs / sweep / f"{slug}_seed-{seed}"
    seeds = [f"seed={seed}", f"data.seed={DATA_SEED[seed]}"]
    raw = pretrained(folder, [f"objective={sweep}", *settings, *seeds])
    row = {"sweep": sweep, "seed": seed, "first": values[0], "second": values[1]}
    if "failed" in raw:
        return {**row, **raw}
    row["pretrained_at_commit"] = raw["commit"]
    for entry in raw["probe"]:
        if entry["budget"] in BUDGETS:
            row[f"probe_{entry['budget']}"] = statistics.fmean(entry["pretrained"])
            row[f"random_{entry['budget']}"] = statistics.fmean(entry["random"])
    run, checkpoint = locate(folder)
    stored = run_settings(run)
    task = load_task(stored, checkpoint)
    scores = label_free(task, pretraining_data(stored["data"], progress=False))
    return {**row, **scores}


def judged(rows: list[dict[str, Any]], oracle: str) -> dict[str, Selector]:
    """Each score that all rows have, against the probe; none of fewer than three rows."""
    if len(rows) < 3:
        return {}
    labelled = np.array([row[oracle] for row in rows])
    return {
        name: judge(np.array([row[key] for row in rows]), labelled, higher_is_better=higher)
        for name, (key, higher) in SCORES.items()
        if all(np.isfinite(row.get(key, np.nan)) for row in rows)
    }


def groups_of(rows: list[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Finished rows by (sweep, seed): selection is within one sweep on one data set."""
    done = [row for row in rows if "failed" not in row]
    keys = dict.fromkeys((row["sweep"], row["seed"]) for row in done)
    return {key: [row for row in done if (row["sweep"], row["seed"]) == key] for key in keys}


def with_selectors(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is stored: the rows, and every selector judged by the probe at every number of labelled scenes."""
    selectors = {
        f"{sweep}, seed {seed}": {
            f"probe_{b}": {k: asdict(v) for k, v in judged(own, f"probe_{b}").items()} for b in BUDGETS
        }
        for (sweep, seed), own in groups_of(rows).items()
    }
    return {"rows": rows, "selectors": selectors, "oracle": ORACLE}


def report(result: dict[str, Any]) -> str:
    """Markdown: what each selector costs, then every run."""
    lines = []
    for (sweep, seed), rows in groups_of(result["rows"]).items():
        axes = SWEEPS[sweep]
        probes = [row[ORACLE] for row in rows]
        lines += [
            f"## {sweep}, seed {seed}: {axes.first[0]} x {axes.second[0]}, {len(rows)} runs",
            "",
            f"Frozen probe ({ORACLE}: mean AP at so many labelled scenes): best {max(probes):.3f}, mean "
            f"{statistics.fmean(probes):.3f}, worst {min(probes):.3f}, random encoder "
            f"{rows[0][ORACLE.replace('probe', 'random')]:.3f}. A run picked at random loses "
            f"{max(probes) - statistics.fmean(probes):.3f}.",
            "",
            "| label-free score | Spearman | 95 % interval | p | Kendall | chosen | loss against the oracle |",
            "|---" * 7 + "|",
        ]
        for name, selector in result["selectors"][f"{sweep}, seed {seed}"][ORACLE].items():
            chosen = rows[selector["chosen"]]
            rho = selector["spearman"]
            lines.append(
                f"| {name} | {rho['value']:+.2f} | {rho['low']:+.2f} .. {rho['high']:+.2f} | {rho['p_value']:.3f} "
                f"| {selector['kendall']:+.2f} | {chosen['first']:g}, {chosen['second']:g} | {selector['loss']:.3f} |"
            )
        for name, (key, _) in SCORES.items():
            missing = sum(not np.isfinite(row.get(key, np.nan)) for row in rows)
            if missing > 0 and any(key in row for row in rows):
                lines.append(f"| {name} | undefined in {missing} of {len(rows)} runs | | | | | |")
        columns = [f"probe_{b}" for b in BUDGETS]
        columns += [key for key, _ in SCORES.values() if key in rows[0]]
        names = [axes.first[0].split(".")[1], axes.second[0].split(".")[1]]
        lines += ["", "| " + " | ".join([*names, *columns]) + " |", "|---" * (len(columns) + 2) + "|"]
        for row in sorted(rows, key=lambda r: -r[ORACLE]):
            cells = [f"{row['first']:g}", f"{row['second']:g}", *(f"{row[c]:.3f}" for c in columns)]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    failed = [row for row in result["rows"] if "failed" in row]
    lines += [f"Failed: {row['sweep']} {row['first']} {row['second']}: {row['failed']}" for row in failed]
    return "\n".join(lines)


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Probe against five scores, one row of panels for each sweep; colour and marker are the hyperparameters."""
    shown = ("RankMe", "SIGReg of the features", "LDA-rank", "prediction error M1", "held-out loss")
    groups = groups_of(rows)
    drawing, axes = plt.subplots(
        len(groups), len(shown), figsize=(3.4 * len(shown), 3.2 * len(groups)), squeeze=False
    )
    for line, ((sweep, seed), own) in zip(axes, groups.items(), strict=True):
        first, second = SWEEPS[sweep].first, SWEEPS[sweep].second
        for axis, name in zip(line, shown, strict=True):
            key, higher = SCORES[name]
            for row in own:
                axis.scatter(
                    row[key],
                    row[ORACLE],
                    color=plt.cm.viridis(first[1].index(row["first"]) / (len(first[1]) - 0.5)),
                    marker="osD^v"[second[1].index(row["second"])],
                    s=38,
                )
            found = judged(own, ORACLE).get(name)
            axis.set_xlabel(name if higher else f"{name} (lower is better)", fontsize=9)
            axis.set_title(f"Spearman {found.spearman.value:+.2f}" if found else "undefined", fontsize=9)
            axis.tick_params(labelsize=8)
        line[0].set_ylabel(f"{sweep}, seed {seed}\nprobe, mean AP", fontsize=9)
        grey = {"color": "0.4", "linestyle": "", "markersize": 5}
        handles = [
            plt.Line2D([], [], marker="o", linestyle="", color=plt.cm.viridis(i / (len(first[1]) - 0.5)),
                       label=f"{first[0].split('.')[1]} {v:g}") for i, v in enumerate(first[1])
        ]  # fmt: skip
        handles += [
            plt.Line2D([], [], marker="osD^v"[i], label=f"{second[0].split('.')[1]} {v:g}", **grey)  # type: ignore[arg-type]
            for i, v in enumerate(second[1])
        ]
        line[-1].legend(handles=handles, fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweeps", nargs="*", choices=sorted(SWEEPS), default=sorted(SWEEPS))
    parser.add_argument("--seeds", nargs="*", type=int, choices=sorted(DATA_SEED), default=[10])
    parser.add_argument("--runs", type=Path, default=Path("runs/selection"), help="where runs are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--note", default="", help="a remark to store with the results")
    arguments = parser.parse_args()
    jobs = [
        (sweep, values, seed)
        for seed in arguments.seeds
        for sweep in arguments.sweeps
        for values in itertools.product(SWEEPS[sweep].first[1], SWEEPS[sweep].second[1])
    ]
    torch.set_num_threads(1)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        measured = pool.map(lambda job: run_one(*job, runs=arguments.runs), jobs)
        rows = list(tqdm(measured, total=len(jobs), unit="run"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "selection.json"
    write_json(path, {"rows": rows, **provenance()})  # hours of work: kept, whatever happens below
    result = {**with_selectors(rows), "note": arguments.note, **provenance()}
    write_json(path, result)
    path.with_suffix(".md").write_text(report(result))
    figure(rows, path.with_suffix(".png"))
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
