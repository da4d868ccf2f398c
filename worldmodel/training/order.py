"""Which samples make up which step: a pure function of (seed, step, rank), so resuming needs no state.

Samples form one endless stream, epoch after epoch, each a permutation seeded by (seed, epoch). Step s takes the next
`batch_size` positions. A position also seeds every draw made for its sample, so a sample is augmented and masked the
same way whichever process handles it.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

Key = tuple[int, int]  # (index in the data set, seed of the sample's draws)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, epoch)).permutation(size)


def sample_key(position: int, *, size: int, seed: int) -> Key:
    """Index and draw seed of the sample at a position of the stream over a data set of `size`."""
    epoch, offset = divmod(position, size)
    draw = int(np.random.SeedSequence((seed, 1, position)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return int(_permutation(seed, epoch, size)[offset]), draw


class BatchOrder:
    """Micro-batches of one rank, from `start_step` to `max_steps`; a `batch_sampler` for a DataLoader.

    Args:
        size: samples in the data set.
        micro_batch: samples per process and micro-batch.
        accumulate: micro-batches per step.
    """

    def __init__(
        self,
        *,
        size: int,
        micro_batch: int,
        accumulate: int,
        rank: int,
        world: int,
        seed: int,
        start_step: int,
        max_steps: int,
    ) -> None:
        if size < 1:
            raise ValueError("the training set is empty")
        self.size, self.micro_batch, self.accumulate = size, micro_batch, accumulate
        self.rank, self.world, self.seed = rank, world, seed
        self.start_step, self.max_steps = start_step, max_steps

    def keys(self, step: int, micro: int) -> list[Key]:
        """Keys of one micro-batch of this rank."""
        first = ((step * self.accumulate + micro) * self.world + self.rank) * self.micro_batch
        return [sample_key(first + i, size=self.size, seed=self.seed) for i in range(self.micro_batch)]

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start_step, self.max_steps):
            for micro in range(self.accumulate):
                yield self.keys(step, micro)

    def __len__(self) -> int:
        return (self.max_steps - self.start_step) * self.accumulate
