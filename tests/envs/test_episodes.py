"""The episode interface: shapes, splits, blocks and the conformance check."""

from typing import Any

import numpy as np
import pytest

from envs.episodes import ActionBlocks, ActionSpec, Episode, EpisodeSource, Items, check_episodes, split_items


class Walk:
    """A random walk of one number; the action is the step."""

    action = ActionSpec(names=("step [m]",), low=np.full(1, -1, np.float32), high=np.ones(1, np.float32))
    observation_shape = (1,)

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __len__(self) -> int:
        return 10

    def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Episode:
        actions = (self.scale * generator.uniform(-1, 1, (steps - 1, 1))).astype(np.float32)
        positions = np.concatenate([[[item]], item + np.cumsum(actions, 0)]).astype(np.float32)
        return Episode(
            observations=positions,
            actions=actions,
            item=item,
            labels={"state": positions, "start": np.array(item)},
        )


def test_conformance_passes_and_names_what_is_wrong() -> None:
    assert isinstance(Walk(), EpisodeSource)
    check_episodes(Walk())
    check_episodes(ActionBlocks(Walk(), 3))
    with pytest.raises(ValueError, match="leaves its bounds"):
        check_episodes(Walk(scale=3.0))

    class Unseeded(Walk):
        def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Episode:
            return super().sample(item, steps=steps, generator=np.random.default_rng())

    with pytest.raises(ValueError, match="different episodes"):
        check_episodes(Unseeded())

    class Shaped(Walk):
        observation_shape = (2,)

    with pytest.raises(ValueError, match="expected"):
        check_episodes(Shaped())


def test_blocks_join_actions_and_skip_observations() -> None:
    plain = Walk().sample(4, steps=7, generator=np.random.default_rng(0))
    blocks = ActionBlocks(Walk(), 3).sample(4, steps=3, generator=np.random.default_rng(0))
    assert np.array_equal(blocks.observations, plain.observations[::3])
    assert np.array_equal(blocks.actions, plain.actions.reshape(2, 3))
    assert np.array_equal(blocks.labels["state"], plain.labels["state"][::3])
    assert blocks.labels["start"] == 4
    spec = ActionBlocks(Walk(), 3).action
    assert spec.names == ("step [m] +0", "step [m] +1", "step [m] +2")
    assert spec.low.shape == (3,)
    with pytest.raises(ValueError, match="at least 1"):
        ActionBlocks(Walk(), 0)


def test_splits_are_disjoint_complete_and_fixed() -> None:
    parts = split_items(103, fractions=(0.7, 0.2, 0.1), seed=3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(103))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(parts, split_items(103, fractions=(0.7, 0.2, 0.1), seed=3), strict=True)
    )
    side = Items(Walk(), np.array([7, 2]))
    assert len(side) == 2
    assert side.sample(1, steps=2, generator=np.random.default_rng(0)).item == 2
    for bad in ((0.9, 0.2), (0.5, 0.0)):
        with pytest.raises(ValueError, match="fractions must be"):
            split_items(10, fractions=bad, seed=0)
    with pytest.raises(ValueError, match="too few"):
        split_items(2, fractions=(0.4, 0.3, 0.3), seed=0)


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (np.zeros((3, 1)), np.zeros((3, 1)), "2 actions"),
        (np.zeros((3, 1)), np.full((2, 1), np.nan), "NaN"),
    ],
)
def test_bad_episodes(observations: np.ndarray, actions: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Episode(observations=observations, actions=actions, item=0)


@pytest.mark.parametrize(
    "options",
    [
        {"names": ("a",), "low": np.zeros(2), "high": np.ones(2)},
        {"names": ("a",), "low": np.ones(1), "high": np.zeros(1)},
        {"names": ("a",), "low": np.zeros(1), "high": np.ones(1), "max_norm": 0.0},
    ],
)
def test_bad_bounds(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"bounds|max_norm"):
        ActionSpec(**options)
