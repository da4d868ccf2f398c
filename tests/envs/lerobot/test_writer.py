"""Nothing that was committed is lost, and nothing that does not fit is written."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from envs.lerobot import EpisodeError, Feature, LeRobotDataset, LeRobotWriter
from envs.lerobot import writer as writer_module
from tests.envs.lerobot.conftest import FEATURES, frames_of

COUNT = {"x": Feature("int64", (1,))}


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def count(root: Path, episodes: int) -> None:
    with LeRobotWriter(root, features=COUNT, fps=5) as writer:
        for i in range(writer.num_episodes, episodes):
            writer.append({"x": np.arange(i + 1)}, task=f"count to {i % 2}")
            if i % 3 == 2:
                writer.flush()


class Killed(BaseException):
    """The process ends here."""


def test_killed_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at the k-th change on disk, for every k: all appended episodes are there, and the rest follows."""
    count(tmp_path / "whole", 5)
    expected = contents(tmp_path / "whole")
    step, stop_at, kept = 0, 0, 0

    def counted(function: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal step
            step += 1
            if step == stop_at:
                raise Killed
            return function(*args, **kwargs)

        return call

    root = tmp_path / "broken"
    finished = False
    while not finished:
        stop_at += 1
        step, kept = 0, 0
        shutil.rmtree(root, ignore_errors=True)
        with monkeypatch.context() as patch:
            for owner, name in ((Path, "replace"), (Path, "rename"), (shutil, "rmtree"), (Path, "mkdir")):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            try:
                writer = LeRobotWriter(root, features=COUNT, fps=5)
                for i in range(5):
                    writer.append({"x": np.arange(i + 1)}, task=f"count to {i % 2}")
                    kept = i + 1
                    if i % 3 == 2:
                        writer.flush()
                writer.close()
                finished = True
            except Killed:
                pass
        again = LeRobotWriter(root, features=COUNT, fps=5)
        assert again.num_episodes >= kept
        again.close()
        count(root, 5)
        dataset = LeRobotDataset(root)
        assert [dataset.frames("x", episode=i).tolist() for i in range(5)] == [
            [*range(i + 1)] for i in range(5)
        ]
        info = json.loads((root / "meta/info.json").read_text())
        assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (5, 15, 2)
        assert dataset.stats["x"]["count"].tolist() == [15]
        assert not (root / ".staged").exists()
    assert contents(root) == expected
    assert stop_at > 30


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, numpy as np\n"
        "from envs.lerobot import Feature, LeRobotWriter\n"
        "writer = LeRobotWriter(sys.argv[1], features={'x': Feature('int64', (1,))}, fps=5)\n"
        "for i in range(3): writer.append({'x': np.arange(i + 1)}, task='count')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "set")], check=False, env={**os.environ}
    )
    assert done.returncode == -signal.SIGKILL
    LeRobotWriter.reopen(tmp_path / "set").close()
    assert [e.length for e in LeRobotDataset(tmp_path / "set").episodes] == [1, 2, 3]


def test_files_are_split_by_size_and_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "DatasetInfo", lambda **k: writer_info(chunks_size=2, **k))
    from envs.lerobot.schema import DatasetInfo as writer_info

    with LeRobotWriter(tmp_path / "set", features=COUNT, fps=5, data_files_size_in_mb=1e-6) as writer:
        for i in range(3):
            assert writer.append({"x": np.arange(4)}, task="count") == i
    dataset = LeRobotDataset(tmp_path / "set")
    assert [(e.place.chunk, e.place.file) for e in dataset.episodes] == [(0, 0), (0, 1), (1, 0)]
    assert dataset.frames("x", episode=2).tolist() == [0, 1, 2, 3]


def test_a_task_per_frame(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path / "set", features=COUNT, fps=5) as writer:
        writer.append({"x": np.arange(3)}, task=["reach", "grasp", "reach"])
        with pytest.raises(EpisodeError, match="need one task or 3"):
            writer.append({"x": np.arange(3)}, task=["reach"])
        with pytest.raises(EpisodeError, match="none of them empty"):
            writer.append({"x": np.arange(3)}, task="")
    dataset = LeRobotDataset(tmp_path / "set")
    assert dataset.frames("task_index", episode=0).tolist() == [0, 1, 0]
    assert dataset.episodes[0].tasks == ("reach", "grasp")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": None}, r"missing \['action'\]"),
        ({"force": np.zeros(4)}, r"unknown \['force'\]"),
        ({"timestamp": np.zeros(4)}, "the writer itself adds"),
        ({"action": np.zeros((4, 3), np.float32)}, r"'action' has frames of shape \(2,\), got \(3,\)"),
        ({"action": np.zeros((4, 2))}, "'action' is float32, got float64"),
        (
            {"action": np.full((4, 2), np.nan, np.float32)},
            "'action' holds NaN or infinite numbers, first in frame 0",
        ),
        ({"action": np.zeros((3, 2), np.float32)}, "the same number of frames"),
        ({"observation.image": np.zeros((4, 6, 8, 3), np.float32)}, "uint8 in 0..255"),
        ({"observation.image": np.zeros((4, 8, 6, 3), np.uint8)}, "'observation.image' has frames"),
        ({"note": np.arange(4)}, "'note' holds strings"),
        ({name: frames_of(1, 0)[name][:0] for name in FEATURES}, "at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    writer = LeRobotWriter(tmp_path / "set", features=FEATURES, fps=10)
    frames = {name: value for name, value in {**frames_of(4, 0), **change}.items() if value is not None}
    with pytest.raises(EpisodeError, match=message):
        writer.append(frames, task="none")
    assert writer.num_episodes == 0


@pytest.mark.parametrize(
    ("features", "settings", "message"),
    [
        ({}, {}, "at least one feature"),
        ({"a/b": Feature("int64", (1,))}, {}, "hold no '/'"),
        ({"index": Feature("int64", (1,))}, {}, "are added by the writer"),
        ({"c": Feature("video", (5, 8, 3))}, {}, "even height and width"),
        (COUNT, {"codec": "mpeg1"}, "unknown codec"),
        (COUNT, {"fps": 0}, "fps must be positive"),
    ],
)
def test_impossible_data_sets(tmp_path: Path, features: dict, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeRobotWriter(tmp_path / "set", features=features, **{"fps": 5, **settings})
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("float16", (1,)), "unknown dtype"),
        (("float32", ()), "1 to 5 positive"),
        (("float32", (0,)), "1 to 5 positive"),
        (("image", (8, 8)), "1 or 3 channels"),
        (("image", (2, 8, 8)), "1 or 3 channels"),
    ],
)
def test_impossible_features(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Feature(*arguments)


def test_other_folders_are_left_alone(tmp_path: Path, fresh: Callable[[], Path]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="holds files but no LeRobot data set"):
            LeRobotWriter(path, features=COUNT, fps=5)
    root = fresh()
    for changed in ({"features": COUNT}, {"fps": 20}):
        with pytest.raises(ValueError, match="cannot be continued"):
            LeRobotWriter(root, **{"features": FEATURES, "fps": 10, **changed})
