"""The command line of recording simulators and views; the format is tested with its reader."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("pyarrow")

from envs.lerobot import LeRobotDataset


@pytest.fixture
def record(script: Callable[[str], ModuleType]) -> Callable[[list[str]], None]:
    return script("record_episodes").main


def test_a_simulator_is_recorded_and_continued(
    record: Callable[[list[str]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["two_rooms", str(tmp_path), "--steps=5"]
    record([*command, "--episodes=1"])
    record([*command, "--episodes=3"])
    assert f"{tmp_path}: 3 episodes of 5 observations" in capsys.readouterr().out
    recorded = LeRobotDataset(tmp_path)
    assert (len(recorded.episodes), recorded.info.fps) == (3, 10)


def test_help_names_every_source(
    record: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        record(["--help"])
    assert ended.value.code == 0
    assert "{digits,objects,point_maze,push_t,two_rooms}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--option=doors=2", "--option takes NAME=VALUE with a name of"),
        ("--option=length", "got 'length'"),
        ("--steps=1", "step"),
    ],
)
def test_errors_name_the_fix(
    record: Callable[[list[str]], None],
    option: str,
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        record(["two_rooms", str(tmp_path / "set"), "--episodes=1", option])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "set" / "meta").exists()
