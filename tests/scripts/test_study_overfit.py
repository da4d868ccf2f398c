"""scripts/study_overfit.py: what is trained, what is kept, what is reported; training itself is a stand-in."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

Script = Callable[[str], ModuleType]


@pytest.fixture
def study(script: Script, monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, list[tuple[str, ...]]]:
    """The study on made-up frames, and the trainings it asks for."""
    module, trained = script("study_overfit"), []

    def called(*words: str) -> dict[str, float]:
        trained.append(words)
        folder = next(Path(w.removeprefix("run.dir=")) for w in words if w.startswith("run.dir="))
        folder.mkdir(parents=True, exist_ok=True)
        return {"cpu_s": 60.0, "peak_mib": 1.0}

    def judge(folder: Path) -> dict[str, Any]:
        found = {"threshold": 0.5, "recall": 1.0, "precision": 0.8, "objects": 3}
        return {**found, "passed": False, "parameters": 10}

    monkeypatch.setattr(module, "called", called)
    monkeypatch.setattr(module, "judge", judge)
    monkeypatch.setattr(module, "chosen", lambda root, count: ["000001"] * count)
    return module, trained


def test_trains_each_detector_once_without_augmentation(
    study: tuple[ModuleType, list[tuple[str, ...]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, trained = study
    base = ["--kitti", str(tmp_path), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    module.main([*base, "--detectors", "second_small", "--steps", "5"])
    module.main([*base, "--detectors", "second_small", "--steps", "5"])
    assert len(trained) == 1
    words = trained[0]
    assert {"detection_data.augment.flip_y=false", "detection_data.sampling.counts=null"} <= set(words)
    assert "trainer.max_steps=5" in words
    module.main([*base, "--steps", "6"])
    assert [w for call in trained[1:] for w in call if w.startswith("detector=")] == [
        "detector=second_small", "detector=center_point_small", "detector=pv_rcnn_small",
    ]  # fmt: skip
    stored = json.loads((tmp_path / "out" / "overfit.json").read_text())
    assert stored["detectors"]["pv_rcnn_small"]["cpu_s"] == 60.0
    with pytest.raises(SystemExit, match="is of other frames"):
        module.main([*base, "--steps", "6", "--frames", "7"])
    assert "commit" in stored["detectors"]["pv_rcnn_small"]
    assert (
        "| pv_rcnn_small | 10 | 6 | 1 | 3 | 1.000 | 0.800 | 0.50 | fail |"
        in (tmp_path / "out" / "overfit.md").read_text()
    )


def test_too_few_frames_are_named(script: Script, tmp_path: Path) -> None:
    for part in ("velodyne", "label_2", "calib"):
        (tmp_path / "training" / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    points = rng.uniform((5, -5, -2, 0), (20, 5, 0, 1), (50, 4)).astype(np.float32)
    points.tofile(tmp_path / "training" / "velodyne" / "000000.bin")
    rows = ["P0", "P1", "P2", "P3"]
    matrix = "1 0 0 0 0 1 0 0 0 0 1 0"
    calibration = [f"{r}: {matrix}" for r in rows]
    calibration += ["R0_rect: 1 0 0 0 1 0 0 0 1", "Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0"]
    (tmp_path / "training" / "calib" / "000000.txt").write_text("\n".join(calibration) + "\n")
    (tmp_path / "training" / "label_2" / "000000.txt").write_text(
        "Car 0.00 0 0.00 0 0 100 100 1.5 1.6 3.9 40.0 1.0 45.0 0.0\n"
    )
    with pytest.raises(SystemExit, match="has 0 frames with a car of 20 points in range, asked were 8"):
        script("study_overfit").chosen(tmp_path, 8)
