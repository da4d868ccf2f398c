"""The stable-baselines3 study on a world model of four steps and a policy of sixteen."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from tests.policies.test_sb3_study import TINY
from tests.scripts.test_train_world_model import settings

Script = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, script: Script) -> Path:
    folder = tmp_path_factory.mktemp("world_model") / "run"
    assert script("train_world_model").run(settings(folder)) == 0
    return folder


def test_cells_are_kept_shown_and_not_mixed(trained: Path, tmp_path: Path, script: Script) -> None:
    study = script("study_sb3")
    command = [f"--run={trained}", f"--runs={tmp_path}/runs", f"--out={tmp_path}/docs", "--split=selection"]
    study.main([*command, "--seeds", "0", "1", "--arms", "plain", "jepa_frozen"], base=TINY)
    cell = tmp_path / "runs" / "selection" / "plain_0.json"
    before = cell.stat().st_mtime_ns
    study.main([*command, "--seeds", "0", "--arms", "plain", "random_trained"], base=TINY)
    assert cell.stat().st_mtime_ns == before
    text = (tmp_path / "docs" / "sb3_two_rooms.md").read_text()
    assert "| random actions | | 0." in text
    assert "| CombinedExtractor (NatureCNN), from scratch | 2 |" in text
    assert "| JEPAFeatures, random weights, trained | 1 |" in text
    assert text.count("| JEPAFeatures, pretrained, frozen |") == 2  # also paired with the plain one
    stored = json.loads((tmp_path / "docs" / "sb3_two_rooms.json").read_text())
    assert stored["commit"]
    assert {arm: sorted(found) for arm, found in stored["cells"].items()} == {
        "plain": ["0", "1"], "jepa_frozen": ["0", "1"], "random_trained": ["0"],
    }  # fmt: skip
    assert (tmp_path / "docs" / "sb3_two_rooms.png").stat().st_size > 10_000
    with pytest.raises(SystemExit, match="made with other settings"):
        study.main([*command, "--arms", "plain", "--seeds", "0", "--env-steps=8"], base=TINY)
    frozen = cell.with_name("jepa_frozen_0.json")
    frozen.write_text(json.dumps({**json.loads(frozen.read_text()), "weights": "others"}))
    with pytest.raises(SystemExit, match="of another world model"):
        study.main([*command, "--arms", "plain", "--seeds", "0"], base=TINY)


def test_random_weights_give_codes_of_the_size_of_trained_ones(trained: Path, script: Script) -> None:
    study, world_models = script("study_sb3"), script("world_models")
    loaded = world_models.load_world_model(trained)
    episodes = world_models.source({**loaded.settings["episodes"], "episodes": 200}, "selection")
    random, name = study.encoder_of(trained, pretrained=False, seed=3)
    again, _ = study.encoder_of(trained, pretrained=False, seed=3)
    other, _ = study.encoder_of(trained, pretrained=False, seed=4)
    pretrained, weights = study.encoder_of(trained, pretrained=True, seed=3)
    assert name == "random weights"
    assert len(weights) == 64
    rng = np.random.default_rng(0)
    pictures = [episodes.sample(i, steps=2, generator=rng).observations[0] for i in range(200)]
    batch = torch.from_numpy(np.stack(pictures)).float() / 255
    assert random(batch).std(0).mean() == pytest.approx(1.0, abs=0.25)
    assert torch.equal(random(batch), again(batch))
    assert not torch.equal(random(batch), other(batch))
    assert not torch.equal(random(batch), pretrained(batch))


def test_another_model_is_refused(tmp_path: Path, script: Script) -> None:
    study = script("study_sb3")
    script("train_world_model").run(settings(tmp_path / "run", "world_model=seq_jepa"))
    with pytest.raises(ValueError, match="no run of episodes=two_rooms world_model=dynamics"):
        study.encoder_of(tmp_path / "run", pretrained=True, seed=0)
    with pytest.raises(SystemExit, match="holds no checkpoint"):
        study.main([f"--run={tmp_path}", f"--runs={tmp_path}", "--seeds", "0", "--arms", "jepa_frozen"])


def test_a_world_model_is_trained_if_none_is_named(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = script("study_sb3")
    called: list[list[str]] = []

    def run(command: list[str], check: bool) -> SimpleNamespace:
        called.append(command)
        return SimpleNamespace(returncode=len(called) - 1)

    monkeypatch.setattr(study.subprocess, "run", run)
    assert study.train_small(tmp_path) == tmp_path
    overrides = called[0][2:]
    assert settings(tmp_path, *overrides)["trainer"]["max_steps"] == 1000
    with pytest.raises(SystemExit, match="name a run with --run DIR"):
        study.train_small(tmp_path)
