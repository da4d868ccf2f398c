"""The pretraining command itself, as a user starts it, on tiny data."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "scripts" / "pretrain_lidar.py")
TINY = (
    "model.widths=[4,8,8]",
    "model.point_range=[0,-6.4,-3,12.8,6.4,1]",
    "trainer.batch_size=4",
    "trainer.heldout_frames=4",
    "trainer.progress=false",
    "probe.enabled=false",
)


def environment() -> dict[str, str]:
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def pretrain(*overrides: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, SCRIPT, *TINY, *overrides]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(), check=False, timeout=300
    )


def losses(folder: Path) -> dict[int, dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        r["step"]: {k: v for k, v in r.items() if not k.startswith(("time/", "heldout/"))}
        for r in rows
        if "loss" in r
    }


def write_frames(folder: Path, count: int = 12) -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        rng = np.random.default_rng(index)
        floor = rng.uniform((0, -6.4, -1.75, 0), (12.8, 6.4, -1.7, 1), (900, 4))
        x, y = rng.uniform((1, -5), (9, 4))
        box = rng.uniform((x, y, -1.7, 0), (x + 2, y + 1, 0, 1), (200, 4))
        np.concatenate([floor, box]).astype(np.float32).tofile(folder / f"{index:06d}.bin")
    return folder


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("data") / "frames")


@pytest.fixture(scope="module")
def undisturbed(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = pretrain("data=folder", f"data.root={frames}", f"run.dir={folder}", "trainer.max_steps=12")
    assert done.returncode == 0, done.stderr
    assert f"report: {folder / 'report.html'}" in done.stdout
    return folder


def test_a_run_leaves_what_the_design_says(undisturbed: Path):
    page = (undisturbed / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert "http://" not in page
    assert "https://" not in page
    for name in ("config.json", "metrics.jsonl", "results.json", "figures/curves.png", "figures/bev_0.png"):
        assert (undisturbed / name).is_file(), name
    assert max(p.name for p in (undisturbed / "checkpoints").iterdir()) == "step_00000012"
    values = losses(undisturbed)
    assert sorted(values) == list(range(1, 13))
    assert all(np.isfinite(list(row.values())).all() for row in values.values())


def test_kill_9_and_resume_gives_the_same_losses_bit_for_bit(frames: Path, undisturbed: Path, tmp_path: Path):
    folder = tmp_path / "killed"
    settings = ("data=folder", f"data.root={frames}", f"run.dir={folder}", "trainer.max_steps=12")
    command = [sys.executable, SCRIPT, *TINY, *settings, "trainer.checkpoint_every=2"]
    running = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    metrics = folder / "metrics.jsonl"
    while not (metrics.is_file() and '"step": 5,' in metrics.read_text()):
        assert time.monotonic() < deadline
        assert running.poll() is None, "the run ended before it was killed"
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    done = pretrain(*settings, "trainer.checkpoint_every=2", "resume=true")
    assert done.returncode == 0, done.stderr
    assert losses(folder) == losses(undisturbed)


TORCHRUN = (
    "-m",
    "torch.distributed.run",
    "--nproc_per_node=2",
    "--rdzv_backend=c10d",
    "--rdzv_endpoint=localhost:0",
)


def largest_difference(one: Path, two: Path, steps: int) -> float:
    a, b = losses(one), losses(two)
    assert sorted(a) == sorted(b)
    names = [name for name in a[1] if name.startswith("loss")]
    return max(abs(a[step][name] - b[step][name]) for step in range(1, steps + 1) for name in names)


@pytest.mark.parametrize("objective", ["ema_variance", "sigreg"])
def test_two_processes_give_the_losses_of_one(frames: Path, tmp_path: Path, objective: str):
    settings = ("data=folder", f"data.root={frames}", "trainer.max_steps=12", "trainer.precision=fp64")
    for name, launcher in (("one", ()), ("two", TORCHRUN)):
        done = pretrain(*settings, f"objective={objective}", f"run.dir={tmp_path / name}", launcher=launcher)
        assert done.returncode == 0, done.stderr
    # Without rounding in the way the two are the same computation. In fp32 Adam amplifies rounding: a gradient that is
    # all rounding noise still moves its weight by a full step, so fp32 losses part by 1e-5 after some steps.
    assert largest_difference(tmp_path / "one", tmp_path / "two", 12) < 1e-9


def test_two_processes_in_single_precision(frames: Path, undisturbed: Path, tmp_path: Path):
    settings = ("data=folder", f"data.root={frames}", "trainer.max_steps=12")
    done = pretrain(*settings, f"run.dir={tmp_path / 'two'}", launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert largest_difference(undisturbed, tmp_path / "two", 4) < 1e-5


def test_a_mistyped_key_is_an_error(tmp_path: Path):
    done = pretrain("trainer.max_stepps=3", f"run.dir={tmp_path / 'run'}")
    assert done.returncode != 0
    assert "max_stepps" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data=folder", "data.root=/does/not/exist"), r"/does/not/exist.*data\.root"),
        (("data=folder",), r"data\.root"),
        (("objective=sigregg",), "sigregg"),
        (("trainer.precision=fp16",), "fp32, bf16 or fp64"),
        (("trainer.device=cuda",), "sees no GPU"),
        (("model.mask_ratio=1",), "mask ratio"),
        (("model.voxel_size=[.2,.2,2]",), "too small for this encoder"),
    ],
)
def test_wrong_settings_name_the_fix(overrides: tuple[str, ...], message: str, tmp_path: Path, frames: Path):
    root = () if overrides[0].startswith("data=") else ("data=folder", f"data.root={frames}")
    done = pretrain(*root, *overrides, f"run.dir={tmp_path / 'run'}")
    assert done.returncode != 0
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_an_existing_run_is_not_overwritten(undisturbed: Path, frames: Path):
    settings = ("data=folder", f"data.root={frames}", f"run.dir={undisturbed}")
    done = pretrain(*settings, "trainer.max_steps=12")
    assert done.returncode != 0
    assert "resume=true" in done.stderr
    changed = pretrain(*settings, "trainer.max_steps=13", "resume=true")
    assert changed.returncode != 0
    assert "trainer.max_steps: 12 -> 13" in changed.stderr


def test_bad_frames_stop_the_run_before_training_or_are_counted(frames: Path, tmp_path: Path):
    broken = tmp_path / "frames"
    shutil.copytree(frames, broken)
    (broken / "000003.bin").write_bytes((broken / "000003.bin").read_bytes()[:-6])
    np.full((10, 4), np.nan, np.float32).tofile(broken / "000004.bin")
    settings = ("data=folder", f"data.root={broken}", "trainer.max_steps=2")
    done = pretrain(*settings, f"run.dir={tmp_path / 'a'}")
    assert done.returncode != 0
    assert "000003.bin" in done.stderr
    assert "data.on_error=skip" in done.stderr
    done = pretrain(*settings, f"run.dir={tmp_path / 'b'}", "data.on_error=skip")
    assert done.returncode == 0, done.stderr
    assert "000004.bin" in done.stdout


def test_ground_truth_sampling_is_refused(frames: Path, tmp_path: Path):
    done = pretrain(
        "data=folder", f"data.root={frames}", f"run.dir={tmp_path / 'run'}", "+data.augment.gt_sampling=true"
    )
    assert done.returncode != 0
    assert "pretraining never sees a label" in done.stderr


def falls(folder: Path) -> bool:
    values = [row["loss"] for row in losses(folder).values()]
    return float(np.mean(values[-3:])) < float(np.mean(values[:3]))


def test_real_kitti_object_trains_and_labels_change_nothing(real_data, tmp_path: Path):
    root = real_data("kitti_object")
    bare = tmp_path / "bare"
    shutil.copytree(root / "training" / "velodyne", bare / "training" / "velodyne")
    settings = ("data=kitti", "trainer.max_steps=12", "trainer.max_lr=3e-3", "trainer.heldout_frames=2")
    for name, source in (("with", root), ("without", bare)):
        done = pretrain(*settings, f"data.root={source}", f"run.dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert falls(tmp_path / "with")


@pytest.mark.parametrize(
    ("name", "data", "folder"),
    [("kitti_raw_sfnd1_data1", "folder", "velodyne"), ("nuscenes_demo", "nuscenes_sweeps", "")],
)
def test_real_unlabelled_frames_train(real_data, tmp_path: Path, name: str, data: str, folder: str):
    root = real_data(name) / folder
    settings = (f"data={data}", f"data.root={root}", "trainer.max_steps=12", "trainer.max_lr=3e-3")
    done = pretrain(*settings, "trainer.heldout_frames=2", f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert falls(tmp_path / "run")
