"""A task small enough to train in milliseconds that still has BatchNorm, a teacher and batch statistics."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

import torch
from torch import nn

from worldmodel.monitors import EmbeddingMonitor
from worldmodel.nn.batch_norm import SyncedBatchNorm1d, recalibrated
from worldmodel.objectives import Loss, masked_mean
from worldmodel.protocols import RepresentationCollapse
from worldmodel.regularizers import SIGReg
from worldmodel.targets import EMATarget
from worldmodel.training import FitResult, RunFolder, TrainerConfig, fit
from worldmodel.training.metrics import read_metrics
from worldmodel.training.schedules import OneCycle


@dataclass(frozen=True)
class Sample:
    x: torch.Tensor
    index: int
    seed: int


@dataclass(frozen=True)
class Batch:
    """x [B, 6], indices and draw seeds of the samples."""

    x: torch.Tensor
    indices: tuple[int, ...]
    seeds: tuple[int, ...]

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.x.to(device), self.indices, self.seeds)


def collate(samples: list[Sample]) -> Batch:
    return Batch(
        torch.stack([s.x for s in samples]), tuple(s.index for s in samples), tuple(s.seed for s in samples)
    )


class Points(torch.utils.data.Dataset[Sample]):
    """Points whose value depends on the index and whose noise on the draw seed; one half foretells the other."""

    def __init__(self, size: int = 24, *, delay: float = 0.0, fail_at_index: int | None = None) -> None:
        self.size, self.delay, self.fail_at_index = size, delay, fail_at_index

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        index, seed = key
        if index == self.fail_at_index:
            raise ValueError(f"point {index} cannot be read")
        sleep(self.delay)
        half = torch.randn(3, generator=torch.Generator().manual_seed(index))
        value = torch.cat([half, half.flip(0)])
        noise = torch.randn(6, generator=torch.Generator().manual_seed(seed))
        return Sample(value + 0.1 * noise, index, seed)


class ToyTask(nn.Module):
    """Predict the teacher's embedding of one half of a point from the other half, and keep embeddings Gaussian.

    Args:
        batch_norm: without it the loss is a mean over samples and nothing else.
        nan_at, collapse_at: step whose loss is NaN, finished steps after which the monitors report a collapse.
        delay: seconds that a step takes at least.
    """

    def __init__(
        self,
        *,
        batch_norm: bool = True,
        nan_at: int | None = None,
        collapse_at: int | None = None,
        delay: float = 0.0,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        norm: nn.Module = SyncedBatchNorm1d(8) if batch_norm else nn.Identity()
        self.encoder = nn.Sequential(nn.Linear(3, 8), norm, nn.ReLU(), nn.Linear(8, 4))
        self.predictor = nn.Linear(4, 4)
        self.target = EMATarget(self.encoder, momentum=0.9)
        self.sigreg = SIGReg(num_slices=16)
        self.batch_norm, self.nan_at, self.collapse_at, self.delay = batch_norm, nan_at, collapse_at, delay
        self.seen: list[Batch] = []
        self.finished = 0

    def training_step(self, batch: Batch, step: int) -> Loss:
        sleep(self.delay)
        self.seen.append(batch)
        z = self.encoder(batch.x[:, :3])
        t = self.target(self.encoder, batch.x[:, 3:])
        error = (self.predictor(z) - t).float().square().mean(1)
        prediction = masked_mean(error, torch.ones_like(error, dtype=torch.bool))
        total = prediction
        if self.batch_norm:
            total = total + 0.1 * self.sigreg(z, step=step)
        if step == self.nan_at:
            total = total * torch.nan
        return Loss(total, {"loss/prediction": prediction})

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        self.finished = step + 1
        return {"momentum": self.target.update(self.encoder, progress=step / total_steps)}

    def monitors(self, batches: Sequence[Batch]) -> dict[str, float]:
        if self.collapse_at is not None and self.finished >= self.collapse_at:
            raise RepresentationCollapse("the toy collapsed")
        frozen = recalibrated(self.encoder, batches, lambda m, b: m(b.x[:, :3]))
        monitor = EmbeddingMonitor(4)
        for batch in batches:
            monitor.update(frozen(batch.x[:, :3]))
        health = monitor.compute()
        return {"rankme": health.rankme, "std": health.std}


def config(**changes: Any) -> TrainerConfig:
    defaults: dict[str, Any] = {
        "max_steps": 12,
        "batch_size": 8,
        "schedule": OneCycle(max_lr=0.02),
        "device": "cpu",
        "eval_every": 4,
        "checkpoint_every": 5,
        "progress": False,
    }
    return TrainerConfig(**(defaults | changes))


def heldout() -> list[Batch]:
    points = Points(100)
    return [collate([points[(i, i)] for i in range(first, first + 6)]) for first in (50, 60)]


def train(
    folder: Path, *, task: ToyTask | None = None, dataset: Points | None = None, **changes: Any
) -> FitResult:
    """`fit` of the toy in a folder; continues what is there."""
    return fit(
        task or ToyTask(),
        dataset=dataset or Points(),
        collate=collate,
        heldout=heldout(),
        run=opened(folder),
        config=config(**changes),
        device=torch.device("cpu"),
    )


def opened(folder: Path) -> RunFolder:
    folder.mkdir(parents=True, exist_ok=True)
    return RunFolder(folder)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Metrics without the timing."""
    return [
        {k: v for k, v in row.items() if not k.startswith("time/")}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder) if "loss" in row]
