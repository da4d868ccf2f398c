"""scripts/evaluate_planner.py: a whole evaluation, again, and what it says when something is missing."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from policies.episode_files import EpisodeFileError
from policies.evaluation import EvaluationResult
from worldmodel.training.run_folder import RunFolderError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def settings(out: Path, *overrides: str) -> dict[str, Any]:
    fixed = [
        "problems=4", "budget.env_steps=8", "batch=2", f"out={out}", "progress=false", "videos.count=0",
        "planning.planner.samples=8", "planning.planner.elites=2", "planning.planner.horizon=4",
    ]  # fmt: skip
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("evaluate_planner", overrides=[*fixed, *overrides])
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    return content  # type: ignore[return-value]


class Blind(torch.nn.Module):
    """A world model that sees one pixel in eight."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("action_scale", torch.ones(8))

    def encode(self, observations):
        return observations[:, :, 0, ::8, ::8].flatten(2).float()

    def rollout(self, state, future):
        return state.latents[:, -1:] + 0.1 * future.sum(-1, keepdim=True).cumsum(1)


@pytest.fixture
def loaded(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> ModuleType:
    """The script with a model for any run folder."""
    module = script("evaluate_planner")

    def load(path: Path) -> SimpleNamespace:
        checkpoint = tmp_path / "trained" / path
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "model.safetensors").write_text(f"weights of {path}")
        model = Blind().eval()
        return SimpleNamespace(model=model, settings={"seed": 0}, block=4, window=1, checkpoint=checkpoint)

    monkeypatch.setattr(module, "load_world_model", load)
    return module


def test_an_evaluation_is_stored_repeated_and_reported(loaded: ModuleType, tmp_path: Path):
    everything = settings(tmp_path / "a", "run=[x,y]", f"report={tmp_path / 'docs'}", "videos.count=1")
    assert loaded.run(everything) == 0
    stored = json.loads((tmp_path / "a" / "results.json").read_text())
    result = EvaluationResult.from_json(stored)
    assert set(result.runs) == {"noop", "random", "oracle", "planner"}
    assert len(result.runs["planner"]) == 2
    assert result.settings == everything
    assert len(stored["diagnostics"]) == 2
    assert len(stored["diagnostics"][0]["error_over_copy_last"]) == 4
    assert stored["commit"] in result.commits
    header = json.loads((tmp_path / "a" / "planner_1.jsonl").read_text().splitlines()[0])
    weights = tmp_path / "trained" / "y" / "model.safetensors"
    assert header["settings"]["fingerprint"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert header["settings"]["checkpoint"] == str(weights.parent)
    assert len(list((tmp_path / "a" / "videos").glob("*.gif"))) == 4
    assert (tmp_path / "a" / "paths.png").is_file()
    docs = json.loads((tmp_path / "docs" / "planning_two_rooms.json").read_text())
    assert "path" not in docs["runs"]["oracle"][0][0]
    assert "| oracle |" in (tmp_path / "docs" / "planning_two_rooms.md").read_text()

    assert loaded.run(settings(tmp_path / "b", "run=[x,y]")) == 0
    again = EvaluationResult.from_json(json.loads((tmp_path / "b" / "results.json").read_text()))
    for name in result.runs:
        assert [[e.path for e in r] for r in result.runs[name]] == [
            [e.path for e in r] for r in again.runs[name]
        ]


def test_results_of_other_agents_are_not_overwritten(loaded: ModuleType, tmp_path: Path):
    out = tmp_path / "floors"
    assert loaded.run(settings(out, "agents=[noop,random]")) == 0
    before = (out / "results.json").read_text()
    with pytest.raises(EpisodeFileError, match=r"also holds random.jsonl, .* name all agents and runs"):
        loaded.run(settings(out, "agents=[noop]"))
    assert (out / "results.json").read_text() == before
    assert loaded.run(settings(out, "agents=[noop,random,planner]", "run=x")) == 0
    assert set(json.loads((out / "results.json").read_text())["runs"]) == {"noop", "random", "planner"}


def test_what_is_missing_is_named(script: Callable[[str], ModuleType], loaded: ModuleType, tmp_path: Path):
    for overrides, message in (
        (["agents=[planner]"], "run=DIR"),
        (["agents=[expert]"], "'expert'"),
        (["agents=[noop]", "env.name=rooms"], "'rooms'"),
        (["agents=[noop]", "+env.pairs=none"], "pairs"),
        (["agents=[oracle]", "planning.planner.name=none"], "the planner is one of"),
        (["agents=[inverse]", "run=x"], "inverse"),
    ):
        with pytest.raises(ValueError, match=message):
            loaded.run(settings(tmp_path, *overrides))


def test_a_model_of_another_environment_is_refused(
    loaded: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    foreign = SimpleNamespace(settings={"episodes": {"name": "push_t"}}, checkpoint="x", block=4)
    monkeypatch.setattr(loaded, "load_world_model", lambda path: foreign)
    with pytest.raises(ValueError, match="trained in push_t, not in two_rooms"):
        loaded.run(settings(tmp_path, "run=x"))


def test_a_folder_without_a_checkpoint_is_named(script: Callable[[str], ModuleType], tmp_path: Path):
    with pytest.raises(RunFolderError, match="holds no checkpoint"):
        script("world_models").load_world_model(tmp_path)
