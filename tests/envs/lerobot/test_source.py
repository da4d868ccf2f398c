"""Data sets as sources of episodes, and sources as data sets."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from envs.episodes import ActionSpec, Episode, EpisodeSource, check_episodes
from envs.lerobot import Feature, LeRobotDataset, LeRobotEpisodes, LeRobotWriter, write_episodes
from tests.envs.lerobot.conftest import frames_of


class Walks:
    """A source of noise: images or vectors, with labels of both kinds."""

    action = ActionSpec(
        names=("dx [m]", "dy [m]"),
        low=np.array([-1, -np.inf], np.float32),
        high=np.array([1, np.inf], np.float32),
        max_norm=2.0,
    )

    def __init__(self, shape: tuple[int, ...] = (3, 6, 4), dtype: str = "uint8") -> None:
        self.observation_shape, self.dtype = shape, dtype

    def __len__(self) -> int:
        return 3

    def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Episode:
        return Episode(
            observations=generator.integers(0, 255, (steps, *self.observation_shape)).astype(self.dtype),
            actions=generator.uniform(-1, 1, (steps - 1, 2)).astype(np.float32),
            item=item,
            labels={"class": np.array(item), "state": generator.normal(size=(steps, 2)), "room": np.ones(2)},
        )


@pytest.mark.parametrize(
    ("shape", "dtype", "key"),
    [
        ((3, 6, 4), "uint8", "observation.image"),
        ((6, 4, 1), "uint8", "observation.image"),
        ((2, 5, 5), "uint8", "observation.grid"),
        ((1, 5, 5), "float32", "observation.grid"),
        ((4,), "float32", "observation.state"),
        ((1,), "float32", "observation.state"),
    ],
)
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_recorded_source_is_the_source(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, key: str, in_memory: bool
) -> None:
    source = Walks(shape, dtype)
    count = write_episodes(source, tmp_path / "set", steps=7, fps=10, task="walk", episodes=4, seed=3)
    assert count == 4
    found = LeRobotEpisodes(LeRobotDataset(tmp_path / "set"), observation=key, in_memory=in_memory)
    assert isinstance(found, EpisodeSource)
    check_episodes(found, steps=7)
    assert found.observation_shape == shape
    assert found.action.names == source.action.names
    assert found.action.max_norm == 2.0
    np.testing.assert_array_equal(found.action.low, source.action.low)
    np.testing.assert_array_equal(found.action.high, source.action.high)
    for i in range(4):
        expected = source.sample(i % 3, steps=7, generator=np.random.default_rng((3, i)))
        whole = found.window(i, start=0, steps=7)
        np.testing.assert_array_equal(whole.observations, expected.observations)
        np.testing.assert_array_equal(whole.actions, expected.actions)
        assert whole.labels.keys() == {"class", "state", "room", "item"}
        for name, value in expected.labels.items():
            np.testing.assert_array_equal(whole.labels[name], value)
        assert whole.labels["item"] == i % 3
        assert whole.item == i


def test_windows_lie_anywhere_and_actions_follow_them(recorded: Path) -> None:
    source = LeRobotEpisodes(LeRobotDataset(recorded), observation="observation.state", labels=("reward",))
    whole = frames_of(8, 2)
    starts = set()
    for seed in range(40):
        episode = source.sample(2, steps=3, generator=np.random.default_rng(seed))
        start = int(np.flatnonzero((whole["observation.state"] == episode.observations[0]).all(1))[0])
        np.testing.assert_array_equal(episode.observations, whole["observation.state"][start : start + 3])
        np.testing.assert_array_equal(episode.actions, whole["action"][start : start + 2])
        np.testing.assert_array_equal(episode.labels["reward"], whole["reward"][start : start + 3])
        starts.add(start)
    assert starts == set(range(6))
    with pytest.raises(ValueError, match=r"episode 1 .* has 1 frames, asked for 2"):
        source.sample(1, steps=2, generator=np.random.default_rng(0))


def test_layout_of_images(recorded: Path) -> None:
    expected = frames_of(5, 0)["observation.image"]
    for first, moved in ((True, np.moveaxis(expected, -1, 1)), (False, expected), (None, expected)):
        source = LeRobotEpisodes(
            LeRobotDataset(recorded), observation="observation.image", channels_first=first
        )
        assert source.observation_shape == moved.shape[1:]
        np.testing.assert_array_equal(source.window(0, start=0, steps=5).observations, moved)


def test_names_of_other_people(tmp_path: Path) -> None:
    features = {
        "state.arm": Feature("float64", (3,)),
        "cmd": Feature("float64", (2,), names={"motors": ["shoulder", "elbow"]}),
        "scalar": Feature("float32", (1,)),
    }
    frames = {"state.arm": np.ones((4, 3)), "cmd": np.zeros((4, 2)), "scalar": np.arange(4, dtype=np.float32)}
    with LeRobotWriter(tmp_path / "set", features=features, fps=10) as writer:
        writer.append(frames, task="hold")
    dataset = LeRobotDataset(tmp_path / "set")
    source = LeRobotEpisodes(dataset, observation="state.arm", action="cmd")
    check_episodes(source)
    assert source.action.names == ("shoulder", "elbow")
    assert np.isinf(source.action.high).all()
    scalar = LeRobotEpisodes(dataset, observation="scalar", action="scalar")
    check_episodes(scalar)
    assert scalar.action.names == ("scalar 0",)


def test_choices_that_must_be_made(recorded: Path) -> None:
    dataset = LeRobotDataset(recorded)
    with pytest.raises(
        ValueError, match=r"choose the observation, one of observation\.image, observation\.gray"
    ):
        LeRobotEpisodes(dataset)
    with pytest.raises(KeyError, match="no feature 'cmd'"):
        LeRobotEpisodes(dataset, observation="observation.state", action="cmd")
    with pytest.raises(ValueError, match="an action is a vector of numbers"):
        LeRobotEpisodes(dataset, observation="observation.state", action="matrix")


def test_a_broken_off_recording_continues(tmp_path: Path) -> None:
    def record(name: str, episodes: int) -> Path:
        root = tmp_path / name
        write_episodes(Walks(), root, steps=4, fps=10, task="walk", episodes=episodes, seed=1)
        return root

    whole, parts = LeRobotDataset(record("whole", 5)), record("parts", 2)
    shutil.rmtree(parts / ".staged", ignore_errors=True)
    resumed = LeRobotDataset(record("parts", 5))
    for i in range(5):
        for key in ("observation.image", "action", "label.state"):
            np.testing.assert_array_equal(resumed.frames(key, episode=i), whole.frames(key, episode=i))


def test_video_recording(tmp_path: Path) -> None:
    write_episodes(Walks((3, 16, 16)), tmp_path / "set", steps=5, fps=10, task="walk", video=True)
    source = LeRobotEpisodes(LeRobotDataset(tmp_path / "set"))
    assert source.observation_key == "observation.image"
    assert source.observation_shape == (3, 16, 16)
    check_episodes(source)
    with pytest.raises(ValueError, match="are no images, record without video"):
        write_episodes(Walks((4,), "float32"), tmp_path / "other", steps=5, fps=10, task="walk", video=True)


def test_what_cannot_be_recorded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2 observations"):
        write_episodes(Walks(), tmp_path / "set", steps=1, fps=10, task="walk")
    with pytest.raises(ValueError, match=r"observation\.state is float16, which a data set cannot hold"):
        write_episodes(Walks((4,), "float16"), tmp_path / "set", steps=4, fps=10, task="walk")
