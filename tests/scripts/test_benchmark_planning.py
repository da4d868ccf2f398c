"""The planning benchmark without its peer: what it times, writes and refuses."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from worldmodel.nn.dynamics import RecurrentPredictor, ResidualPredictor


@pytest.fixture
def benchmark(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with two small models and one case."""
    module = script("benchmark_planning")
    models = {"residual": (ResidualPredictor, 4, 2, 8), "recurrent": (RecurrentPredictor, 4, 2, 8)}
    monkeypatch.setattr(module, "MODELS", models)
    monkeypatch.setattr(module, "CASES", [(2, 40, 3)])
    return module


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_planning.py", *arguments])
    module.main()


def test_our_planner_is_timed_alone(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(benchmark, monkeypatch, "--repeats=3", f"--out={tmp_path / 'results'}")
    stored = json.loads((tmp_path / "results" / "planning_speed.json").read_text())
    assert [row["model"] for row in stored["cases"]] == ["residual", "recurrent"]
    for row in stored["cases"]:
        work = 2 * 40 * 3 * benchmark.ITERATIONS
        assert row["steps_per_s"] == pytest.approx(work / row["median_s"])
        assert row["min_s"] <= row["median_s"] <= row["max_s"]
        assert row["time_over_ours"] == 1
        assert row["final_cost"] >= 0
    assert stored["commit"]
    table = (tmp_path / "results" / "planning_speed.md").read_text()
    assert "| recurrent | 2 x 40 x 3 | this project |" in table
    assert "(not installed)" in table


def test_help_tells_how_to_get_the_peer(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(benchmark, monkeypatch, "--help")
    assert ended.value.code == 0
    assert "pip install --no-deps stable-worldmodel" in capsys.readouterr().out


def test_a_peer_that_is_not_there_is_named(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"no stable_worldmodel/solver in .*: give its site-packages"):
        run(benchmark, monkeypatch, f"--peer={tmp_path}", f"--out={tmp_path / 'results'}")
    assert not (tmp_path / "results").exists()
    assert "stable_worldmodel" not in sys.modules
