"""What is written is what is read: bit for bit in Parquet and PNG, closely in video."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.lerobot import Feature, LeRobotDataset, LeRobotWriter
from tests.envs.lerobot.conftest import FEATURES, LENGTHS, TASKS, frames_of


def smooth(length: int, *, phase: float = 0.0, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """Moving waves [T, H, W, 3] whose brightness names the frame: what a codec keeps well."""
    y, x = np.mgrid[: size[0], : size[1]]
    t = np.arange(length)[:, None, None]
    waves = [
        np.sin((x + 2 * t) / 9 + phase),
        np.cos((y + t) / 7 + phase),
        np.full_like(x + 0.0 * t, phase - 0.5),
    ]
    return (128 + 60 * np.stack(waves, axis=-1) + 2 * t[..., None]).clip(0, 255).astype(np.uint8)


def test_every_feature_bit_for_bit(recorded: Path) -> None:
    dataset = LeRobotDataset(recorded)
    assert [e.length for e in dataset.episodes] == list(LENGTHS)
    assert [e.tasks for e in dataset.episodes] == [(task,) for task in TASKS]
    assert dataset.num_frames == sum(LENGTHS)
    for seed, length in enumerate(LENGTHS):
        for key, expected in frames_of(length, seed).items():
            found = dataset.frames(key, episode=seed)
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == (object if key == "note" else expected.dtype)


def test_windows_memory_and_pickling(recorded: Path) -> None:
    dataset = LeRobotDataset(recorded)
    whole = {key: dataset.frames(key, episode=2) for key in FEATURES}
    assert len(dataset.frames("action", episode=3)) == 3
    copy = pickle.loads(pickle.dumps(dataset))
    loaded = LeRobotDataset(recorded)
    loaded.load(FEATURES)
    for source in (dataset, copy, loaded):
        for key, values in whole.items():
            np.testing.assert_array_equal(source.frames(key, episode=2, start=3, stop=6), values[3:6])
    with pytest.raises(ValueError, match="read-only"):
        loaded.frames("action", episode=0)[0] = 1


def test_loaded_data_need_no_files(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path / "set", features={"x": Feature("int64", (1,))}, fps=1) as writer:
        writer.append({"x": np.arange(4)}, task="count")
    dataset = LeRobotDataset(tmp_path / "set")
    dataset.load(["x"])
    (tmp_path / "set/data/chunk-000/file-000.parquet").unlink()
    assert dataset.frames("x", episode=0).tolist() == [0, 1, 2, 3]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    flushes=st.sets(st.integers(0, 7)),
    reopen=st.integers(0, 7),
)
def test_any_lengths_any_files(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], flushes: set[int], reopen: int
) -> None:
    root = tmp_path_factory.mktemp("any") / "set"
    features = {"x": Feature("int64", (1,)), "v": Feature("float32", (3,))}
    rows = np.arange(sum(lengths))
    starts = np.cumsum([0, *lengths])
    writer = LeRobotWriter(root, features=features, fps=30)
    for i, (start, stop) in enumerate(itertools.pairwise(starts)):
        x = rows[start:stop]
        writer.append({"x": x, "v": np.repeat(x[:, None], 3, 1).astype(np.float32)}, task=f"task {i % 3}")
        if i in flushes:
            writer.flush()
        if i == reopen:
            writer = LeRobotWriter.reopen(root)
    writer.close()
    dataset = LeRobotDataset(root)
    assert [e.length for e in dataset.episodes] == lengths
    for i, (start, stop) in enumerate(itertools.pairwise(starts)):
        np.testing.assert_array_equal(dataset.frames("x", episode=i), rows[start:stop])
        np.testing.assert_array_equal(dataset.frames("index", episode=i), rows[start:stop])
        middle = (stop - start) // 2
        window = dataset.frames("v", episode=i, start=middle, stop=stop - start)
        np.testing.assert_array_equal(window[:, 1], rows[start + middle : stop])
        assert dataset.episodes[i].tasks == (f"task {i % 3}",)


@pytest.mark.parametrize("codec", ["h264", "libsvtav1"])
def test_video(tmp_path: Path, codec: str) -> None:
    """Episodes share files; each frame is the one that was written, and its neighbours differ from it more."""
    size = (64, 64) if codec == "libsvtav1" else (32, 48)
    features = {"camera": Feature("video", (3, *size), names=("channels", "height", "width"))}
    episodes = [smooth(n, phase=i / 3, size=size) for i, n in enumerate((7, 4, 9))]
    with LeRobotWriter(tmp_path / "set", features=features, fps=15, codec=codec) as writer:
        for i, frames in enumerate(episodes):
            writer.append({"camera": np.moveaxis(frames, -1, 1)}, task="wave")
            if i == 1:
                writer.flush()
    dataset = LeRobotDataset(tmp_path / "set")
    spans = [dataset.episodes[i].videos["camera"] for i in range(3)]
    assert [(s.place.file, s.start, s.stop) for s in spans] == [
        (0, 0.0, pytest.approx(7 / 15)),
        (0, pytest.approx(7 / 15), pytest.approx(11 / 15)),
        (1, 0.0, pytest.approx(9 / 15)),
    ]
    for i, frames in enumerate(episodes):
        expected = np.moveaxis(frames, -1, 1).astype(float)
        found = dataset.frames("camera", episode=i).astype(float)
        assert np.abs(found - expected).mean() < 3
        window = dataset.frames("camera", episode=i, start=2, stop=4)
        np.testing.assert_array_equal(window, found[2:4])
        errors = np.abs(found[:, None] - expected[None]).mean((2, 3, 4))
        assert (errors.argmin(1) == np.arange(len(frames))).all()
    info = dataset.features["camera"].info
    assert info["video.codec"] == {"h264": "h264", "libsvtav1": "av1"}[codec]
    assert (info["video.height"], info["video.width"], info["video.fps"]) == (*size, 15)
    assert dataset.info.video_path == "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    assert dataset.stats["camera"]["mean"].shape == (3, 1, 1)
