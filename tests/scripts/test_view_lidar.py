"""scripts/view_lidar.py and the pages of evaluate_detector.py, without a display."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lidar.detection.folder_labels import json_line
from tests.scripts.conftest import write_clouds
from tests.scripts.test_train_policy import composed

Script = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clouds/ of two drives, and labels.jsonl with a car in every frame."""
    root = tmp_path_factory.mktemp("viewed")
    clouds = write_clouds(root / "clouds")
    box = np.array([[10.0, 2.0, -1.0, 4.0, 1.8, 1.6, 0.4]])
    frames = sorted(clouds.rglob("*.npy"))
    lines = [json_line(str(f.relative_to(clouds)), boxes=box, names=["Car"]) for f in frames]
    (root / "labels.jsonl").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def trained(folder: Path, script: Script) -> Path:
    """A run of two steps on that folder."""
    settings = composed(
        "train_detector", "detection_data=folder", f"detection_data.root={folder / 'clouds'}",
        f"detection_data.labels={folder / 'labels.jsonl'}", "detection_data.split=0.5", "detector.classes=[Car]",
        "detector=center_point_small", "trainer.max_steps=1", "trainer.batch_size=1", "trainer.heldout_frames=1",
        "trainer.eval_every=1", "trainer.device=cpu", "trainer.progress=false", f"run.dir={folder / 'run'}",
    )  # fmt: skip
    assert script("train_detector").run(settings) == 0
    return folder / "run"


@pytest.fixture
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


def frames_of(page: Path) -> list[dict[str, Any]]:
    line = next(line for line in page.read_text().splitlines() if line.startswith("const FRAMES = "))
    return json.loads(line.removeprefix("const FRAMES = ").removesuffix(";"))


def view(script: Script, *words: object) -> None:
    script("view_lidar").main([*map(str, words), "--quiet"])


def test_points_alone(script: Script, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "view.html"
    view(script, folder / "clouds", "--html", page, "--frames", 3, "--points", 50)
    frames = frames_of(page)
    assert [frame["name"] for frame in frames] == [
        "drive_a/000000.npy", "drive_b/000004.npy", "drive_b/000007.npy",
    ]  # fmt: skip
    assert len(base64.b64decode(frames[0]["points"])) == 50 * 6
    assert frames[0]["total"] == 400
    assert frames[0]["boxes"] == []


@pytest.mark.usefixtures("no_display")
def test_labels_of_a_sequence_without_a_display(
    script: Script, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    view(
        script,
        folder / "clouds",
        "--labels",
        folder / "labels.jsonl",
        "--sequence",
        "drive_b",
        "--frame",
        "1",
    )
    assert "there is no display" in capsys.readouterr().out
    frames = frames_of(tmp_path / "lidar_view.html")
    assert [frame["name"] for frame in frames] == [f"drive_b/00000{n}.npy" for n in (5, 6, 7)]
    assert [box["text"] for box in frames[0]["boxes"]] == ["Car, labelled"]


def test_a_detector_on_its_own_data_and_on_a_folder(
    script: Script, trained: Path, folder: Path, tmp_path: Path
) -> None:
    view(script, trained, "--html", tmp_path / "run.html", "--frames", 2, "--score", 0)
    boxes = frames_of(tmp_path / "run.html")[0]["boxes"]
    assert boxes[0]["object"]
    assert not any(box["text"].endswith(("labelled", "detected")) for box in boxes)
    words = [
        "--detector",
        trained,
        "--html",
        tmp_path / "folder.html",
        "--frame",
        "drive_a/000002.npy",
        "--frames",
        1,
    ]
    view(script, folder / "clouds", *words, "--score", 0)
    (frame,) = frames_of(tmp_path / "folder.html")
    assert frame["name"] == "drive_a/000002.npy"
    assert frame["boxes"]
    assert all(box["text"].endswith("detected") for box in frame["boxes"])


def test_a_frame_with_nothing_in_range(script: Script, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    np.save(tmp_path / "far" / "a.npy", np.tile(np.float32([90, 90, 0, 0.5]), (20, 1)))
    view(script, tmp_path / "far", "--detector", trained, "--html", tmp_path / "far.html")
    assert frames_of(tmp_path / "far.html")[0]["boxes"] == []


def test_kitti_layout_is_recognised(script: Script, tmp_path: Path) -> None:
    from tests.lidar.datasets.writers import write_calib, write_kitti_object

    root = write_kitti_object(tmp_path / "kitti", 2)
    view(script, root, "--html", tmp_path / "points.html")
    for number in range(2):
        write_calib(root / f"training/calib/{number:06d}.txt")
        label = root / f"training/label_2/{number:06d}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("Tram 0 0 0 100 100 200 200 2 2 9 1 1 20 0\n")
    view(script, tmp_path, "--html", tmp_path / "labels.html")
    assert [len(frame["boxes"]) for frame in frames_of(tmp_path / "points.html")] == [0, 0]
    assert frames_of(tmp_path / "labels.html")[1]["boxes"][0]["text"] == "Tram, labelled"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frame", "99"], "no frame '99' among 8; there are drive_a/000000.npy"),
        (["--sequence", "drive_c"], "no sequence 'drive_c'; there are drive_a, drive_b"),
        (["--frames", "0"], "--frames must be 1 or more"),
        (["--labels", "none.jsonl"], "there are no labels"),
        (["--detector", "none"], "holds no checkpoint"),
    ],
)
def test_errors_name_the_fix(script: Script, folder: Path, words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        view(script, folder / "clouds", *words, "--html", folder / "never.html")
    with pytest.raises(SystemExit, match="does not exist"):
        view(script, folder / "nowhere")


def test_a_detector_of_other_points(
    script: Script, folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = script("view_lidar")
    monkeypatch.setattr(
        looked.PointFolder,
        "read",
        lambda self, ref: np.ones((9, 5), np.float32) * np.float32([9, 0, -1, 1, 0]),
    )
    with pytest.raises(SystemExit, match="cannot read points of 5 numbers"):
        view(script, folder / "clouds", "--detector", trained, "--html", folder / "never.html")


def test_the_report_of_an_evaluation(
    script: Script, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = script("evaluate_detector").main
    evaluate([str(trained), "--quiet", "--frames", "1", "--score", "0.1", "--out", str(tmp_path / "a")])
    assert f"where it fails: {tmp_path / 'a' / 'report.html'}" in capsys.readouterr().out
    page = (tmp_path / "a" / "report.html").read_text()
    assert "center_point_small on labelled" in page
    assert len(frames_of(tmp_path / "a" / "failures.html")) == 1
    evaluate([str(trained), "--quiet", "--frames", "1", "--no-report", "--out", str(tmp_path / "b")])
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["results.json"]
