"""Episodes as samples and batches: keys decide everything."""

import numpy as np
import torch

from envs.episodes import ActionSpec, Episode
from worldmodel.episodes import EpisodeDataset, collate_episodes, episode_batches


class Counting:
    """Item i holds i, and what the generator drew."""

    action = ActionSpec.free("a")
    observation_shape = (2,)

    def __len__(self) -> int:
        return 5

    def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Episode:
        drawn = generator.random((steps, 1)).astype(np.float32)
        observations = np.concatenate([np.full((steps, 1), item, np.float32), drawn], 1)
        return Episode(observations=observations, actions=drawn[1:], item=item)


def test_a_key_decides_the_sample() -> None:
    data = EpisodeDataset(Counting(), steps=4)
    first, again, other = data[3, 7], data[3, 7], data[3, 8]
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    batch = collate_episodes([first, other])
    assert batch.observations.shape == (2, 4, 2)
    assert batch.actions.shape == (2, 3, 1)
    assert batch.seeds == (7, 8)


def test_heldout_batches_repeat_and_go_through_all_items() -> None:
    one, two = (episode_batches(Counting(), steps=3, count=10, batch_size=4, seed=1) for _ in range(2))
    assert [len(b.seeds) for b in one] == [4, 4, 2]
    assert all(torch.equal(a.observations, b.observations) for a, b in zip(one, two, strict=True))
    items = torch.cat([b.observations[:, 0, 0] for b in one])
    assert sorted(items.tolist()) == sorted([0, 1, 2, 3, 4] * 2)
    other = episode_batches(Counting(), steps=3, count=10, batch_size=4, seed=2)
    assert not torch.equal(one[0].observations, other[0].observations)


def test_the_draws_of_two_epochs_differ() -> None:
    """Views drawn for an item are drawn anew when its turn comes again."""
    batches = episode_batches(Counting(), steps=3, count=10, batch_size=5, seed=0)
    first, second = (b.observations[b.observations[:, 0, 0].argsort()] for b in batches)
    assert not torch.allclose(first[:, :, 1], second[:, :, 1])
