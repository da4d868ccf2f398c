"""The studies behind docs/results on synthetic rows and tiny runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.scripts.conftest import pretraining_settings, write_clouds


def selection_rows(seed: int = 10) -> list[dict[str, Any]]:
    """A sweep in which RankMe orders the runs as the probe does and the loss the other way round."""
    rows = []
    for i, (first, second) in enumerate((a, b) for a in (0, 0.1, 1, 10) for b in (0.25, 0.5, 0.75)):
        probe = 0.2 + 0.01 * i
        row = {
            "sweep": "ema_variance", "seed": seed, "first": first, "second": second, "rankme": 30.0 + i,
            "rankme_centered": 40.0, "lda_rank": float(i % 5), "lda_signal": 1.0 + i, "participation_ratio": 9.0 + i,
            "alpha_distance": 0.1 * i if i else float("nan"), "sigreg_standardised": 2.0 + (i % 3), "m1": 0.5 + i,
            "loss": 1.0 + i, "std_over_gamma": 0.8,
        }  # fmt: skip
        row |= {f"probe_{b}": probe for b in (5, 20, 60)} | {f"random_{b}": 0.1 for b in (5, 20, 60)}
        rows.append(row)
    return rows


def test_selectors_are_judged_and_shown(script: Any, tmp_path: Path) -> None:
    study = script("study_selection")
    rows = selection_rows()
    found = study.judged(rows, "probe_20")
    assert found["RankMe"].spearman.value == pytest.approx(1.0)
    assert found["RankMe"].loss == 0.0
    assert found["prediction error M1"].spearman.value == pytest.approx(-1.0)
    assert found["prediction error M1"].loss == pytest.approx(0.11)
    assert "alpha-ReQ, distance to 1" not in found
    result = study.with_selectors(
        [*rows, {"sweep": "sigreg", "seed": 10, "first": 0.02, "second": 1, "failed": "x"}]
    )
    text = study.report(result)
    assert "| RankMe | +1.00 | +1.00 .. +1.00 |" in text
    assert "| alpha-ReQ, distance to 1 | undefined in 1 of 12 runs |" in text
    assert "Failed: sigreg 0.02 1: x" in text
    assert "A run picked at random loses 0.055" in text
    study.figure(rows, tmp_path / "selection.png")
    assert (tmp_path / "selection.png").stat().st_size > 20_000
    json.dumps(result)


def test_two_runs_are_shown_without_a_verdict(script: Any, tmp_path: Path) -> None:
    study = script("study_selection")
    rows = selection_rows()[:2]
    assert study.judged(rows, "probe_20") == {}
    assert "undefined" in study.report(study.with_selectors(rows))
    study.figure(rows, tmp_path / "selection.png")


def test_scaled_loss(script: Any) -> None:
    assert script("study_selection").scaled_loss(3.0, 0.05) == pytest.approx(3.0 / 0.05**0.4)


@pytest.mark.parametrize("objective", ["ema_variance", "sigreg"])
def test_label_free_scores_of_a_run(script: Any, tmp_path: Path, objective: str) -> None:
    settings = pretraining_settings(
        tmp_path / "run", write_clouds(tmp_path / "clouds"), f"objective={objective}", "trainer.max_steps=1"
    )
    assert script("pretrain_lidar").run(settings) == 0
    runs, study = script("runs"), script("study_selection")
    run, checkpoint = runs.locate(tmp_path / "run")
    task = runs.load_task(runs.run_settings(run), checkpoint)
    data = script("pretraining_data").pretraining_data(settings["data"], progress=False)
    scores = study.label_free(task, data)
    keys = {key for name, (key, _) in study.SCORES.items()}
    own = {"trained_sigreg", "scaled_loss"} if objective == "sigreg" else set()
    assert keys - {"trained_sigreg", "scaled_loss"} | own <= scores.keys()
    assert all(np.isfinite(value) for key, value in scores.items() if key in keys)
    assert ("scaled_loss" in scores) == (objective == "sigreg")


def test_mode_diagnostic_of_a_short_run(script: Any, tmp_path: Path) -> None:
    clouds = write_clouds(tmp_path / "clouds", points=4000)
    many = ["trainer.max_steps=5", "trainer.keep_checkpoints=100", "trainer.eval_every=5"]
    assert script("pretrain_lidar").run(pretraining_settings(tmp_path / "run", clouds, *many)) == 0
    diagnostic = script("mode_diagnostic")
    result = diagnostic.diagnose(tmp_path / "run", frames=4, window=3)
    assert result["steps"] == [0, 1, 2, 3, 4, 5]
    assert np.shape(result["energies"]) == (6, len(result["covariance"]))
    assert np.isfinite(result["energies"]).all()
    assert result["cells"] > 100
    assert "| mode | lambda | rho |" in diagnostic.markdown(result)
    diagnostic.figure(result, tmp_path / "modes.png")
    assert (tmp_path / "modes.png").stat().st_size > 20_000
    json.dumps(result, allow_nan=True)


def test_mode_diagnostic_wants_many_checkpoints(script: Any, tiny_run: Path) -> None:
    with pytest.raises(ValueError, match="keep_checkpoints=1000"):
        script("mode_diagnostic").diagnose(tiny_run, frames=2, window=5)


def test_readings_of_known_inputs(script: Any) -> None:
    measure = script("measure_objectives")
    aliased = measure.constants()[2]
    assert aliased["constant"] == 10.05
    assert aliased["exact"] == pytest.approx(3.95383, abs=1e-5)
    assert aliased["half line to 3"] == pytest.approx(3.94690, abs=1e-5)
    assert aliased["two-sided, 5"] == pytest.approx(0.40893, abs=1e-5)
    assert [row["LDA-rank"] for row in measure.lda_readings()] == pytest.approx([8.4, 32.3, 61.9], rel=0.05)
    assert "| 10.05 | 3.954 |" in measure.markdown({"constants": measure.constants()})
    z = measure.gaussian(512, 16)
    assert {
        name: make(z).shape for name, make in measure.INPUTS.items() if name != "two equal views as samples"
    } == {name: (512, 16) for name in measure.INPUTS if name != "two equal views as samples"}


def test_the_sigreg_benchmark_measures_ours(script: Any) -> None:
    benchmark = script("benchmark_sigreg")
    errors = benchmark.equality(benchmark.OURS, 64, 8)
    assert errors["value_error"] < 1e-5
    assert errors["gradient_error"] < 1e-5
    pair = benchmark.two_processes(benchmark.OURS)
    assert pair["gradient_error"] < 1e-14
    assert pair["gradient_norm_ratio"] == pytest.approx(1.0)
    row = {"name": "x", "n": 9, "d": 2, "peak_mib": None}
    text = benchmark.tables({"cases": [row], "two_processes": [{"name": "x", **pair}], "peers": {}})
    assert "| x | 9 x 2 |" in text
    assert "over 8 GiB" in text
