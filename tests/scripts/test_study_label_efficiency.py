"""The label-efficiency study with commands that pretend: their words are real, cells are kept, the tables add up."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.scripts.test_train_policy import composed

Script = Callable[[str], ModuleType]
GAIN = {"scratch": 0.0, "scratch_long": 1.0, "ema_variance": 3.0, "sigreg": -1.0, "occupancy": 2.5}


@pytest.fixture
def study(script: Script, monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, list[str]]:
    """The study, and the names of the commands it has run."""
    made, ran = script("study_label_efficiency"), []
    made_of = {"root": "data"}

    def called(name: str, *words: str) -> dict[str, float]:
        ran.append(name)
        if name == "evaluate_detector.py":
            arm, scenes, seed = Path(words[0]).name.rsplit("-", 2)
            value = 40.0 + int(seed) + int(scenes) / 100 + GAIN[arm]
            kitti = {metric: {"R40": [0, value, 0]} for metric in ("3d", "bev")}
            none = {metric: {"R40": [None, None, None]} for metric in ("3d", "bev")}
            centres = {
                "Car": {"objects": 3, "centre": {"R40": value + 20, "precision": [1.0]}},
                "Tram": {"objects": 0, "centre": {"R40": None, "precision": [None]}},
            }
            data = {"detection_data": {"fraction": int(scenes) / 600, "root": made_of["root"]}}
            found = {
                # A class that the detector does not learn: its 0 is no figure of it.
                "evaluation": {"Car": kitti, "Tram": none, "Bus": {m: {"R40": [0, 0, 0]} for m in kitti}},
                "sensor_frame": centres,
                "settings": data,
            }
            out = Path(words[0]) / "evaluation"
            out.mkdir(parents=True, exist_ok=True)
            (out / "results.json").write_text(json.dumps(found))
            return {"cpu_s": 1.0, "peak_mib": 10.0}
        settings: dict[str, Any] = composed(name.removesuffix(".py"), *words)
        Path(settings["run"]["dir"]).mkdir(parents=True)
        return {"cpu_s": 120.0, "peak_mib": 300.0}

    monkeypatch.setattr(made, "called", called)
    monkeypatch.setattr(made, "made_of", made_of, raising=False)
    return made, ran


def test_cells_are_paired_kept_and_reported(
    study: tuple[ModuleType, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, ran = study
    words = [
        "--seeds",
        "0",
        "1",
        "--scenes",
        "20",
        "600",
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path),
    ]
    made.main(words)
    text = capsys.readouterr().out
    gain = "+3.00 (+3.00 to +3.00)"
    row = (
        f"| ema_variance | 2 | {f'43.70 +- 0.71 | {gain} | ' * 2}63.70 +- 0.71 | {gain} | 43.70 +- 0.71 | - |"
    )
    assert row in text
    over_both = text.split("## Mean over 20, 600 labelled scenes")[1].splitlines()
    mean = next(line for line in over_both if line.startswith("| ema_variance | 2 |")).split(" | ")
    assert mean[3] == mean[5] == mean[7].removesuffix(" |") == gain
    gain = "+4.00 (+4.00 to +4.00)"
    assert f"| ema_variance - sigreg | {gain} | {gain} | {gain} |" in text
    assert "none widened for the 9 of them" in text
    assert "ema_variance +3.00 (reached), sigreg -1.00 (not reached), occupancy +2.50 (reached)" in text
    assert "| sigreg | 2 | 2.0 | 300 |" in text
    assert ran.count("pretrain_lidar.py") == 6
    assert ran.count("train_detector.py") == 20
    made.main(words)
    assert len(ran) == 46
    stored = json.loads((tmp_path / "label_efficiency.json").read_text())
    assert stored["cells"]["scratch"]["20"]["1"]["evaluation"]["Car"]["3d"]["R40"][1] == pytest.approx(41.2)
    made.main([*words, "--seeds", "1", "--arms", "sigreg", "--evaluate-again"])
    assert ran[46:] == ["evaluate_detector.py"] * 2
    car = stored["cells"]["scratch"]["20"]["1"]["sensor_frame"]["Car"]
    assert car == {"objects": 3, "centre": {"R40": pytest.approx(61.2)}}
    with pytest.raises(SystemExit, match="of another protocol"):
        made.main([*words, "--steps", "7"])
    # Also when it was not asked for.
    with pytest.raises(SystemExit, match=r"scratch-20-0 is of another protocol"):
        made.main([*words, "--seeds", "2", "--arms", "scratch", "--steps", "7"])
    with pytest.raises(SystemExit):
        made.main([*words, "--training", "100"])


def test_cells_of_other_data_do_not_share_a_table(
    study: tuple[ModuleType, list[str]], tmp_path: Path
) -> None:
    made, _ = study
    words = ["--scenes", "20", "--arms", "scratch", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    made.main([*words, "--seeds", "0"])
    made.made_of["root"] = "elsewhere"
    with pytest.raises(SystemExit, match="scratch-20-1 was trained with another detection_data"):
        made.main([*words, "--seeds", "1"])


def test_settings_and_the_number_of_pairs_are_told(
    study: tuple[ModuleType, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = study
    words = [
        "--scenes", "20", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path), "--extra", "trainer.batch_size=2",
        "--pretraining-extra", "trainer.batch_size=8",
    ]  # fmt: skip
    made.main([*words, "--arms", "sigreg", "--seeds", "0", "1"])
    made.main([*words, "--arms", "scratch", "--seeds", "1"])
    text = capsys.readouterr().out
    assert (
        "Of train_detector.py: `trainer.batch_size=2`. Of pretrain_lidar.py: `trainer.batch_size=8`." in text
    )
    assert "| sigreg | 2 | 39.70 +- 0.71 | -1.00, 1 seeds |" in text


def test_a_command_that_fails_is_shown(script: Script) -> None:
    with pytest.raises(SystemExit, match=r"train_detector\.py failed:(.|\n)*detector\.name is one of"):
        script("studies").called("train_detector.py", "detector.name=none", "run.dir=/nowhere")
