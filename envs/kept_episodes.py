"""Whole episodes that are made when they are first asked for, kept in memory, and cut into random stretches."""

from collections.abc import Callable

import numpy as np

from envs.episodes import Episode


class KeptEpisodes:
    """Stretches of episodes that are slow to simulate and small to keep.

    Args:
        make: the whole episode of an item, a function of the item alone.
        length: observations of each episode.
    """

    def __init__(self, make: Callable[[int], Episode], *, length: int) -> None:
        self._make, self.length = make, length
        self._made: dict[int, Episode] = {}

    def whole(self, item: int) -> Episode:
        """The episode of an item; not to be written to."""
        if item not in self._made:
            self._made[item] = self._make(item)
        return self._made[item]

    def cut(self, item: int, *, steps: int, generator: np.random.Generator) -> Episode:
        """A random stretch of `steps` observations, as a copy. Labels of one value per observation are cut too.

        Raises:
            ValueError: if the episodes are shorter.
        """
        if not 2 <= steps <= self.length:
            raise ValueError(f"episodes of {self.length} observations hold no stretch of {steps}")
        whole = self.whole(item)
        first = int(generator.integers(self.length - steps + 1))
        stretch = slice(first, first + steps)
        return Episode(
            observations=whole.observations[stretch].copy(),
            actions=whole.actions[first : first + steps - 1].copy(),
            item=item,
            labels={
                name: value[stretch].copy() if np.ndim(value) and len(value) == self.length else value
                for name, value in whole.labels.items()
            },
        )
