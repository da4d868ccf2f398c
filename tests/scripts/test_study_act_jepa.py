"""The ACT-JEPA study on a toy: every kind of arm, cells that are not made again, the report; one task at real size."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("pyarrow")

from tests.envs.manipulation import toy
from tests.scripts.test_train_policy import TINY, composed

Script = Callable[[str], ModuleType]
ARMS = ["act", "act_jepa", "bc", "two_stage_frozen", "raw_state_free"]


@pytest.fixture
def study(script: Script, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The study with a toy in place of Meta-World, its commands run in this process."""
    assert toy.SUITES
    made = script("study_act_jepa")

    def called(name: str, *words: str) -> None:
        if name == "record_demonstrations.py":
            script("record_demonstrations").main(list(words))
        else:
            assert script("train_policy").run(composed("train_policy", *TINY, *words)) == 0

    monkeypatch.setattr(made, "called", called)
    overrides = [word for word in TINY if word.startswith(("size.", "trainer.eval", "trainer.batch"))]
    tiny = made.Study(
        tasks=("toy/reach", "toy/reach-too"), training=4, heldout=2, shown=(2, 4), episodes=3, execute=(2, 30),
        distractors=1, overrides=tuple(overrides), budgets=(2, 4), transfer=2, steps=2,
    )  # fmt: skip
    tiny = replace(tiny, overrides=(*overrides, "chunk=30"))
    monkeypatch.setitem(made.STUDIES, "small", tiny)
    monkeypatch.setattr(made, "STATES", 2)
    return made


def test_every_kind_of_arm_is_measured_once(
    study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["small", "--arms", *ARMS, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    study.main([*words, "--seeds", "0", "--shown", "2"])
    study.main(["small", "--arms", "act", "--seeds", "1", *words[-4:], "--shown", "2"])
    text = capsys.readouterr().out
    for arm in ARMS:
        assert f"| {arm} | {2 if arm == 'act' else 1} |" in text
    assert "| expert | |" in text
    assert "Gate, ATE of ACT-JEPA / ACT <= 0.92" in text
    stored: dict[str, Any] = json.loads((tmp_path / "out" / "act_jepa_small.json").read_text())
    cell = stored["cells"]["2"]["act_jepa"]["0"]
    assert [len(cell["success"][e]) for e in ("2", "30")] == [2, 2]
    assert list(stored["cells"]["2"]["bc"]["0"]["success"]) == ["1"]
    assert cell["commit"]

    def fail(*args: Any) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(study, "train", fail)
    study.main([*words, "--seeds", "0", "--shown", "2"])
    with pytest.raises(SystemExit):
        study.main([*words, "--shown", "3"])


def test_what_a_command_printed_is_shown_when_it_fails(script: Script) -> None:
    with pytest.raises(SystemExit, match=r"train_policy\.py failed:(.|\n)*demonstrations\.root"):
        script("study_act_jepa").called("train_policy.py")


@pytest.mark.slow
def test_one_task_is_learned_from_ten_demonstrations(script: Script, tmp_path: Path) -> None:
    """drawer-open, 400 steps: at least 60 % of ten test episodes, and targets that did not collapse."""
    pytest.importorskip("metaworld")
    words = ["--arms", "act", "act_jepa", "--seeds", "0", "--runs", str(tmp_path), "--out", str(tmp_path)]
    script("study_act_jepa").main(["smoke", *words])
    cells = json.loads((tmp_path / "act_jepa_smoke.json").read_text())["cells"]["10"]
    for arm in ("act", "act_jepa"):
        (episodes,) = cells[arm]["0"]["success"]["30"]
        assert sum(episodes) >= 6
    assert cells["act_jepa"]["0"]["heldout"]["target_std"] > 0.3
