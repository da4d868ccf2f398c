"""Rank and spectrum of features: RankMe, its relatives and LDA-rank, as a table and a figure.

python scripts/rank_features.py features.npy                          one row; [N, D], or [N, Q, D] with views
python scripts/rank_features.py a.safetensors b.npz --key encoder     several files, one tensor of each
python scripts/rank_features.py runs/pretrain_lidar/NAME --json r.json
                                                                      a run (or one of its checkpoints/step_*): its
                                                                      encoder and the untrained one on held-out frames
"""

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from feature_files import SUFFIXES, FeatureFile, open_features
from pretraining_data import data_checks, pretraining_data
from runs import load_task, locate, run_settings
from settings import USER_ERRORS

from lidar.experiment import checked, heldout_batches
from lidar.pretraining import cell_discriminant, recalibrated_encoder, unit_features
from worldmodel.distributed import resolve_device
from worldmodel.monitors import LDARank, LDASummary, RankMe, RankSummary
from worldmodel.training.checkpoints import write_json
from worldmodel.training.provenance import provenance

MAX_DIM = 20_000  # of files: the Gram matrix and its eigenvectors then take 9 GiB
COLUMNS = (
    "input", "N", "K", "RankMe", "centred", "/K", "/ceiling", "part. ratio", "stable rank", "alpha-ReQ",
    "LDA-rank", "LDA signal",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One input: its spectrum, and the discriminant of its views if it has any."""

    name: str
    rank: RankSummary
    lda: LDASummary | None

    def cells(self) -> list[str]:
        """The table's row."""
        r = self.rank
        numbers = [f"{r.rankme:.2f}", f"{r.rankme_centered:.2f}", f"{r.rankme_over_k:.4f}"]
        numbers += [f"{r.rankme_over_ceiling:.4f}", f"{r.participation_ratio:.2f}", f"{r.stable_rank:.2f}"]
        numbers += ["-" if math.isnan(r.alpha_req) else f"{r.alpha_req:.2f}"]
        lda = ["-", "-"] if self.lda is None else [f"{self.lda.rank:.2f}", f"{self.lda.signal:.4g}"]
        return [self.name, str(r.count), str(r.dim), *numbers, *lda]

    def as_dict(self) -> dict[str, Any]:
        """Plain values; what is undefined is null."""
        lda = self.lda
        values: dict[str, float | None] = {
            **self.rank.as_dict(),
            "lda_rank": lda.rank if lda else None,
            "lda_signal": lda.signal if lda else None,
        }
        return {
            "input": self.name,
            "count": self.rank.count,
            "dim": self.rank.dim,
            **{k: None if v is None or math.isnan(v) else v for k, v in values.items()},
            "warning": self.rank.warning,
            "lda_warning": lda.warning if lda else "",
            "eigenvalues": self.rank.eigenvalues.tolist(),
            "eigenvalues_centered": self.rank.eigenvalues_centered.tolist(),
        }


def rank_blocks(name: str, blocks: Iterable[torch.Tensor], *, device: torch.device) -> Row:
    """Rank features that come in blocks [n, D] or [n, Q, D]; views count as samples for the spectrum."""
    rank, lda, groups = RankMe(), LDARank(), 0
    for block in blocks:
        block = block.to(device)
        if block.ndim == 3 and block.shape[1] > 1:
            lda.update(block)
            groups += len(block)
        rank.update(block.flatten(0, -2))
    return Row(name=name, rank=rank.summary(), lda=lda.compute() if groups > 1 else None)


@torch.no_grad()
def rank_run(path: Path, *, data_root: str | None) -> list[Row]:
    """The encoder of a run and the untrained one of its seed, as the monitors see them while training.

    Features are those of non-empty BEV cells of the held-out frames, L2-normalised, with BatchNorm recalibrated on
    these frames; the views of a cell are the frame under sensor noise.

    Args:
        path: run folder or one checkpoint.
        data_root: in place of the run's data.root.

    Raises:
        ValueError: if the run held no frames out.
    """
    run, checkpoint = locate(path)
    settings = run_settings(run)
    if data_root is not None:
        settings["data"]["root"] = data_root
    task = load_task(settings, checkpoint)
    point_range, checks = task.voxelizer.grid.point_range, data_checks(settings["data"])
    data = checked(pretraining_data(settings["data"], progress=True), checks, point_range, progress=False)
    frames = settings["trainer"]["heldout_frames"]
    batches = heldout_batches(data, point_range, frames=frames, batch_size=4, on_error=checks.on_error)
    if not batches:
        raise ValueError(f"{path}: the run held no frames out, there is nothing to encode")
    whole = task.voxelizer.every_voxel
    voxels = [whole(batch) for batch in batches]
    rows = []
    for name, encoder in ((str(path), task.model.encoder), (f"{path}, untrained", task.untrained_encoder)):
        frozen = recalibrated_encoder(encoder, voxels)
        monitor = RankMe()
        for features in unit_features(frozen, voxels):
            monitor.update(features)
        lda = cell_discriminant(frozen, batches, voxelizer=whole)
        rows.append(Row(name=name, rank=monitor.summary(), lda=None if math.isnan(lda.rank) else lda))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Aligned columns, then warnings."""
    lines = [list(COLUMNS), *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    text = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    for row in rows:
        found = [row.rank.warning, row.lda.warning if row.lda else ""]
        text += [f"warning: {row.name}: {warning}" for warning in found if warning]
    return "\n".join(text)


def spectrum_figure(rows: Sequence[Row], path: Path) -> None:
    """Eigenvalues of the covariance as shares of the variance, log-log, one line for each input."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2 + 0.25 * len(rows)), layout="constrained")
    for row in rows:
        values = row.rank.eigenvalues_centered
        values = values[values > 0]
        index = range(1, len(values) + 1)
        name = row.name if len(row.name) <= 60 else f"...{row.name[-57:]}"
        label = f"{name} (RankMe {row.rank.rankme:.1f} of {row.rank.dim})"
        axes.loglog(index, values / values.sum(), label=label, lw=1.4, marker="." if len(values) < 20 else "")
    axes.set(xlabel="index", ylabel="share of the variance", title="Spectrum of the covariance")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", fontsize=8, ncols=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device is auto, cpu or cuda, got {name}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device cuda: this torch ({torch.__version__}) sees no GPU; use --device cpu")
    return resolve_device(name)


def _check_memory(file: FeatureFile) -> None:
    dim = file.shape[-1]
    if dim > MAX_DIM:
        gib = 3 * 8 * dim**2 / 2**30
        raise ValueError(
            f"{file.name}: {dim} dimensions need {gib:.0f} GiB for their Gram matrix and its spectrum: project the "
            f"features to {MAX_DIM} dimensions or fewer"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, rank every input, print the table and write the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "inputs",
        type=Path,
        nargs="+",
        metavar="INPUT",
        help=f"{', '.join(SUFFIXES)}, run folder or checkpoint",
    )
    parser.add_argument(
        "--key", metavar="NAME", help="tensor of .npz and .safetensors files that hold several"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("rank_features.png"), help="spectrum figure (default %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write numbers and spectra there too")
    parser.add_argument("--data", metavar="DIR", help="data of the runs, in place of their data.root")
    parser.add_argument("--device", default="auto", help="where files are summed up: auto, cpu, cuda")
    arguments = parser.parse_args(argv)
    if arguments.out.suffix != ".png":
        parser.error(f"--out is a .png file, got {arguments.out}")
    rows: list[Row] = []
    try:
        device = _device(arguments.device)
        for path in arguments.inputs:
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such file or run folder")
            if path.is_dir():
                rows += rank_run(path, data_root=arguments.data)
            else:
                file = open_features(path, key=arguments.key)
                _check_memory(file)
                rows.append(rank_blocks(file.name, file.blocks(), device=device))
        print(table(rows), flush=True)
        spectrum_figure(rows, arguments.out)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            write_json(arguments.json, {"rows": [row.as_dict() for row in rows], **provenance()})
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    print(f"spectrum: {arguments.out}")


if __name__ == "__main__":
    main()
