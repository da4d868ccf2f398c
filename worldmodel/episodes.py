"""Episodes as training samples and held-out batches, from any source that can draw one."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from worldmodel.batches import EpisodeBatch
from worldmodel.training.order import Key, sample_key


class DrawnEpisode(Protocol):
    """observations [T, ...] and actions [T - 1, A], numpy."""

    @property
    def observations(self) -> np.ndarray: ...

    @property
    def actions(self) -> np.ndarray: ...


class Source(Protocol):
    """Draws episodes of its items (envs.episodes.EpisodeSource)."""

    def __len__(self) -> int: ...

    def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Any: ...


Sample = tuple[np.ndarray, np.ndarray, int]


class EpisodeDataset(Dataset[Sample]):
    """Stretches of `steps` observations, indexed by (item, seed of the draw).

    Args:
        source: of the items of one split.
        steps: observations per stretch.
    """

    def __init__(self, source: Source, *, steps: int) -> None:
        self.source, self.steps = source, steps

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Sample:
        item, seed = key
        drawn = self.source.sample(item, steps=self.steps, generator=np.random.default_rng(seed))
        return drawn.observations, drawn.actions, seed


def collate_episodes(samples: Sequence[Sample]) -> EpisodeBatch:
    """Samples to a batch; uint8 observations stay uint8: an encoder scales them."""
    observations, actions, seeds = zip(*samples, strict=True)
    return EpisodeBatch(
        observations=torch.from_numpy(np.stack(observations)),
        actions=torch.from_numpy(np.stack(actions)),
        seeds=tuple(seeds),
    )


def episode_batches(
    source: Source, *, steps: int, count: int, batch_size: int, seed: int
) -> list[EpisodeBatch]:
    """`count` stretches in batches, the same for the same seed: held-out data for monitors and probes.

    Items are taken in a shuffled order, again and again if there are fewer than `count`.
    """
    dataset = EpisodeDataset(source, steps=steps)
    keys = [sample_key(i, size=len(source), seed=seed) for i in range(count)]
    return [
        collate_episodes([dataset[key] for key in keys[start : start + batch_size]])
        for start in range(0, count, batch_size)
    ]
