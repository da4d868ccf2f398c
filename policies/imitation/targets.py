"""What the auxiliary branch of ACT-JEPA predicts of the coming steps: latents of states, raw states, or images."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from policies.imitation.batches import ChunkBatch, ObservationError
from policies.imitation.context import ContextEncoder, StateSequence, StateTransformer
from policies.imitation.vision import ImageTokens
from worldmodel.distributed import at_least_fp32, is_distributed
from worldmodel.nn.batch_norm import SyncedBatchNorm1d
from worldmodel.planning.noise import generators
from worldmodel.regularizers import SIGReg
from worldmodel.targets import EMATarget


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is to be predicted of K steps.

    Attributes:
        value: [B, K, D].
        valid: [B, K] bool, false past the end of the episode.
        judged: [B, K, D], by whose spread a collapse is told where that of `value` is fixed.
        terms: weighted loss terms of the target's own.
    """

    value: torch.Tensor
    valid: torch.Tensor
    judged: torch.Tensor | None = None
    terms: Mapping[str, tuple[float, torch.Tensor]] = field(default_factory=dict)


class TargetProvider(Protocol):
    """An nn.Module that makes targets; `learned` says whether they could collapse."""

    learned: bool

    def __call__(self, batch: ChunkBatch, context: ContextEncoder, step: int) -> Target: ...

    def update(self, context: ContextEncoder, *, progress: float) -> dict[str, float]:
        """Called after each optimiser step."""
        ...


class LatentTargets(nn.Module):
    """ACT-JEPA's: latents of the sequence of states by a moving average of the context encoder, without gradient.

    The average covers the task and state embeddings, the layers and the last norm, all that the target path uses. It is
    always in evaluation mode.

    Args:
        transformer: of the context encoder.
        momentum: at the first update; rises linearly to 1. See `momentum_of_run`.
    """

    learned = True

    def __init__(self, transformer: StateTransformer, *, momentum: float = 0.996) -> None:
        super().__init__()
        self.teacher = EMATarget(transformer, momentum=momentum).eval()

    def train(self, mode: bool = True) -> "LatentTargets":
        return super().train(False)

    def forward(self, batch: ChunkBatch, context: ContextEncoder, step: int) -> Target:
        """Latents [B, T, D] of all states of the batch, the current one included."""
        return Target(value=self.teacher(context.transformer, sequence_of(batch)), valid=~batch.state_is_pad)

    def update(self, context: ContextEncoder, *, progress: float) -> dict[str, float]:
        return {"ema_momentum": self.teacher.update(context.transformer, progress=progress)}


class SharedLatentTargets(nn.Module):
    """Latents of the states by the context encoder itself, with gradient; SIGReg in place of a teacher (LeJEPA).

    A linear layer and a BatchNorm over the valid steps follow the last LayerNorm, which fixes the norm of every latent
    and would work against SIGReg. The statistic is taken over samples: a few steps of each stretch, one per test.

    Args:
        dim: D.
        sigreg: the statistic.
        weight: of it, beside a prediction loss of weight 1.
        tests: steps drawn per stretch.
    """

    learned = True

    def __init__(self, dim: int, *, sigreg: SIGReg, weight: float = 0.05, tests: int = 4) -> None:
        super().__init__()
        self.sigreg, self.weight, self.tests = sigreg, weight, tests
        self.project, self.norm = nn.Linear(dim, dim), SyncedBatchNorm1d(dim, affine=False)

    def forward(self, batch: ChunkBatch, context: ContextEncoder, step: int) -> Target:
        """Latents [B, T, D] with gradient, and the term `loss/sigreg`."""
        latents, valid = context.transformer(sequence_of(batch)), ~batch.state_is_pad
        projected = self.project(latents)
        value = _normed(self.norm, projected, valid)
        uniform = [torch.rand(self.tests, generator=g) for g in generators(batch.seeds, step, _CPU)]
        drawn = (torch.stack(uniform).to(value.device) * valid.sum(1, keepdim=True)).long()
        rows = torch.arange(len(value), device=value.device).unsqueeze(1)
        statistic = self.sigreg(value[rows, drawn].transpose(0, 1), step=step)
        terms = {"loss/sigreg": (self.weight, statistic)}
        return Target(value=value, valid=valid, judged=projected, terms=terms)

    def update(self, context: ContextEncoder, *, progress: float) -> dict[str, float]:
        return {}


class RawStateTargets(nn.Module):
    """The normalised states themselves: the plainest ablation of latent targets."""

    learned = False

    def forward(self, batch: ChunkBatch, context: ContextEncoder, step: int) -> Target:
        """States [B, T, Ds]."""
        return Target(value=batch.state, valid=~batch.state_is_pad)

    def update(self, context: ContextEncoder, *, progress: float) -> dict[str, float]:
        return {}


class ImageTargets(nn.Module):
    """Mean image tokens of coming frames, each feature standardised over the frames of the batch, without gradient.

    What all pictures have in common (positions, the scene) is most of a feature, and an error would hardly show whether
    the rest is predicted: without this the mean target is off by 0.03. No running statistics are kept: what is common
    moves with the average by more than the rest varies.

    Args:
        vision: image tokens of the context encoder, or a pretrained one.
        stride: steps between the frames; the data set must have the same `image_stride`.
        momentum: of a moving average of the context encoder's image tokens, BatchNorm statistics taken over; None: the
            copy made here stays as it is.
    """

    learned = True

    def __init__(self, vision: ImageTokens, *, stride: int, momentum: float | None = 0.996) -> None:
        super().__init__()
        self.stride, self.follows = stride, momentum is not None
        self.teacher = EMATarget(vision, momentum=momentum or 0.0, copy_buffers=True)
        # Untrained features vary by 0.004 and less.
        self.norm = SyncedBatchNorm1d(
            vision.project.out_channels, affine=False, eps=1e-10, track_running_stats=False
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> "ImageTargets":
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def forward(self, batch: ChunkBatch, context: ContextEncoder, step: int) -> Target:
        """Features [B, K, D] of the frames of steps 0, stride, 2 stride, ...

        Raises:
            ObservationError: if the batch holds no frames, or of other steps.
        """
        valid = ~batch.state_is_pad[:, :: self.stride]
        if batch.images is None or batch.images.shape[1] != valid.shape[1]:
            got = "none" if batch.images is None else str(batch.images.shape[1])
            raise ObservationError(
                f"image targets need {valid.shape[1]} frames per stretch, the batch has {got}: give the data set "
                f"image_stride={self.stride}"
            )
        tokens = self.teacher(context.vision, batch.images.flatten(0, 1))
        features = at_least_fp32(tokens).mean(1).unflatten(0, valid.shape)
        return Target(value=_normed(self.norm, features, valid), valid=valid, judged=features)

    def update(self, context: ContextEncoder, *, progress: float) -> dict[str, float]:
        if not self.follows or context.vision is None:
            return {}
        return {"ema_momentum": self.teacher.update(context.vision, progress=progress)}


def _normed(norm: SyncedBatchNorm1d, features: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Features [B, K, D] normalised over the valid steps, zeros elsewhere."""
    rows = features[valid]
    # BatchNorm without running statistics refuses a single row.
    alone = norm.running_mean is None and len(rows) < 2 and not is_distributed()
    normed = torch.zeros_like(rows) if alone else norm(rows)
    return features.new_zeros(features.shape, dtype=normed.dtype).masked_scatter(valid.unsqueeze(-1), normed)


def sequence_of(batch: ChunkBatch) -> StateSequence:
    """All states of the batch, for a target."""
    return StateSequence(state=batch.state, task=batch.task, is_pad=batch.state_is_pad)


def momentum_of_run(steps: int, *, travel: float = 8.0) -> float:
    """Momentum to start with so that the sum of 1 - m over the run is about `travel`, whatever its length.

    0.996 for the 4000 steps of arXiv 2501.14622. With its constant a run of 500 steps would hardly move the target.
    """
    return max(0.0, 1.0 - 2.0 * travel / steps)


_CPU = torch.device("cpu")
