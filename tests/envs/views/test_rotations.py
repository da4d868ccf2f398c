"""Quaternion actions against SciPy, and what an episode of posed views may depend on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from envs.episodes import check_episodes
from envs.views.rotations import PosedViews, distinct_views, quaternions, relative_quaternions


def posed(*, items: int = 3, views: int = 6, acted: tuple[str, ...] = ()) -> PosedViews:
    """Views that show their own number."""
    rotations = quaternions(Rotation.random(items * views, rng=0)).reshape(items, views, 4)
    return PosedViews(
        views=np.arange(items * views, dtype=np.float32).reshape(items, views, 1),
        rotations=rotations,
        classes=np.arange(items),
        latents={"hue": np.random.default_rng(1).random((items, views), np.float32)},
        acted=acted,
    )


def test_relative_rotation_equals_scipys() -> None:
    first, second = Rotation.random(500, rng=0), Rotation.random(500, rng=1)
    ours = relative_quaternions(first.as_quat(), second.as_quat())
    np.testing.assert_allclose(ours, (first.inv() * second).as_quat(canonical=True), atol=1e-6)
    # the action turns the first view's rotation into the second's
    assert ((first * Rotation.from_quat(ours)).inv() * second).magnitude().max() < 1e-5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, -1]), st.sampled_from([1, -1]))
def test_sign_of_a_quaternion_does_not_matter(seed: int, p: int, q: int) -> None:
    first, second = Rotation.random(2, rng=seed).as_quat()
    action = relative_quaternions(first, second)
    np.testing.assert_array_equal(relative_quaternions(p * first, q * second), action)
    assert action[3] >= 0
    np.testing.assert_array_equal(
        quaternions(Rotation.from_quat(p * first)), quaternions(Rotation.from_quat(first))
    )


def test_actions_compose_along_an_episode() -> None:
    episode = posed().sample(1, steps=5, generator=np.random.default_rng(0))
    total = Rotation.identity()
    for action in episode.actions:
        total = total * Rotation.from_quat(action)
    ends = episode.labels["rotation"][[0, -1]]
    assert (total.inv() * Rotation.from_quat(relative_quaternions(*ends))).magnitude() < 1e-5


@pytest.mark.parametrize("acted", [(), ("hue",)])
def test_action_of_two_views_depends_on_them_alone(acted: tuple[str, ...]) -> None:
    source = posed(acted=acted)
    seen: dict[tuple[float, float], np.ndarray] = {}
    for seed in range(60):
        steps = 2 + seed % 5
        episode = source.sample(0, steps=steps, generator=np.random.default_rng(seed))
        for t in range(steps - 1):
            pair = (episode.observations[t, 0], episode.observations[t + 1, 0])
            np.testing.assert_array_equal(seen.setdefault(pair, episode.actions[t]), episode.actions[t])
    assert len(seen) == 30


def test_views_are_distinct_and_change_with_the_generator() -> None:
    source = posed(views=24)
    tuples = set()
    for seed in range(50):
        views = source.sample(2, steps=4, generator=np.random.default_rng(seed)).observations[:, 0]
        assert len(set(views)) == 4
        tuples.add(tuple(views))
    assert len(tuples) > 45
    generator = np.random.default_rng(0)
    first, second = (source.sample(2, steps=4, generator=generator).observations for _ in range(2))
    assert not np.array_equal(first, second)


def test_latents_become_labels_and_parts_of_the_action() -> None:
    source = posed(acted=("hue",))
    check_episodes(source, steps=1)
    check_episodes(source, steps=4)
    assert source.action.dim == 5
    assert source.action.names[-1] == "change of hue"
    episode = source.sample(2, steps=3, generator=np.random.default_rng(0))
    np.testing.assert_array_equal(episode.actions[:, 4], np.diff(episode.labels["hue"]))
    assert episode.labels["class"] == 2


@pytest.mark.parametrize("chosen", [np.array([0, 2]), np.array([True, False, True])])
def test_a_subset_keeps_its_items_whole(chosen: np.ndarray) -> None:
    whole = posed(acted=("hue",))
    part = whole.subset(chosen)
    assert (len(part), part.action.names) == (2, whole.action.names)
    np.testing.assert_array_equal(part.views, whole.views[[0, 2]])
    np.testing.assert_array_equal(part.rotations, whole.rotations[[0, 2]])
    np.testing.assert_array_equal(part.classes, [0, 2])
    np.testing.assert_array_equal(part.latents["hue"], whole.latents["hue"][[0, 2]])


def test_errors_name_the_fix() -> None:
    with pytest.raises(ValueError, match="item 1 has 6 views: ask for 1 to 6 steps, not 7"):
        posed().sample(1, steps=7, generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match="not 0"):
        distinct_views(4, steps=0, item=0, generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"no latent \['colour'\].*\['hue'\]"):
        posed(acted=("colour",))
    good = {"views": np.zeros((2, 3, 1)), "rotations": np.zeros((2, 3, 4)), "classes": np.zeros(2)}
    for name, wrong in {"rotations": np.zeros((2, 4)), "classes": np.zeros(3)}.items():
        with pytest.raises(ValueError, match=r"views \[N, V, \.\.\.\] go with"):
            PosedViews(**{**good, name: wrong})
    with pytest.raises(ValueError, match="one number per view"):
        PosedViews(**good, latents={"hue": np.zeros(2)})
