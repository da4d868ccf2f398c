"""What the shared regularisers and monitors read on inputs whose nature is known: the tables behind docs/objectives.md.

python scripts/measure_objectives.py            about a minute on one core
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from worldmodel.monitors import LDARank, RankMe, marchenko_pastur_rankme, rankme
from worldmodel.regularizers import SIGReg
from worldmodel.training.checkpoints import write_json
from worldmodel.training.provenance import provenance

Rows = list[dict[str, Any]]
SHAPES = ((128, 192), (512, 192), (512, 16), (2048, 64))


def gaussian(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def rotated(z: torch.Tensor) -> torch.Tensor:
    return z @ torch.linalg.qr(gaussian(z.shape[1], z.shape[1], seed=1))[0]


def low_rank(z: torch.Tensor) -> torch.Tensor:
    """Rank D/8 with unit variance in each active direction."""
    active = torch.arange(z.shape[1]) < z.shape[1] // 8
    return rotated(z * active)


def uniform(z: torch.Tensor) -> torch.Tensor:
    return (torch.special.ndtr(z) * 2 - 1) * math.sqrt(3)


def ten_points(z: torch.Tensor) -> torch.Tensor:
    """Ten points drawn from N(0, I), each with a tenth of the samples."""
    return z[torch.arange(len(z)) % 10]


# What is made of N(0, I) samples.
INPUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "N(0, I)": lambda z: z,
    "the same, rotated": rotated,
    "scale 1/2": lambda z: z / 2,
    "scale 2": lambda z: z * 2,
    "zeros": torch.zeros_like,
    "rank D/8": low_rank,
    "rank D/8, total variance D": lambda z: low_rank(z) * math.sqrt(8),
    "sphere of radius sqrt(D)": lambda z: torch.nn.functional.normalize(z) * math.sqrt(z.shape[1]),
    "unit sphere": torch.nn.functional.normalize,
    "Rademacher, +-1": torch.sign,
    "uniform, unit variance": uniform,
    "two equal views as samples": lambda z: z.repeat(2, 1),
    "ten points": ten_points,
}
DRAWS = 8


def sigreg_readings() -> Rows:
    """SIGReg of each input: mean over draws, and their standard deviation in brackets."""
    sigreg = SIGReg()
    rows: Rows = [{"input": name} for name in INPUTS]
    for n, d in SHAPES:
        for row, make in zip(rows, INPUTS.values(), strict=True):
            values = torch.tensor([float(sigreg(make(gaussian(n, d, seed=s)), step=s)) for s in range(DRAWS)])
            row[f"N={n} D={d}"] = f"{values.mean():.4g} ({values.std():.2g})"
    return rows


def collapse_gradients() -> Rows:
    """RMS gradient per sample and direction, 512 samples, by their standard deviation."""
    rows = []
    for std in (1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0, 3.0, 10.0, 30.0, 100.0):
        square = 0.0
        for seed in range(20):
            z = (gaussian(512, 1, seed=seed).double() * std).requires_grad_()
            SIGReg(num_slices=1)(z, step=0).backward()
            assert z.grad is not None
            square += float(z.grad.square().mean()) / 20
        rows.append({"std": std, "rms_gradient": math.sqrt(square)})
    return rows


def constants() -> Rows:
    """Statistic over N of a constant projection: exact, on the half line, and by the two-sided rule of the listing."""
    nodes = torch.linspace(-5, 5, 17, dtype=torch.float64)
    weights = torch.full((17,), 10 / 16, dtype=torch.float64)
    weights[[0, -1]] /= 2
    weights *= torch.exp(-nodes.square() / 2)
    rows = []
    for c in (0.0, 5.0, 10.05, 20.1, 33.5):
        z = torch.full((8, 1), c, dtype=torch.float64)
        gap = torch.exp(1j * nodes * c) - torch.exp(-nodes.square() / 2)
        rows.append(
            {
                "constant": c,
                "exact": math.sqrt(2 * math.pi)
                - 2 * math.sqrt(math.pi) * math.exp(-(c**2) / 4)
                + math.sqrt(2 * math.pi / 3),
                "half line to 3": float(SIGReg(num_slices=1)(z, step=0)) / 8,
                "half line to 5": float(SIGReg(num_slices=1, t_max=5.0)(z, step=0)) / 8,
                "two-sided, 5": float((weights * gap.abs().square()).sum()),
            }
        )
    return rows


def sample_sizes() -> Rows:
    """RankMe / K of isotropic noise of 256 dimensions by samples per dimension, and the Marchenko-Pastur value."""
    rows = []
    for ratio in (0.5, 1, 2, 4, 10, 20, 50):
        value = rankme(gaussian(int(256 * ratio), 256)) / 256
        rows.append({"N/K": ratio, "RankMe/K": value, "Marchenko-Pastur": marchenko_pastur_rankme(1 / ratio)})
    return rows


def with_epsilon(z: torch.Tensor, eps: float) -> float:
    """RankMe as printed, with an epsilon added to each p."""
    s = torch.linalg.svdvals(z.double())
    p = s / s.sum() + eps
    return float(torch.exp(-(p * p.log()).sum()))


def epsilon_and_offset() -> Rows:
    """Rank 8 in 2048 dimensions by epsilon; isotropic 256-d noise by constant offset."""
    basis = torch.linalg.qr(gaussian(2048, 8, seed=1))[0]
    rank_8 = torch.linalg.qr(gaussian(4096, 8))[0] @ basis.T
    rows: Rows = [{"case": "rank 8 in 2048, no epsilon (ours)", "RankMe": rankme(rank_8)}]
    rows += [
        {"case": f"rank 8 in 2048, epsilon {eps:g}", "RankMe": with_epsilon(rank_8, eps)}
        for eps in (1e-7, 1e-6, 1e-5)
    ]
    for offset in (0, 1, 5, 20):
        monitor = RankMe()
        monitor.update(gaussian(20_000, 256) + offset)
        summary = monitor.summary()
        row = {"case": f"noise of 256 dimensions + {offset}", "RankMe": summary.rankme}
        rows.append({**row, "centred": summary.rankme_centered})
    return rows


def lda_readings() -> Rows:
    """1000 samples, 10 views, 64 dimensions: RankMe of the views and LDA-rank."""
    rows = []
    signal = torch.cat([gaussian(1000, 8), torch.zeros(1000, 56)], dim=1).unsqueeze(1)
    noise = gaussian(10_000, 64, seed=1).view(1000, 10, 64)
    for name, views in (
        ("8 dimensions + view noise 0.1", signal + 0.1 * noise),
        ("8 dimensions + view noise 1", signal + noise),
        ("view noise only", noise),
    ):
        monitor = LDARank()
        monitor.update(views)
        summary = monitor.compute()
        row = {"data": name, "RankMe": rankme(views.flatten(0, 1))}
        rows.append({**row, "LDA-rank": summary.rank, "signal": summary.signal})
    return rows


TABLES: dict[str, tuple[str, Callable[[], Rows]]] = {
    "sigreg": (
        f"SIGReg, 1024 directions, mean (standard deviation) of {DRAWS} draws; the floor is 1.0525",
        sigreg_readings,
    ),
    "gradients": ("Gradient of SIGReg near and far from collapse", collapse_gradients),
    "constants": ("Aliasing: a constant projection, statistic / N", constants),
    "samples": ("RankMe and the number of samples", sample_sizes),
    "epsilon_offset": ("RankMe: the epsilon and the mean", epsilon_and_offset),
    "lda": ("LDA-rank", lda_readings),
}


def markdown(tables: dict[str, Rows]) -> str:
    lines = []
    for key, rows in tables.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines += [f"## {TABLES[key][0]}", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for row in rows:
            cells = [row.get(c, "") for c in columns]
            texts = [f"{c:.4g}" if isinstance(c, int | float) else c for c in cells]
            lines.append("| " + " | ".join(texts) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tables = {key: measure() for key, (_, measure) in TABLES.items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "objectives.json"
    write_json(path, {"tables": tables, **provenance()})
    path.with_suffix(".md").write_text(markdown(tables))
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
