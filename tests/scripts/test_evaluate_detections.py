"""scripts/evaluate_detections.py: files in, table, JSON and figure out; errors that say what to do."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[2]
Script = Callable[[str], ModuleType]


def settings(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        composed = compose("evaluate_detections", overrides=list(overrides))
    return OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Fifty frames with a car that is found, but with no result file for the last two."""
    results, labels = tmp_path / "det" / "data", tmp_path / "label_2"
    results.mkdir(parents=True)
    labels.mkdir()
    for frame in range(50):
        row = "Car 0 0 0.1 100 100 200 200 1.5 1.6 4 1 1.7 10 0.2"
        (labels / f"{frame:06d}.txt").write_text(f"{row}\n")
        if frame < 48:
            (results / f"{frame:06d}.txt").write_text(f"{row} {1 - frame / 100}\n")
    return tmp_path / "det", labels


def test_kitti(
    script: Script, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, labels = folders
    output = tmp_path / "out" / "kitti.json"
    run = script("evaluate_detections").run
    run(settings("format=kitti", f"results={results}", f"labels={labels}", f"output={output}"))
    content = json.loads(output.read_text())
    assert sorted(content) == ["Car", "Cyclist", "Pedestrian"]
    assert sorted(content["Car"]) == ["3d", "aos", "bbox", "bev"]
    # 48 of 50 cars: the highest recalls are not reached.
    assert content["Car"]["3d"]["R40"] == pytest.approx([95.0] * 3)
    assert len(content["Car"]["aos"]["precision"][0]) == 41
    assert content["Cyclist"]["bev"]["R11"] == [None] * 3
    text = capsys.readouterr().out
    assert "95.0000" in text
    assert "2 of 50 frames have no result file" in text
    assert "000048, 000049" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".png").stat().st_size > 10_000
    frames = tmp_path / "val.txt"
    frames.write_text("".join(f"{n:06d}\n" for n in range(48)))
    run(
        settings(
            "format=kitti", f"results={results}", f"labels={labels}", f"output={output}", f"frames={frames}"
        )
    )
    assert json.loads(output.read_text())["Car"]["3d"]["R40"] == pytest.approx([100.0] * 3)
    assert "no result file" not in capsys.readouterr().out


def test_nuscenes(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nuscenes", reason="needs the extra nuscenes")
    box = {
        "sample_token": "a",
        "translation": [10.0, 0.0, 1.0],
        "size": [1.8, 4.5, 1.5],
        "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [0.0, 0.0],
        "detection_name": "car",
        "detection_score": 0.5,
        "attribute_name": "vehicle.parked",
    }
    meta = dict.fromkeys((f"use_{s}" for s in ("camera", "lidar", "radar", "map", "external")), False)
    (tmp_path / "results.json").write_text(json.dumps({"meta": meta, "results": {"a": [box]}}))
    (tmp_path / "truth.json").write_text(
        json.dumps({"a": [{**box, "ego_translation": [10.0, 0.0, 1.0], "num_pts": 3}]})
    )
    output = tmp_path / "nuscenes.json"
    words = ["format=nuscenes", f"results={tmp_path}/results.json", f"labels={tmp_path}/truth.json"]
    script("evaluate_detections").run(settings(*words, f"output={output}"))
    content = json.loads(output.read_text())
    assert content["mean_dist_aps"]["car"] == pytest.approx(1)
    assert content["label_tp_errors"]["traffic_cone"]["orient_err"] is None
    assert "mAP 0.1000" in capsys.readouterr().out
    assert output.with_suffix(".png").is_file()


def test_errors_say_what_to_do(script: Script, folders: tuple[Path, Path], tmp_path: Path) -> None:
    run = script("evaluate_detections").run
    results, labels = folders
    with pytest.raises(ValueError, match="format is one of kitti, nuscenes"):
        run(settings("format=waymo", "results=a", "labels=b"))
    with pytest.raises(ValueError, match=r"output is a \.json file"):
        run(settings("format=kitti", "results=a", "labels=b", "output=table.csv"))
    with pytest.raises(ValueError, match="no such folder"):
        run(settings("format=kitti", f"results={tmp_path / 'none'}", f"labels={labels}"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="no frames are listed"):
        run(
            settings(
                "format=kitti", f"results={results}", f"labels={labels}", f"frames={tmp_path / 'empty.txt'}"
            )
        )


def test_from_the_command_line(folders: tuple[Path, Path]) -> None:
    words = [sys.executable, "scripts/evaluate_detections.py", "format=kitti"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "error: results must be given: python scripts/evaluate_detections.py --help"
    )
