"""The commands that train and evaluate detectors, on a few simulated frames."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lidar.datasets.errors import DatasetError
from lidar.detection.folder_labels import json_line
from tests.scripts.conftest import write_clouds
from tests.scripts.test_train_policy import composed
from worldmodel.training.checkpoints import CheckpointError
from worldmodel.training.run_folder import RunFolderError

Script = Callable[[str], ModuleType]
TINY = [
    "trainer.max_steps=4", "trainer.batch_size=2", "trainer.heldout_frames=2", "trainer.eval_every=2",
    "trainer.checkpoint_every=2", "trainer.device=cpu", "trainer.progress=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words that describe six simulated frames, made on first use."""
    root = tmp_path_factory.mktemp("simulated")
    return [
        f"detection_data.root={root}", "detection_data.scenes={train: 4, probe: 0, val: 2}", "detection_data.workers=1",
        f"detection_data.sampling.cache={root / 'cache'}",
    ]  # fmt: skip


def settings(folder: Path, *words: str) -> dict[str, Any]:
    return composed("train_detector", *TINY, f"run.dir={folder}", *words)


def same_weights(script: Script, first: Path, second: Path) -> bool:
    a, b = (script("detection").load_run(path)[0].state_dict() for path in (first, second))
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["second_small", "center_point_small", "pv_rcnn_small"])
def test_train_stop_resume_and_evaluate(
    name: str, simulated: list[str], tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    train = script("train_detector")
    words = [
        f"detector={name}",
        *simulated,
        "detection_data.sampling.counts.Car=3",
        "detection_data.fraction=0.5",
    ]
    assert train.run(settings(tmp_path / "whole", *words)) == 0
    assert train.run(settings(tmp_path / "parts", *words, "trainer.stop_after=2")) == 130
    assert train.run(settings(tmp_path / "parts", *words, "resume=true")) == 0
    assert same_weights(script, tmp_path / "whole", tmp_path / "parts")
    assert "2 labelled frames" in capsys.readouterr().out

    script("evaluate_detector").main([str(tmp_path / "whole"), "--quiet", "--batch-size", "1"])
    assert "Car 3d @0.7" in capsys.readouterr().out
    stored = json.loads((tmp_path / "whole" / "evaluation" / "results.json").read_text())
    assert stored["frames"] == 2
    assert len(list((tmp_path / "whole" / "evaluation" / "data").glob("*.txt"))) == 2
    assert len(stored["evaluation"]["Car"]["3d"]["R40"]) == 3
    assert set(stored["sensor_frame"]["Car"]) == {"objects", "iou", "reach", "3d", "bev", "centre"}


def test_what_cannot_be_pasted_is_left_out_and_told(
    simulated: list[str], tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    """The counts of the data's defaults are of all three classes."""
    made = script("detection")
    words = [*simulated, "detector=center_point_small"]
    cars = settings(tmp_path, *words, "detector.classes=[Car]")
    assert set(made.training_frames(cars, made.detector(cars)).augment.sampling.counts) == {"Car"}
    assert "not pasted: Cyclist, Pedestrian (" in capsys.readouterr().out
    # Nobody has so many points: an error of all scenes, not of a part of them, which may lack a class.
    many = "detection_data.sampling={counts: {Car: 0, Pedestrian: 1, Cyclist: 0}, min_points: 100000}"
    whole = settings(tmp_path, *words, many)
    with pytest.raises(ValueError, match="no Pedestrian with 100000 or more points"):
        made.training_frames(whole, made.detector(whole))
    part = settings(tmp_path, *words, many, "detection_data.fraction=0.75")
    assert made.training_frames(part, made.detector(part)).augment.sampling is None
    assert "not pasted: Pedestrian (" in capsys.readouterr().out
    # A class that these scenes do not have.
    trams = [*words, "detector.classes=[Car, Tram]", "+detection_data.sampling.counts.Tram=2"]
    part = settings(tmp_path, *trams, "detection_data.fraction=0.75")
    assert set(made.training_frames(part, made.detector(part)).augment.sampling.counts) == {"Car"}
    whole = settings(tmp_path, *trams)
    with pytest.raises(DatasetError, match="no object of class Tram"):
        made.training_frames(whole, made.detector(whole))
    typo = settings(tmp_path, *words, "+detection_data.sampling.counts.car=5", "detection_data.fraction=0.75")
    with pytest.raises(ValueError, match=r"counts car, but the classes are .* and no label has that name"):
        made.training_frames(typo, made.detector(typo))
    none = settings(tmp_path, *words, "detection_data.sampling.counts=null")
    assert made.training_frames(none, made.detector(none)).augment.sampling is None


def test_a_pretrained_encoder_is_loaded_whole_and_kept_if_frozen(
    simulated: list[str], tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    train = script("train_detector")
    data = [word.replace("detection_data", "data") for word in simulated[:3]]
    pretraining = composed(
        "pretrain_lidar", *data, "probe.enabled=false", "trainer.max_steps=2", "trainer.batch_size=2",
        "trainer.heldout_frames=2", "trainer.device=cpu", "trainer.progress=false", f"run.dir={tmp_path / 'pre'}",
    )  # fmt: skip
    assert script("pretrain_lidar").run(pretraining) == 0
    words = [*simulated, f"pretrained.encoder={tmp_path / 'pre'}"]
    for mode in ("frozen", "layerwise"):
        assert train.run(settings(tmp_path / mode, *words, f"pretrained.mode={mode}")) == 0
    assert re.search(r"loaded (\d+) of \1 encoder tensors", capsys.readouterr().out)
    frozen, layerwise = (
        script("detection").load_run(tmp_path / m)[0].backbone_3d for m in ("frozen", "layerwise")
    )
    loaded = script("detection").detector(settings(tmp_path / "x", *words))
    train.load_pretrained_encoder(loaded, train.weights(tmp_path / "pre"))
    for (name, was), kept, moved in zip(
        loaded.backbone_3d.named_parameters(), frozen.parameters(), layerwise.parameters(), strict=True
    ):
        assert torch.equal(was, kept), name
        assert not torch.equal(was, moved), name
    with pytest.raises(CheckpointError, match="does not fit the encoder"):
        train.run(
            settings(
                tmp_path / "y", *simulated, "detector=second_kitti", f"pretrained.encoder={tmp_path / 'pre'}"
            )
        )


def test_your_own_labelled_folder(tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    clouds = write_clouds(tmp_path / "clouds")
    box = np.array([[10.0, 2.0, -1.0, 4.0, 1.8, 1.6, 0.4]])
    frames = sorted(clouds.rglob("*.npy"))
    lines = [json_line(str(f.relative_to(clouds)), boxes=box, names=["Car"]) for f in frames]
    (tmp_path / "labels.jsonl").write_text("\n".join(lines) + "\n")
    words = [
        "detection_data=folder", f"detection_data.root={clouds}", f"detection_data.labels={tmp_path / 'labels.jsonl'}",
        "detection_data.split=0.5", "detector.classes=[Car]", "detector=center_point_small",
        "detection_data.balanced=true",
    ]  # fmt: skip
    assert script("train_detector").run(settings(tmp_path / "run", *words)) == 0
    script("evaluate_detector").main([str(tmp_path / "run"), "--quiet"])
    assert "Car" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("detector.name=third", "detector.name is one of second_small"),
        ("+detector.options.wheels=4", "do not fit second_small"),
        ("detection_data.name=moon", "detection_data is kitti"),
        ("detection_data.fraction=0", r"share of the frames in \(0, 1\]"),
        ("pretrained.mode=frozen", "would keep random weights"),
        ("pretrained.mode=half", "a mode is one of"),
        ("detector.classes=[Car, Tram]", "no anchor for Tram"),
    ],
)
def test_errors_name_the_fix(
    word: str, message: str, simulated: list[str], tmp_path: Path, script: Script
) -> None:
    with pytest.raises(ValueError, match=message):
        script("train_detector").run(settings(tmp_path / "run", *simulated, word))


def test_a_folder_that_is_no_run_of_a_detector(tiny_run: Path, script: Script) -> None:
    with pytest.raises(RunFolderError, match="does not describe a detector"):
        script("detection").load_run(tiny_run)
    with pytest.raises(ValueError, match=r"a key of the run's config\.json"):
        script("evaluate_detector").settings_with({"a": {"b": 1}}, ["a.c=2"])
