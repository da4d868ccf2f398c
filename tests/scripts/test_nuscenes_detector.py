"""nuScenes from its tables to the devkit's figures: training on ten sweeps, velocities, a submission of both splits."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lidar.datasets.nuscenes import official_scenes
from tests.lidar.nuscenes_drives import KEYS, write_drives
from tests.scripts.test_train_policy import composed

pytest.importorskip("nuscenes", reason="needs the extra nuscenes")
GRID = "detector.grid={point_range: [0, -12.8, -5, 25.6, 12.8, 3], voxel_size: [0.2, 0.2, 0.2]}"


def test_train_and_evaluate(
    tmp_path: Path, script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = tmp_path / "nuscenes", tmp_path / "run"
    root.mkdir()
    write_drives(root, (*official_scenes("mini_train"), *official_scenes("mini_val")))
    settings = composed(
        "train_detector", "recipe=center_point_nuscenes", GRID, f"detection_data.root={root}",
        "detection_data.version=v1.0-mini", "detection_data.split=mini_train", "detection_data.heldout=mini_val",
        f"detection_data.sampling.cache={tmp_path / 'cache'}", f"run.dir={run}", "trainer.max_steps=2",
        "trainer.batch_size=2", "trainer.heldout_frames=2", "trainer.eval_every=2", "trainer.checkpoint_every=2",
        "trainer.num_workers=0", "trainer.device=cpu", "trainer.progress=false",
    )  # fmt: skip
    assert script("train_detector").run(settings) == 0
    script("evaluate_detector").main([str(run), "--quiet"])
    assert "NDS" in capsys.readouterr().out
    stored = json.loads((run / "evaluation" / "results.json").read_text())
    assert stored["frames"] == KEYS * len(official_scenes("mini_val"))
    assert 0 <= stored["evaluation"]["nd_score"] <= 1
    submission = json.loads((run / "evaluation" / "submission.json").read_text())["results"]
    assert len(submission) == stored["frames"]
    boxes = [box for found in submission.values() for box in found]
    assert boxes
    assert np.abs([box["velocity"] for box in boxes]).max() > 0
    assert "sensor_frame" not in stored  # the devkit judges by centres
    assert (run / "evaluation" / "report.html").is_file()
