"""The driving study on a few random drives: what it measures against closed forms, one whole run, its errors."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from envs.driving.drive_store import save_drive
from envs.driving.drives import Drive, DriveSpec
from lidar.drive_features import BEVGrid

FRAMES = 31  # as few as a stretch needs
DRIVES, TEST_DRIVES = 4, 2


def drive(seed: int) -> Drive:
    """Random clouds ahead of a vehicle with a constant speed of its own."""
    rng = np.random.default_rng(seed)
    low, high = (0, -12.8, -2, 0), (25.6, 12.8, 0.5, 1)
    return Drive(
        points=tuple(rng.uniform(low, high, (300, 4)).astype(np.float32) for _ in range(FRAMES)),
        actions=np.tile(np.float32([3 + seed, 0.1]), (FRAMES - 1, 1)),
        poses=np.zeros((FRAMES, 3)),
        seen=np.zeros(FRAMES, np.int32),
        manoeuvre="keep",
    )


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory, script: Callable[[str], ModuleType]) -> Path:
    """Drives where the study looks for them, so that it simulates none."""
    root = tmp_path_factory.mktemp("drives")
    test_seed = script("study_driving").TEST_SEED
    for spec, count in (
        (DriveSpec(frames=FRAMES), DRIVES),
        (DriveSpec(frames=FRAMES, seed=test_seed), TEST_DRIVES),
    ):
        folder = root / f"drives-{replace(spec, drives=count).fingerprint()}"
        folder.mkdir()
        for number in range(count):
            save_drive(folder / f"{number:05d}.npz", drive(10 * spec.seed + number))
    return root


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["study_driving.py", *arguments])
    module.main()


def command(drives: Path, folder: Path, encoder: Path) -> list[str]:
    return [
        f"--encoder={encoder}", f"--data={drives}", f"--runs={folder / 'runs'}", f"--out={folder / 'results'}",
        f"--drives={DRIVES}", f"--test-drives={TEST_DRIVES}", f"--frames={FRAMES}", "--components=3", "--steps=2",
        "--batch-size=2", "--width=4", "--seeds=0",
    ]  # fmt: skip


def test_a_study_from_drives_to_the_table(
    script: Callable[[str], ModuleType],
    drives: Path,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, arguments = script("study_driving"), command(drives, tmp_path, tiny_run)
    monkeypatch.setitem(module.ev.interval.__kwdefaults__, "draws", 20)
    run(module, monkeypatch, *arguments)
    path = tmp_path / "results" / "driving_world_model.json"
    stored = json.loads(path.read_text())
    counts = {name: stored["data"][name] for name in ("train", "validation", "test")}
    assert counts == {"train": 3, "validation": 1, "test": TEST_DRIVES}
    methods = {*module.ev.BASELINES, *module.ARMS, "shuffled", "constant"}
    assert stored["methods"].keys() == stored["names"].keys() == methods
    assert all(np.isfinite(row["mse"]).all() for row in stored["methods"].values())
    assert stored["methods"]["copy_last"]["over_copy_last"] == [1.0] * module.ev.HORIZON
    assert set(stored["gates"].values()) <= {True, False}
    assert stored["obstacle_precision"].keys() == methods | {"true"}
    assert f"on {TEST_DRIVES} held-out drives" in path.with_suffix(".md").read_text()
    assert path.with_suffix(".png").stat().st_size > 20_000

    # Again: encoder outputs and models are taken from where they are kept, and the figures are the same.
    monkeypatch.setattr(module, "encode_sweeps", None)
    run(module, monkeypatch, *arguments)
    assert json.loads(path.read_text())["methods"] == stored["methods"]


def test_help_and_errors(
    script: Callable[[str], ModuleType],
    drives: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = script("study_driving")
    with pytest.raises(SystemExit) as ended:
        run(module, monkeypatch, "--help")
    assert ended.value.code == 0
    assert "python scripts/study_driving.py" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"error: .* holds no checkpoint: name a run folder"):
        run(module, monkeypatch, *command(drives, tmp_path, tmp_path / "nothing"))


@pytest.fixture
def ev(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("driving_evaluation")


def maps(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, 2, 4, 4)).astype(np.float32)


def test_stretches_are_cut_on_whole_steps(ev: ModuleType) -> None:
    steps = ev.CONTEXT + ev.HORIZON
    latents, drives = (
        [maps(steps + 1), maps(steps, seed=1)],
        (steps * ev.BLOCK + 1, (steps - 1) * ev.BLOCK + 1),
    )
    actions = [np.arange(2 * (frames - 1), dtype=np.float32).reshape(-1, 2) for frames in drives]
    obstacles = [z[:, 0] > 0 for z in latents]
    held = ev.cut(latents, actions, obstacles)
    assert held.drive.tolist() == [0, 0, 1]
    assert np.array_equal(held.batch.observations[1].numpy(), latents[0][1:])
    assert held.batch.actions[1, 0].tolist() == actions[0][ev.BLOCK : 2 * ev.BLOCK].ravel().tolist()
    assert np.array_equal(held.obstacles[1], obstacles[0][1 + ev.CONTEXT :])
    with pytest.raises(ValueError, match="at least 31 sweeps: raise --frames"):
        ev.cut([latents[0][:-2]], actions[:1], obstacles[:1])


def test_errors_and_ratios_follow_their_formulas(ev: ModuleType) -> None:
    steps = ev.CONTEXT + ev.HORIZON
    latents = [maps(steps + 1), maps(steps, seed=1)]
    actions = [np.zeros(((len(z) - 1) * ev.BLOCK, 2), np.float32) for z in latents]
    held = ev.cut(latents, actions, [z[:, 0] > 0 for z in latents])
    grid = BEVGrid(rows=4, columns=4, cell=1.6, origin=(0.0, -3.2))
    # Nobody moves: copying with the ego motion is copying.
    baselines = ev.baseline_predictions(held, mean=torch.zeros(2, 4, 4), grid=grid)
    assert torch.allclose(baselines["copy_moved"], baselines["copy_last"], atol=1e-5)
    errors = ev.drive_errors(baselines["mean"], held)
    assert errors.shape == (2, ev.HORIZON)
    assert errors[1] == pytest.approx(np.square(latents[1][ev.CONTEXT :]).mean(axis=(1, 2, 3)))
    assert ev.drive_errors(held.goal, held).max() == 0
    both = np.stack([errors, 3 * errors])  # two seeds
    twice = ev.ratio(both, errors[None])
    assert twice["ratio"] == pytest.approx([2.0] * ev.HORIZON)
    assert np.asarray(twice["interval"]) == pytest.approx(2.0)  # the same ratio on every drive
    assert np.asarray(twice["seeds"]) == pytest.approx(np.array([[1.0], [3.0]]) * np.ones(ev.HORIZON))
    numbers = ev.summary({"copy_last": errors[None], "worse": both})["worse"]
    assert numbers["mse"] == pytest.approx(2 * errors.mean(axis=0))
    assert numbers["over_copy_last"] == pytest.approx([2.0] * ev.HORIZON)
    low, high = ev.interval(lambda i: i.mean(), 1000)
    assert (low, high) == (pytest.approx(499.5 - 17.9, abs=1.5), pytest.approx(499.5 + 17.9, abs=1.5))


def test_wrong_actions_are_another_stretchs_or_the_last_ones(ev: ModuleType) -> None:
    future = torch.arange(5 * ev.HORIZON * 4.0).view(5, ev.HORIZON, 4)
    last = torch.tensor([[0.0, 0.0, 7.0, 0.5]]).expand(5, 4)
    altered = ev.altered_actions(future, last)
    assert {tuple(row.flatten().tolist()) for row in altered["shuffled"]} == {
        tuple(row.flatten().tolist()) for row in future
    }
    assert not torch.equal(altered["shuffled"], future)
    assert altered["constant"][2, 1].tolist() == [7.0, 0.5, 7.0, 0.5]
