"""The command line of recording; what it records is tested with the environments."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("gymnasium_robotics")

from envs.demonstrations import load_demonstrations
from envs.lerobot import LeRobotDataset
from envs.manipulation import make_env
from tests.scripts.conftest import ROOT


def test_a_maze_is_recorded_as_videos_and_continued(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["point_maze/UMaze", f"--out={tmp_path}", "--image-size=16", "--video", "--first-seed=3"]
    script("record_demonstrations").main([*command, "--episodes=1"])
    script("record_demonstrations").main([*command, "--episodes=2"])
    assert f"{tmp_path}: 2 episodes" in capsys.readouterr().out
    assert [d.seed for d in load_demonstrations(tmp_path)] == [3, 4]
    assert LeRobotDataset(tmp_path).feature("observation.image").dtype == "video"


def test_all_environments_are_listed(
    script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("metaworld")
    script("record_demonstrations").main(["--list"])
    listed = capsys.readouterr().out.split()
    assert {"metaworld/drawer-open", "ogbench/cube-single", "point_maze/Large", "push_t/keypoints"} <= set(
        listed
    )
    assert len(script("record_demonstrations").expand(["metaworld/all", "point_maze/UMaze"])) == 51


def test_the_list_may_be_read_in_part() -> None:
    pytest.importorskip("metaworld")
    command = [sys.executable, str(ROOT / "scripts" / "record_demonstrations.py"), "--list"]
    listing = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert listing.stdout is not None
    listing.stdout.close()  # what `| head` does, only sooner
    _, complaint = listing.communicate(timeout=120)
    assert listing.returncode == 0
    assert "BrokenPipe" not in complaint


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "name environments and --out FOLDER"),
        (["nowhere/task", "--out=set"], "unknown suite 'nowhere'"),
        (["point_maze/Huge", "--out=set"], "maze must be one of"),
        (["push_t/keypoints", "--out=set"], "has no scripted expert"),
        (["point_maze/UMaze", "--out=set", "--noise=-1"], "noise must be at least 0"),
        (["point_maze/UMaze", "--out=set", "--image-size=0"], "image size must be positive"),
        (["point_maze/UMaze", "--out=set", "--episodes=0"], "at least one episode"),
        (["point_maze/UMaze", "--out=set", "--workers=0"], "at least 1 worker"),
    ],
)
def test_errors_name_the_fix(
    script: Callable[[str], ModuleType],
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        script("record_demonstrations").main(arguments)
    assert end.value.code == 2
    assert complaint in capsys.readouterr().err


def save_model(path: Path) -> Path:
    """An untrained PPO for the point maze."""
    algorithms = pytest.importorskip("stable_baselines3")
    algorithms.PPO("MultiInputPolicy", make_env("point_maze/UMaze"), n_steps=8, device="cpu").save(path)
    return path


def test_a_model_of_stable_baselines3_is_recorded_as_expert(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(tmp_path / "ppo.zip")
    command = [
        "point_maze/UMaze", f"--out={tmp_path}/set", "--no-image", "--episodes=2", "--max-steps=5", "--keep-failures",
    ]  # fmt: skip
    script("record_demonstrations").main([*command, f"--sb3-expert={model}", "--sb3-algorithm=ppo"])
    assert "set: 2 episodes" in capsys.readouterr().out
    assert [len(d) for d in load_demonstrations(tmp_path / "set", image=False)] == [5, 5]
    for arguments, complaint in (
        ([f"--sb3-expert={model}"], "needs both --sb3-expert FILE and --sb3-algorithm NAME"),
        (["--sb3-algorithm=ppo"], "needs both"),
        (["--sb3-keys", "state"], "needs both"),
        ([f"--sb3-expert={model}", "--sb3-algorithm=dqn"], "the algorithm is one of"),
        ([], "was recorded with other settings (expert: ppo "),
    ):
        with pytest.raises(SystemExit):
            script("record_demonstrations").main([*command, *arguments])
        assert complaint in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_acts_the_same_in_worker_processes(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    model = save_model(tmp_path / "ppo.zip")
    actions = []
    for workers in (1, 2):
        out = tmp_path / f"with_{workers}"
        script("record_demonstrations").main([
            "point_maze/UMaze", f"--out={out}", "--no-image", "--episodes=3", "--max-steps=20", "--keep-failures",
            f"--sb3-expert={model}", "--sb3-algorithm=ppo", f"--workers={workers}",
        ])  # fmt: skip
        actions.append([d.action for d in load_demonstrations(out, image=False)])
    assert all(np.array_equal(a, b) for a, b in zip(*actions, strict=True))
