"""The seq-JEPA study on a handful of random views: cells, resuming, gates and the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from envs.views.rotations import PosedViews, quaternions
from worldmodel.evaluation.action_conditioned import ProbeProtocol
from worldmodel.evaluation.heads import HeadConfig

SHORT = ProbeProtocol(
    classifier=HeadConfig(epochs=1),
    regressor=HeadConfig(kind="mlp", hidden=8, epochs=1),
    classified=(30, 20),
    regressed=(30, 20),
    lengths=(1, 5, 8),
    paths=(3,),
)


def posed(count: int = 20, views: int = 9) -> PosedViews:
    generator = np.random.default_rng(0)
    rotations = Rotation.from_rotvec(generator.uniform(-1, 1, (count * views, 3)))
    return PosedViews(
        views=generator.random((count, views, 1, 4, 4), np.float32),
        rotations=quaternions(rotations).reshape(count, views, 4),
        classes=np.arange(count) % 3,
    )


@pytest.fixture
def study(script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = script("study_seq_jepa")
    import seq_jepa_arms

    prepared = seq_jepa_arms.Prepared(posed())
    for place in (module, seq_jepa_arms):
        monkeypatch.setattr(place, "source", lambda data, split: prepared)
    monkeypatch.setattr(module, "RETRIEVAL_EPISODES", 20)
    module.drawn.cache_clear()
    return module


def scale(study: Any) -> Any:
    return study.Scale(widths=(8, 8), steps=2, batch_size=8, action_embed=8, hidden=8, heads=2, layers=1)


@pytest.mark.parametrize(
    "name", ["act", "no_act", "random", "sigreg", "conditional_byol", "jepa", "simclr", "vicreg"]
)
def test_a_cell_of_every_kind(study: Any, tmp_path: Path, name: str) -> None:
    cell = study.measured(
        study.ARMS[name], data="digits", scale=scale(study), seed=0, folder=tmp_path / name, protocol=SHORT
    )
    scores = cell["scores"]
    assert all(np.isfinite(v) for v in scores.values())
    assert {"r2_relative", "acc_mean/5", "health/z_std"} <= scores.keys()
    assert ("path/3/full" in scores) is (study.ARMS[name].baseline is None)
    assert "commit" in cell["trained_at"]


def test_a_trained_cell_is_taken_again_and_the_encoders_of_all_arms_start_alike(
    study: Any, tmp_path: Path
) -> None:
    import torch

    settings = {"data": "digits", "scale": scale(study), "seed": 3}
    first, record = study.trained(study.ARMS["act"], folder=tmp_path / "a", **settings)
    again, stored = study.trained(study.ARMS["act"], folder=tmp_path / "a", **settings)
    assert record == stored
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    items = study.source("digits", "train")
    starts = [
        study.task(study.ARMS[name], source=items, scale=scale(study), seed=3) for name in ("act", "byol")
    ]
    pairs = zip(starts[0].model.encoder.parameters(), starts[1].encoder.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_stopped_training_is_continued_and_never_measured(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import seq_jepa_arms

    from worldmodel.training import FitResult

    settings = {"data": "digits", "scale": scale(study), "seed": 0, "folder": tmp_path / "cell"}
    with monkeypatch.context() as patch:
        stopped = FitResult(step=1, max_steps=2, interrupted=True)
        patch.setattr(seq_jepa_arms, "fit", lambda *args, **kwargs: stopped)
        with pytest.raises(SystemExit, match="step 1 of 2"):
            study.measured(study.ARMS["act"], protocol=SHORT, **settings)
    assert not (tmp_path / "cell" / "training.json").exists()
    study.trained(study.ARMS["act"], **settings)
    assert (tmp_path / "cell" / "training.json").exists()


def test_what_is_watched_in_training_is_neither_trained_on_nor_tested(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script("study_seq_jepa")
    import seq_jepa_arms as arms

    from worldmodel.training import FitResult

    items = {"train": posed(40), "test": posed(10)}
    monkeypatch.setattr(arms, "digits", lambda split: items[split])
    arms.source.cache_clear()
    parts = {split: arms.source("digits", split) for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 36, "validation": 4, "test": 10}
    rotations = [part.posed.rotations[:, 0] for split, part in parts.items() if split != "test"]
    everything = items["train"].rotations[:, 0]
    assert np.array_equal(np.unique(np.concatenate(rotations), axis=0), np.unique(everything, axis=0))

    seen: dict[str, Any] = {}

    def fit(model: Any, *, dataset: Any, heldout: Any, **rest: Any) -> Any:
        seen.update(trained=dataset.source, heldout=heldout)
        return FitResult(step=2, max_steps=2, interrupted=False)

    monkeypatch.setattr(arms, "fit", fit)
    small = arms.Scale(widths=(8, 8), steps=2, batch_size=8, action_embed=8, hidden=8, heads=2, layers=1)
    arms.trained(arms.ARMS["act"], data="digits", scale=small, seed=0, folder=tmp_path)
    assert seen["trained"] is parts["train"]
    watched = {view.tobytes() for view in parts["validation"].posed.views.reshape(-1, 1, 4, 4)}
    assert {
        v.tobytes() for batch in seen["heldout"] for v in batch.observations.reshape(-1, 1, 4, 4).numpy()
    } <= watched
    arms.source.cache_clear()


def test_prepared_views_are_those_of_the_source(study: Any) -> None:
    plain, prepared = posed(), study.source("digits", "train")
    for item in (0, 7):
        a, b = (
            source.sample(item, steps=4, generator=np.random.default_rng(item))
            for source in (plain, prepared)
        )
        assert np.array_equal(a.observations, b.observations)
        assert np.array_equal(a.actions, b.actions)
        assert np.array_equal(a.labels["rotation"], b.labels["rotation"])


def cells(gain: float) -> list[dict[str, Any]]:
    base = {"r2_relative": 0.9, "acc_aggregate/5": 0.8, "r2_aggregate_pose": 0.1}
    act = {"r2_relative": 0.9 + gain, "acc_aggregate/5": 0.88, "r2_aggregate_pose": 0.9}
    made = []
    for seed in range(3):
        for arm, scores in (("act", act), ("no_act", base), ("random", base)):
            shifted = {name: value + 0.01 * seed for name, value in scores.items()}
            made.append({"arm": arm, "seed": seed, "scores": shifted, "trained_at": {"commit": "abc"}})
    return made


@pytest.mark.parametrize(("gain", "passed"), [(0.05, True), (0.01, False)])
def test_gates_are_paired_and_judged_by_their_mean(study: Any, gain: float, passed: bool) -> None:
    rows = {row["gate"]: row for row in study.gates(cells(gain), data="digits")}
    relative = rows["relative R2, act - no act"]
    assert relative["mean"] == pytest.approx(gain)
    assert relative["sd"] == pytest.approx(0, abs=1e-12)  # what the seed adds to both cancels
    assert relative["passed"] is passed
    assert rows["acc aggregate(5), act - no act"]["mean"] == pytest.approx(8.0)
    assert rows["acc aggregate(5), act - no act"]["passed"] is None
    assert rows["PI(3), M_tr = 3 - M_tr = 1"]["seeds"] == []


def test_the_report_names_failures_and_what_was_not_run(study: Any, tmp_path: Path) -> None:
    made = cells(0.01)
    result = {
        "data": "digits", "cells": made, "gates": study.gates(made, data="digits"), "commit": "def", "note": "",
    }  # fmt: skip
    text = study.report(json.loads(json.dumps(result)))
    assert "| relative R2, act - no act | >= 0.03 | 0.010 | 0.010 .. 0.010 | 0.010 | 3 | FAIL |" in text
    assert "not run" in text
    assert "| relative rotation R2 from (z_1, z_2) | 0.910 +- 0.010 |" in text
    study.figure(result, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
