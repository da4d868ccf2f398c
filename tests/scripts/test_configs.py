"""Every recipe in configs/ composes, builds, and has no key that nothing reads."""

import sys
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


@pytest.fixture(scope="module", autouse=True)
def scripts_on_path():
    sys.path.insert(0, str(ROOT / "scripts"))
    yield
    sys.path.remove(str(ROOT / "scripts"))


def settings(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_container(compose("pretrain_lidar", overrides=list(overrides)), resolve=True)  # type: ignore[return-value]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


class Read(UserDict[str, Any]):
    """A mapping that remembers which of its keys were read."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.seen: set[str] = set()
        super().__init__({k: Read(v) if isinstance(v, dict) else v for k, v in content.items()})

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)


@pytest.mark.parametrize("model", options("model"))
@pytest.mark.parametrize("objective", options("objective"))
@pytest.mark.parametrize("compat", options("compat"))
def test_every_model_builds_with_every_objective(model: str, objective: str, compat: str):
    from settings import recipe, trainer_settings

    composed = Read(settings(f"model={model}", f"objective={objective}", f"compat={compat}"))
    task = recipe(composed)
    assert task.model.encoder.bev_channels > 0
    trainer_settings(composed)
    for group in ("model", "objective", "compat", "trainer"):
        assert composed[group].seen == set(composed[group]), group


@pytest.mark.parametrize("experiment", options("experiment"))
@pytest.mark.parametrize(
    "objective", [(), ("objective=sigreg",), ("objective=occupancy",)], ids=["own", "sigreg", "occupancy"]
)
def test_every_experiment_composes_at_full_size(experiment: str, objective: tuple[str, ...]):
    from settings import recipe, trainer_settings

    composed = settings(f"experiment={experiment}", "data.root=somewhere", *objective)
    config, heldout_frames = trainer_settings(composed)
    assert config.batch_size == 16
    assert heldout_frames > 0
    assert sum(p.numel() for p in recipe(composed).model.encoder.parameters()) == 711_872


@pytest.mark.parametrize("data", [name for name in options("data") if name != "simulated"])
def test_every_data_setting_is_read(data: str, tmp_path: Path):
    from pretraining_data import data_checks, pretraining_data

    composed = Read(settings(f"data={data}", f"data.root={tmp_path / 'none'}"))["data"]
    data_checks(composed)
    with pytest.raises(Exception, match="does not exist"):
        pretraining_data(composed, progress=False)
    unread = set(composed) - composed.seen - {"val_fraction"}
    assert unread == set()


def test_groups_have_the_names_the_readme_lists():
    assert options("model") == ["kitti", "nuscenes", "small", "waymo"]
    assert {"simulated", "kitti", "folder", "nuscenes_sweeps"} <= set(options("data"))
    assert options("objective") == ["ema_variance", "ema_variance_full", "occupancy", "sigreg"]
    assert options("compat") == ["official", "paper"]
