"""Recordings: content, resuming, processes, what is refused; the command line; loading."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium")
pytest.importorskip("pyarrow")

from envs.demonstrations import Demonstration, MissingColumn, action_bounds, load_demonstrations
from envs.lerobot import LeRobotDataset
from envs.manipulation import EnvOptions, RolloutSettings, demonstrate, make_env
from envs.manipulation.recording import RecordingError, RecordingSettings, Tally, record, recorded_options
from envs.manipulation.workers import Workers
from tests.envs.manipulation import toy

OPTIONS = EnvOptions(image_size=8)
SETTINGS = RecordingSettings(rollout=RolloutSettings(options=OPTIONS, noise=0.2))
NAMES = ["toy/reach", "toy/reach-too"]


def equal(first: list[Demonstration], second: list[Demonstration]) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for a, b in zip(first, second, strict=True)
        for name in ("state", "environment", "image", "action", "task", "seed", "success")
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recorded") / "set"
    record(root, names=NAMES, episodes=3, settings=SETTINGS)
    return root


def test_a_recording_holds_the_demonstrations_that_succeeded(recorded: Path) -> None:
    env = make_env("toy/reach", OPTIONS)
    expected = [demonstrate(env, seed=seed, noise=0.2) for seed in (1, 2, 4)]
    assert equal(load_demonstrations(recorded, tasks=["toy/reach"]), expected)
    assert [d.seed for d in load_demonstrations(recorded)] == [1, 2, 4] * 2
    dataset = LeRobotDataset(recorded)
    assert dataset.info.robot_type == "toy"
    assert dataset.features["action"].info["high"] == [1, 1]
    assert dataset.frames("next.success", episode=0).tolist()[-2:] == [False, True]


def test_failures_are_counted_and_kept_on_request(tmp_path: Path) -> None:
    seen: list[dict[str, Tally]] = []
    found = record(
        tmp_path / "a", names=NAMES[:1], episodes=3, settings=SETTINGS, report=lambda t: seen.append(dict(t))
    )
    assert found == {"toy/reach": Tally(attempts=5, successes=3)}
    assert [t["toy/reach"].attempts for t in seen] == [0, 1, 2, 3, 4, 5]
    keep = RecordingSettings(rollout=SETTINGS.rollout, keep_failures=True, first_seed=10)
    assert record(tmp_path / "b", names=NAMES[:1], episodes=3, settings=keep) == {"toy/reach": Tally(3, 2)}
    loaded = load_demonstrations(tmp_path / "b")
    assert [(d.seed, d.success) for d in loaded] == [(10, True), (11, True), (12, False)]


@pytest.mark.parametrize("keep_failures", [False, True])
def test_more_may_be_asked_for_later(tmp_path: Path, keep_failures: bool) -> None:
    settings = RecordingSettings(rollout=SETTINGS.rollout, keep_failures=keep_failures)
    whole = record(tmp_path / "whole", names=NAMES[:1], episodes=5, settings=settings)
    for episodes in (2, 5, 4):
        parts = record(tmp_path / "parts", names=NAMES[:1], episodes=episodes, settings=settings)
    assert parts == whole
    assert equal(load_demonstrations(tmp_path / "parts"), load_demonstrations(tmp_path / "whole"))
    record(tmp_path / "parts", names=NAMES[1:], episodes=1, settings=settings)
    assert LeRobotDataset(tmp_path / "parts").tasks == NAMES


def test_without_pictures(tmp_path: Path) -> None:
    settings = RecordingSettings(rollout=RolloutSettings(options=OPTIONS, image=False))
    record(tmp_path, names=NAMES[:1], episodes=1, settings=settings)
    assert load_demonstrations(tmp_path, image=False)[0].image is None
    with pytest.raises(MissingColumn, match=r"observation\.image"):
        load_demonstrations(tmp_path)


def test_videos(tmp_path: Path) -> None:
    settings = RecordingSettings(rollout=RolloutSettings(options=EnvOptions(image_size=32)), video=True)
    record(tmp_path, names=NAMES[:1], episodes=1, settings=settings)
    (found,) = load_demonstrations(tmp_path)
    exact = demonstrate(make_env("toy/reach", settings.rollout.options), seed=1)
    assert found.image is not None
    assert exact.image is not None
    assert abs(found.image.astype(int) - exact.image).mean() < 8


def test_other_settings_are_refused(recorded: Path) -> None:
    other = RecordingSettings(rollout=RolloutSettings(options=OPTIONS, noise=0.3))
    with pytest.raises(RecordingError, match=r"other settings.*'noise': 0.2.*now.*'noise': 0.3"):
        record(recorded, names=NAMES, episodes=3, settings=other)


def test_environments_that_do_not_fit_in_one_data_set_are_refused_before_the_first_episode(
    tmp_path: Path,
) -> None:
    def make(name: str, options: EnvOptions) -> toy.ToyReach:
        made = toy.ToyReach(name.partition("/")[2], options)
        made.fps = 20.0 if name == "toy/reach-too" else 10.0
        return made

    with pytest.raises(
        ValueError, match=r"toy/reach-too and toy/reach do not fit.*20 fps and .*10 fps.*folders of their"
    ):
        record(tmp_path, names=NAMES, episodes=3, settings=SETTINGS, make=make)
    assert not list(tmp_path.iterdir())


def test_an_expert_that_never_succeeds_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="toy/never failed 50 times in a row: lower the noise"):
        record(tmp_path, names=["toy/never"], episodes=1, settings=SETTINGS)


def test_a_worker_that_is_killed_is_an_error_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Workers.demonstrations

    def killed(*args: Any, **kwargs: Any) -> Generator[Demonstration, None, None]:
        yield from itertools.islice(whole(*args, **kwargs), 2)
        raise BrokenProcessPool

    monkeypatch.setattr(Workers, "demonstrations", killed)
    with pytest.raises(RecordingError, match="the same command with fewer workers"):
        record(tmp_path, names=NAMES, episodes=3, settings=SETTINGS)
    assert [d.seed for d in load_demonstrations(tmp_path)] == [1]


def test_errors_name_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="different environments"):
        record(tmp_path, names=["toy/reach", "toy/reach"], episodes=1, settings=SETTINGS)
    with pytest.raises(ValueError, match="of one suite"):
        record(tmp_path, names=["toy/reach", "point_maze/UMaze"], episodes=1, settings=SETTINGS)
    with pytest.raises(ValueError, match="at least one episode"):
        record(tmp_path, names=NAMES, episodes=0, settings=SETTINGS)
    with pytest.raises(ValueError, match="at least 1 worker"):
        Workers(0)


def command(*arguments: object) -> list[str]:
    script = Path(__file__).with_name("record_toy.py")
    return [sys.executable, str(script), *NAMES, "--image-size=8", "--noise=0.2", *map(str, arguments)]


def test_processes_change_nothing(recorded: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command("--out", tmp_path, "--episodes=3", "--workers=2"), capture_output=True, text=True, check=True
    )
    assert "toy/reach: 3 of 5 attempts succeeded, 3 kept" in done.stdout
    assert equal(load_demonstrations(tmp_path), load_demonstrations(recorded))


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_recording_that_was_broken_off_goes_on(
    recorded: Path, tmp_path: Path, blow: signal.Signals
) -> None:
    root = tmp_path / "set"
    staged = root / ".staged" / "000000001"
    with subprocess.Popen(
        command("--out", root, "--episodes=3", "--slow"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 60
        while not staged.is_dir() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(blow)
        _, errors = process.communicate(timeout=60)
    if blow == signal.SIGINT:
        assert b"the same command goes on from here" in errors
        assert 2 <= len(LeRobotDataset(root)) < 6
    else:
        assert process.returncode == -signal.SIGKILL
    record(root, names=NAMES, episodes=3, settings=SETTINGS)
    assert equal(load_demonstrations(root), load_demonstrations(recorded))
    statistics = [LeRobotDataset(path).stats["action"]["mean"] for path in (root, recorded)]
    assert np.allclose(*statistics)


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    with subprocess.Popen(
        command("--out", tmp_path / "set", "--episodes=999", "--workers=2", "--slow"),
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "set" / ".staged" / "000000000").is_dir() and time.monotonic() < deadline:
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    assert len(children) >= 2
    deadline = time.monotonic() + 20
    while any(_alive(int(child)) for child in children):
        assert time.monotonic() < deadline, "workers outlived the process that started them"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_settings_are_beside_the_data(recorded: Path) -> None:
    described = json.loads((recorded / "meta" / "recording.json").read_text())
    assert described["rollout"]["noise"] == 0.2
    assert "mujoco" in described["versions"]
    assert recorded_options(recorded) == OPTIONS
    bounds = action_bounds(recorded)
    assert bounds is not None
    assert [edge.tolist() for edge in bounds] == [[-1, -1], [1, 1]]
    assert recorded_options(recorded.parent) is None
