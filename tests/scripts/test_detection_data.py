"""check_labels.py and build_gt_database.py on a folder of one's own, and what they say when something is wrong."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lidar.detection.folder_labels import json_line
from lidar.detection.gt_database import GroundTruthDatabase
from tests.lidar.detection.sources import filled, row_of_boxes

Script = Callable[[str], ModuleType]
Run = Callable[..., int]


@pytest.fixture
def run(script: Script, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a script with these words; its exit status."""

    def started(name: str, *words: str) -> int:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        try:
            script(name).main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return started


def _folder(root: Path, *, bottom: bool = False) -> list[str]:
    """Two frames of ten cars askew; the words that name them."""
    (root / "points").mkdir(parents=True)
    lines = []
    for frame in range(2):
        boxes = row_of_boxes(10, y=3.0 * frame, spacing=3.5)
        boxes[:, 6] = 0.5
        np.save(root / f"points/{frame:06d}.npy", filled(boxes, seed=frame, each=40))
        if bottom:
            boxes[:, 2] -= boxes[:, 5] / 2
        lines.append(json_line(f"{frame:06d}", boxes=boxes, names=["car"] * 9 + ["van"]))
    (root / "labels.jsonl").write_text("".join(lines))
    return ["--points", str(root / "points"), "--labels", str(root / "labels.jsonl")]


def test_verdicts(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check_labels", *_folder(tmp_path / "right")) == 0
    assert "labels fit the points" in capsys.readouterr().out
    assert run("check_labels", *_folder(tmp_path / "wrong", bottom=True)) == 1
    assert "Add half the height to z" in capsys.readouterr().out


def test_a_database_is_built(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*_folder(tmp_path), "--out", str(tmp_path / "objects.gt"), "--classes", "car"]
    assert run("build_gt_database", *words, "--alias", "van=car") == 0
    assert "car 20; 2 frames in" in capsys.readouterr().out
    assert len(GroundTruthDatabase(tmp_path / "objects.gt")) == 20
    assert run("build_gt_database", *words, "--fraction", "0.5") == 0  # one scene only
    assert "car 18" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "Car"], "did you mean car?"),
        (["--classes", "car", "--alias", "van"], "--alias takes NAME=CLASS"),
        (["--classes", "car", "--fraction", "2"], "label fraction"),
        (["--classes", "car", "--workers", "-1"], "workers must be at least 1"),
        ([], "--classes"),
    ],
)
def test_mistakes_are_named(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run("build_gt_database", *_folder(tmp_path), "--out", str(tmp_path / "o.gt"), *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o.gt").exists()


def test_missing_data_are_named(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check_labels", "--points", str(tmp_path)) == 2
    assert "--points needs --labels" in capsys.readouterr().err
    assert run("check_labels", "--kitti", str(tmp_path / "none")) == 2
    assert "does not exist" in capsys.readouterr().err
    assert run("check_labels", "--nuscenes", str(tmp_path)) == 2
    assert "a nuScenes table is missing" in capsys.readouterr().err
    assert run("check_labels", *_folder(tmp_path / "a"), "--frames", "0") == 2
    assert "--frames must be 1 or more" in capsys.readouterr().err
