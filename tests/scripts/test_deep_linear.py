"""scripts/deep_linear.py writes its three files, and they say what the theory says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from worldmodel.theory.study import curves


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, script: Any) -> Path:
    folder = tmp_path_factory.mktemp("deep_linear") / "new"
    script("deep_linear").main(["--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def study(results: Path) -> dict[str, Any]:
    return json.loads((results / "deep_linear.json").read_text())


def test_provenance(study: dict[str, Any]) -> None:
    assert {"command", "commit", "date", "machine"} <= set(study)


def test_the_points_of_the_curves_are_drawn_not_stored(results: Path) -> None:
    assert (results / "deep_linear.json").stat().st_size < 20_000
    drawn = curves(
        objective="mae", depth=2, covariance=np.ones(2), regression=np.array([0.5, 1.0]), layer_init=0.2
    )
    assert np.allclose(drawn["exact"][-1], 1, atol=0.01)
    assert np.shape(drawn["matrix"]) == (len(drawn["matrix_times"]), 2)


def test_exact_curves_agree_with_matrices(study: dict[str, Any]) -> None:
    for objective, first in (("jepa", 3), ("mae", 0)):
        curve = study["modes"]["curves"][objective]
        assert curve["largest_difference"] < 4e-8
        assert int(np.argmin(curve["half_times"])) == first


def test_reversal(study: dict[str, Any]) -> None:
    times = study["reversal"]["half_times"]
    assert [b < a for a, b in times["jepa"]] == [False] + [True] * 6
    assert not any(b < a for a, b in times["mae"])
    assert study["reversal"]["threshold"][0] is None
    assert study["reversal"]["threshold"][1] == pytest.approx(0.08)


def test_what_the_order_goes_with(study: dict[str, Any]) -> None:
    spearman = study["correlation"]["spearman"]
    assert min(spearman["mae"]["covariance"][2:]) > 0.99
    assert max(np.abs(spearman["mae"]["regression"][2:])) < 0.15
    assert spearman["jepa"]["regression"][0] < 0
    assert min(spearman["jepa"]["regression"][1:]) > 0.7


def test_page(results: Path) -> None:
    text = (results / "deep_linear.md").read_text()
    assert "| 2 | 324.6 | 294.3 | B | 6.639 | 9.01 | A | 0.08 |" in text
    assert "| 6 | 2.131 |" in text
    assert "nan" not in text.lower()
    assert all(line.startswith("| ") and line.endswith(" |") for line in text.splitlines() if "|" in line)


def test_figure(results: Path) -> None:
    picture = imread(results / "deep_linear.png")
    assert picture.shape[:2] == (960, 1560)
    assert picture[..., :3].std() > 0.05


def test_help(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        script("deep_linear").main(["--help"])
    assert stop.value.code == 0
    assert "--out" in capsys.readouterr().out
