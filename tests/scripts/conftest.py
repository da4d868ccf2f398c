"""The commands in scripts/, run inside the test process, and a pretraining run that takes seconds."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """A function from the name of a script to its module. Scripts find each other, as when they are started."""

    def load(name: str) -> ModuleType:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(ROOT / "scripts"))
            return importlib.import_module(name)

    return load


def write_clouds(root: Path, *, frames: int = 8, points: int = 400) -> Path:
    """Random clouds in front of the sensor, as .npy frames of two drives: one to train on, one held out."""
    for number in range(frames):
        rng = np.random.default_rng(number)
        cloud = rng.uniform((0, -12.8, -2, 0), (25.6, 12.8, 0.5, 1), (points, 4)).astype(np.float32)
        cloud[: points // 2, 2] = -1.7
        drive = root / ("drive_a" if number < frames // 2 else "drive_b")
        drive.mkdir(parents=True, exist_ok=True)
        np.save(drive / f"{number:06d}.npy", cloud)
    return root


def pretraining_settings(run_dir: Path, data_root: Path, *overrides: str) -> dict:
    """A whole config of scripts/pretrain_lidar.py: two steps on the frames of a folder, no probe."""
    fixed = [
        "data=folder", f"data.root={data_root}", f"run.dir={run_dir}", "probe.enabled=false",
        "trainer.max_steps=2", "trainer.batch_size=2", "trainer.eval_every=2", "trainer.checkpoint_every=1",
        "trainer.heldout_frames=2", "trainer.device=cpu", "trainer.progress=false",
    ]  # fmt: skip
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("pretrain_lidar", overrides=[*fixed, *overrides])
    settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    return settings


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, script: Callable[[str], ModuleType]) -> Path:
    """The folder of a finished two-step run; its frames lie beside it in `clouds`. Not to be written to."""
    folder = tmp_path_factory.mktemp("tiny_run")
    clouds = write_clouds(folder / "clouds")
    assert script("pretrain_lidar").run(pretraining_settings(folder / "run", clouds)) == 0
    return folder / "run"
