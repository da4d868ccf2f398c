"""Frozen features of sequences of views: one encoding, from which every length and every control is read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from worldmodel.episodes import Source
from worldmodel.training.order import sample_key


class Aggregates(Protocol):
    """What aggregates views and the actions between them (worldmodel.seq_jepa.SeqWorldModel)."""

    def aggregate(self, z: torch.Tensor, actions: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """N labelled episodes of T observations.

    Attributes:
        observations: [N, T, ...].
        actions: [N, T - 1, A].
        labels: by name, one value per episode [N, ...] or per observation [N, T, ...]; never shown to a model.
    """

    observations: torch.Tensor
    actions: torch.Tensor
    labels: Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class SequenceFeatures:
    """Per-view codes z [N, T, D] of N episodes, with their actions [N, T - 1, A] and labels."""

    z: torch.Tensor
    actions: torch.Tensor
    labels: Mapping[str, torch.Tensor]

    def first(self, count: int) -> "SequenceFeatures":
        """The first `count` episodes."""
        return SequenceFeatures(
            z=self.z[:count],
            actions=self.actions[:count],
            labels={name: value[:count] for name, value in self.labels.items()},
        )


def draw_sequences(source: Source, *, steps: int, count: int, seed: int) -> Sequences:
    """`count` episodes of `steps` observations, the same for the same seed; items come round in shuffled order."""
    keys = [sample_key(i, size=len(source), seed=seed) for i in range(count)]
    drawn: list[Any] = [
        source.sample(item, steps=steps, generator=np.random.default_rng(draw)) for item, draw in keys
    ]
    return Sequences(
        observations=torch.from_numpy(np.stack([e.observations for e in drawn])),
        actions=torch.from_numpy(np.stack([e.actions for e in drawn])),
        labels={
            name: torch.from_numpy(np.stack([np.asarray(e.labels[name]) for e in drawn]))
            for name in drawn[0].labels
        },
    )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode and no gradient is recorded; afterwards every module is as it was.

    Raises:
        RuntimeError: if a buffer changed: a probe must not move the statistics of what it measures.
    """
    modes = [(m, m.training) for m in model.modules()]
    before = [b.clone() for b in model.buffers()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
    if not all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True)):
        raise RuntimeError(
            "a buffer of the frozen model changed while it was measured (BatchNorm statistics?)"
        )


def encode_sequences(encoder: nn.Module, sequences: Sequences, *, batch_size: int = 512) -> SequenceFeatures:
    """z of every view; `encoder` maps observations [N, ...] to [N, D] and is left bit-identical."""
    views = sequences.observations.flatten(0, 1)
    with frozen(encoder):
        z = torch.cat([encoder(part).float() for part in views.split(batch_size)])
    shape = sequences.observations.shape[:2]
    return SequenceFeatures(z=z.unflatten(0, shape), actions=sequences.actions, labels=sequences.labels)


def aggregated(
    model: nn.Module, z: torch.Tensor, actions: torch.Tensor, *, batch_size: int = 1024
) -> torch.Tensor:
    """Aggregates [N, K] of views z [N, M, D] and the actions [N, M - 1, A] between them; `model` is `Aggregates`."""
    with frozen(model):
        parts = zip(z.split(batch_size), actions.split(batch_size), strict=True)
        return torch.cat([model.aggregate(a, b).float() for a, b in parts])  # type: ignore[operator]


def mean_pooled(z: torch.Tensor, views: int) -> torch.Tensor:
    """Mean over the first `views` of z [N, T, D]: what fusing the same views without a transformer gives."""
    if not 1 <= views <= z.shape[1]:
        raise ValueError(f"{views} views asked of {z.shape[1]}: draw longer sequences")
    return z[:, :views].mean(1)
