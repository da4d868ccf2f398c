"""scripts/evaluate_policy.py: what of a folder an evaluation may replace."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

pytest.importorskip("gymnasium")

from envs.manipulation import NoExpertError
from policies.episode_files import EpisodeFileError
from tests.envs.manipulation import toy
from tests.scripts.conftest import ROOT


def settings(out: Path, *overrides: str) -> dict[str, Any]:
    fixed = ["tasks=[toy/reach]", "per_task=4", f"out={out}", "progress=false"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("evaluate_policy", overrides=[*fixed, *overrides])
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    return content  # type: ignore[return-value]


def test_where_there_is_no_expert_the_way_out_is_named(
    tmp_path: Path, script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(self: toy.ToyReach) -> None:
        raise NoExpertError("no expert is known")

    monkeypatch.setattr(toy.ToyReach, "expert", nobody)
    with pytest.raises(ValueError, match=r"no expert is known: leave the expert out with agents=\[random\]"):
        script("evaluate_policy").run(settings(tmp_path))


def test_results_of_arms_that_are_not_named_are_not_replaced(
    tmp_path: Path, script: Callable[[str], ModuleType]
) -> None:
    evaluate = script("evaluate_policy")
    evaluate.run(settings(tmp_path, "agents=[random]"))
    evaluate.run(settings(tmp_path, "agents=[random,expert]"))
    both = (tmp_path / "results.json").read_text()
    assert set(json.loads(both)["summary"]["arms"]) == {"random", "expert"}
    with pytest.raises(EpisodeFileError, match=r"also holds expert.jsonl, which the results of random would"):
        evaluate.run(settings(tmp_path, "agents=[random]"))
    assert (tmp_path / "results.json").read_text() == both
