"""The report of a pretraining run: did it learn, what did it learn, how was it run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lidar.batch import PointCloudBatch
from lidar.experiment import PretrainingData, ProbeConfig, heldout_batches, probe, probe_summary
from lidar.figures import bev_views, draw_frame
from lidar.pretraining import ADLJEPAPretraining, LidarPretraining
from lidar.probe import ProbeResult
from worldmodel.training.checkpoints import write_json
from worldmodel.training.metrics import read_metrics
from worldmodel.training.provenance import provenance
from worldmodel.training.report import Report, curves
from worldmodel.training.run_folder import RunFolder

_PANELS = {
    "training loss": ("loss",),
    "prediction error, 1 - cos": ("loss/jepa_m1", "loss/jepa_m0"),
    "cross entropy of occupancy": ("loss/occupancy_m1", "loss/occupancy_m0", "loss/occupancy_visible"),
    "regularisers": (
        "loss/variance_context",
        "loss/variance_prediction",
        "loss/variance_target",
        "loss/sigreg_over_floor",
    ),
    "held-out prediction error": ("heldout/loss/jepa_m1", "heldout/loss/jepa_m0"),
    "held-out cross entropy of occupancy": (
        "heldout/loss/occupancy_m1",
        "heldout/loss/occupancy_m0",
        "heldout/loss/occupancy_visible",
    ),
    "held-out average precision of occupancy": ("heldout/occupancy_ap", "heldout/occupancy_ap_trivial"),
    "held-out RankMe": ("heldout/rankme", "heldout/rankme_centered"),
    "held-out LDA-rank": ("heldout/lda_rank",),
    "held-out LDA signal": ("heldout/lda_signal",),
    "held-out SIGReg / floor, standardised features": ("heldout/sigreg_standardised",),
    "held-out spread": (
        "heldout/std_over_gamma",
        "heldout/std_over_gamma_random",
        "heldout/mean_cosine",
        "heldout/correlation",
        "heldout/dead_dimensions",
    ),
    "learning rate": ("learning_rate",),
    "gradient norm": ("gradient_norm",),
    "frames per second": ("time/frames_per_s",),
}
_HEALTH = {
    "heldout/loss/jepa_m1": "prediction error at masked non-empty cells (M1)",
    "heldout/loss/jepa_m0": "prediction error at masked empty cells (M0)",
    "heldout/loss/occupancy": "cross entropy of occupancy",
    "heldout/loss/occupancy_m1": "cross entropy at masked non-empty cells (M1)",
    "heldout/occupancy_ap": "average precision of occupancy in masked cells",
    "heldout/occupancy_ap_trivial": "the same of the share of occupied voxels at each height",
    "heldout/rankme": "RankMe",
    "heldout/rankme_centered": "RankMe, centred",
    "heldout/rankme_over_random": "RankMe / RankMe of the random encoder",
    "heldout/participation_ratio": "participation ratio",
    "heldout/lda_rank": "LDA-rank of cells under sensor noise",
    "heldout/lda_signal": "LDA signal of the same",
    "heldout/std_over_gamma": "std / gamma",
    "heldout/std_over_gamma_random": "std / gamma of the random encoder",
    "heldout/dead_dimensions": "share of dead dimensions",
    "heldout/mean_cosine": "mean pairwise cosine",
    "heldout/correlation": "mean absolute correlation of dimensions",
    "heldout/sigreg_standardised": "SIGReg of standardised features / that of Gaussian ones",
}


def summarise(run: RunFolder, result: ProbeResult | None, data: PretrainingData) -> dict[str, Any]:
    """results.json: first and last held-out monitors, the probe, provenance."""
    rows = [r for r in read_metrics(run.metrics) if "heldout/rankme" in r]
    steps = [r for r in read_metrics(run.metrics) if "loss" in r]
    first, last = (rows[0], rows[-1]) if rows else ({}, {})
    summary: dict[str, Any] = {
        "first": first,
        "last": last,
        "steps": len(steps),
        "frames": {"train": len(data.train), "heldout": len(data.heldout)},
        "median_frames_per_s": _median([r["time/frames_per_s"] for r in steps]),
        "probe": probe_summary(result) if result else None,
        "probe_trivial": result.trivial if result else None,
        "notes": [*data.notes, *_skips(steps, run)],
        **provenance(),
    }
    for name in ("heldout/loss/jepa_m1", "heldout/loss/occupancy_m1"):
        if name in last:
            summary["m1_reduction"] = 1 - last[name] / first[name]
    return summary


def _skips(steps: Sequence[dict[str, Any]], run: RunFolder) -> list[str]:
    """A note if frames that could not be read were replaced while training (only with on_error=skip)."""
    per_step = run.stored_config()["trainer"]["accumulate"]  # a row holds the mean over micro-batches
    count = round(sum(row.get("data/skipped", 0.0) for row in steps) * per_step)
    return [f"{count} times a frame could not be read and its neighbour took its place"] if count else []


def finish(
    task: LidarPretraining,
    *,
    run: RunFolder,
    data: PretrainingData,
    heldout: Sequence[PointCloudBatch],
    probe_config: ProbeConfig,
    seed: int,
    device: torch.device,
) -> Path:
    """After training: the frozen probe, where there are labels, and the report. Returns the page's path."""
    task.float()  # a run in fp64 is probed in fp32 like any other
    result, why_not = probe(task, data=data, config=probe_config, seed=seed, device=device)
    pictures = heldout_batches(
        data, task.voxelizer.grid.point_range, frames=3, batch_size=1, on_error="raise"
    )
    return write_report(
        task, run=run, data=data, heldout=heldout, pictures=pictures, result=result, why_no_probe=why_not
    )


def write_report(
    task: LidarPretraining,
    *,
    run: RunFolder,
    data: PretrainingData,
    heldout: Sequence[PointCloudBatch],
    pictures: Sequence[PointCloudBatch],
    result: ProbeResult | None,
    why_no_probe: str,
) -> Path:
    """Write results.json and report.html; returns the page's path.

    Args:
        heldout: batches the monitors ran on.
        pictures: one-frame batches to draw.
    """
    summary = summarise(run, result, data)
    write_json(run.path / "results.json", summary)
    page = Report(f"{task.method} pretraining report", figures=run.figures)
    page.paragraph(
        f"{summary['frames']['train']} unlabelled frames of {data.source.name}, {summary['steps']} steps, "
        f"{summary['median_frames_per_s']:.1f} frames/s (median). No label was read before the probe."
    )
    for note in summary["notes"]:
        page.code(note)
    _health(page, summary)
    _probe(page, result, why_no_probe)
    page.heading("Curves")
    rows = read_metrics(run.metrics)
    names = {name for row in rows for name in row}
    panels = {title: lines for title, lines in _PANELS.items() if names.intersection(lines)}
    page.figure("curves", curves(rows, panels), "Metrics of every step, and monitors on held-out frames")
    if pictures and heldout and isinstance(task, ADLJEPAPretraining):
        page.heading("What it sees")
        page.paragraph(
            "From left to right: the scan; the cells hidden from the context encoder; features of the full scan as "
            "colours; how well hidden cells are predicted; where the predictor expects something, told by the "
            "distance of its prediction from the empty token."
        )
        views = bev_views(task, pictures, heldout)
        for number, (batch, view) in enumerate(zip(pictures, views, strict=True)):
            points, name = batch.points.cpu().numpy(), batch.frame_ids[0]
            drawing = draw_frame(view, points, task.voxelizer.grid, title=f"held-out frame {name}")
            page.figure(f"bev_{number}", drawing, f"Frame {name}, not seen in training")
    page.heading("How it was run")
    page.code(str(summary["command"]))
    page.table(
        ("", ""),
        [(k, summary[k]) for k in ("commit", "machine", "platform", "python", "torch", "threads", "date")],
    )
    page.code(json.dumps(json.loads(run.config.read_text()), indent=2))
    page.write(run.report)
    return run.report


def _health(page: Report, summary: dict[str, Any]) -> None:
    page.heading("Did it learn?")
    if not summary["first"]:
        page.paragraph("No held-out frames: nothing was monitored.")
        return
    rows = [
        (text, f"{float(summary['first'][name]):.3f}", f"{float(summary['last'][name]):.3f}")
        for name, text in _HEALTH.items()
        if name in summary["first"]
    ]
    page.table(("on held-out frames", "before training", "after"), rows)
    page.paragraph(
        f"The error at masked non-empty cells (M1) fell by {100 * summary['m1_reduction']:.0f} % on held-out frames."
    )


def _probe(page: Report, result: ProbeResult | None, why_not: str) -> None:
    page.heading("Frozen linear probe")
    if result is None:
        page.paragraph(f"Not run: {why_not}.")
        return
    page.paragraph(
        f"Cells are background, car, pedestrian or cyclist; mean of three average precisions on {result.cells} cells "
        f"of {result.scenes} scenes. Both encoders see the same draws of labelled scenes. A constant classifier scores "
        f"{result.trivial:.3f}."
    )
    rows = []
    for row in result.rows:
        interval = row.gain_interval
        mean = [sum(values) / len(values) for values in (row.random, row.pretrained)]
        rows.append(
            (
                row.budget,
                len(row.random),
                *(f"{m:.3f}" for m in mean),
                f"{row.gain:+.3f}",
                f"{interval[0]:+.3f} .. {interval[1]:+.3f}" if interval else "one draw",
            )
        )
    page.table(
        ("labelled scenes", "draws", "random encoder", "pretrained", "paired gain", "+- 2 standard errors"),
        rows,
    )


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else float("nan")
