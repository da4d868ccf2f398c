"""Episodes: what every data source and simulator of this project hands to a world model.

A source has items (an object, an image, a recorded drive, a layout of rooms) and cuts or draws episodes from one of
them. Items are the unit of every split: no item is in two of them.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """What the numbers of an action mean.

    Attributes:
        names: one per dimension, units in brackets ("speed [m/s]").
        low, high: bounds [A] float32; infinite where there are none.
        max_norm: bound of the Euclidean norm, or None.

    Raises:
        ValueError: if the lengths differ or a lower bound lies above the upper one.
    """

    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    max_norm: float | None = None

    def __post_init__(self) -> None:
        shape = (len(self.names),)
        if self.low.shape != shape or self.high.shape != shape or not (self.low <= self.high).all():
            raise ValueError(
                f"{len(self.names)} action names need bounds low <= high of that length, got {self.low} and {self.high}"
            )
        if self.max_norm is not None and not self.max_norm > 0:
            raise ValueError(f"max_norm must be positive, got {self.max_norm}")

    @property
    def dim(self) -> int:
        return len(self.names)

    @classmethod
    def free(cls, *names: str) -> "ActionSpec":
        """Actions without bounds."""
        edge = np.full(len(names), np.inf, np.float32)
        return cls(names=names, low=-edge, high=edge)

    def blocks(self, length: int) -> "ActionSpec":
        """`length` consecutive actions as one; a bound of the norm holds for each of them (`clip_blocks`)."""
        return ActionSpec(
            names=tuple(f"{name} +{i}" for i in range(length) for name in self.names),
            low=np.tile(self.low, length),
            high=np.tile(self.high, length),
            max_norm=self.max_norm,
        )


@dataclass(frozen=True, kw_only=True)
class Episode:
    """T observations and the actions between them.

    Attributes:
        observations: [T, ...] float32 or uint8.
        actions: [T - 1, A] float32; actions[t] leads from observations[t] to observations[t + 1].
        item: index of the item in its source.
        labels: for probes and controls only, never for training: arrays of one value per episode [...] or per
            observation [T, ...] by name (`class`, `rotation`, `state`).
    """

    observations: np.ndarray
    actions: np.ndarray
    item: int
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.actions.ndim != 2 or len(self.observations) != len(self.actions) + 1:
            raise ValueError(
                f"{len(self.observations)} observations have {len(self.observations) - 1} actions [T - 1, A] between "
                f"them, got {self.actions.shape}"
            )
        if not np.isfinite(self.actions).all():
            raise ValueError(f"the actions of item {self.item} hold NaN or infinite numbers")


@runtime_checkable
class EpisodeSource(Protocol):
    """Items to draw episodes from.

    `sample` is a function of its arguments and the generator's state alone. The action of two views depends on no other
    view, nor on how many there are.
    """

    @property
    def action(self) -> ActionSpec: ...

    @property
    def observation_shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Episode:
        """An episode of `steps` observations of one item.

        Raises:
            ValueError: if the item has fewer views or frames than that.
        """
        ...


def split_items(count: int, *, fractions: Sequence[float], seed: int) -> tuple[np.ndarray, ...]:
    """Disjoint sorted item indices, one array per fraction, covering all items if the fractions sum to 1.

    Raises:
        ValueError: if a part would be empty, or the fractions exceed 1.
    """
    if min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
        raise ValueError(f"fractions must be positive and sum to at most 1, got {tuple(fractions)}")
    order = np.random.default_rng((seed, 0x5911)).permutation(count)
    edges = np.rint(np.cumsum([0.0, *fractions]) * count).astype(int)
    parts = tuple(np.sort(order[a:b]) for a, b in itertools.pairwise(edges))
    if any(len(p) == 0 for p in parts):
        raise ValueError(f"{count} items are too few for parts of {tuple(fractions)}")
    return parts


class Items:
    """Some items of a source, as a source: one side of a split."""

    def __init__(self, source: EpisodeSource, items: np.ndarray) -> None:
        self.source, self.items = source, np.asarray(items)

    @property
    def action(self) -> ActionSpec:
        return self.source.action

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return self.source.observation_shape

    def __len__(self) -> int:
        return len(self.items)

    def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Episode:
        return self.source.sample(int(self.items[item]), steps=steps, generator=generator)


class ActionBlocks:
    """A source seen every `length` steps, with the actions between joined to one (frame skip of a world model)."""

    def __init__(self, source: EpisodeSource, length: int) -> None:
        if length < 1:
            raise ValueError(f"a block holds at least 1 action, got {length}")
        self.source, self.length = source, length

    @property
    def action(self) -> ActionSpec:
        return self.source.action.blocks(self.length)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return self.source.observation_shape

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Episode:
        count = (steps - 1) * self.length + 1
        whole = self.source.sample(item, steps=count, generator=generator)
        labels = {
            name: value[:: self.length] if np.ndim(value) and len(value) == count else value
            for name, value in whole.labels.items()
        }
        return Episode(
            observations=whole.observations[:: self.length],
            actions=whole.actions.reshape(steps - 1, -1),
            item=whole.item,
            labels=labels,
        )


def check_episodes(source: EpisodeSource, *, steps: int = 3) -> None:
    """Conformance of a source: shapes, types, bounds, and that equal generators give equal episodes.

    Raises:
        ValueError: naming what is wrong.
    """
    if len(source) < 1:
        raise ValueError("the source has no items")
    for item in {0, len(source) - 1}:
        first, again = (
            source.sample(item, steps=steps, generator=np.random.default_rng(item)) for _ in range(2)
        )
        if first.observations.shape != (steps, *source.observation_shape):
            raise ValueError(
                f"item {item}: observations {first.observations.shape}, expected {(steps, *source.observation_shape)}"
            )
        if first.observations.dtype not in (np.float32, np.uint8) or first.actions.dtype != np.float32:
            raise ValueError(
                f"item {item}: observations are float32 or uint8 and actions float32, got "
                f"{first.observations.dtype} and {first.actions.dtype}"
            )
        if first.actions.shape != (steps - 1, source.action.dim):
            raise ValueError(
                f"item {item}: actions {first.actions.shape}, expected {(steps - 1, source.action.dim)}"
            )
        if (first.actions < source.action.low - 1e-4).any() or (
            first.actions > source.action.high + 1e-4
        ).any():
            raise ValueError(f"item {item}: an action leaves its bounds")
        same = np.array_equal(first.observations, again.observations) and np.array_equal(
            first.actions, again.actions
        )
        if not same:
            raise ValueError(f"item {item}: two equal generators gave different episodes")
