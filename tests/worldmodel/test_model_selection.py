"""Judging selectors: against scipy, and on cases that can be counted by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from worldmodel.model_selection import judge
from worldmodel.rank_correlation import spearman


def test_spearman_is_scipys_with_and_without_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.normal(size=12), rng.normal(size=12)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
        a = np.round(a)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert math.isnan(spearman(np.ones(4), np.arange(4.0)))


def test_a_perfect_selector_and_its_opposite() -> None:
    labelled = np.array([0.1, 0.4, 0.2, 0.3, 0.25, 0.15])
    perfect = judge(np.exp(labelled), labelled)
    assert (perfect.spearman.value, perfect.kendall, perfect.chosen, perfect.loss) == (
        pytest.approx(1.0),
        pytest.approx(1.0),
        1,
        0.0,
    )
    assert perfect.spearman.p_value < 0.02
    assert perfect.spearman.low > 0.8
    worst = judge(np.exp(labelled), labelled, higher_is_better=False)
    assert worst.spearman.value == pytest.approx(-1.0)
    assert worst.loss == pytest.approx(0.3)
    assert worst.random_loss == pytest.approx(0.4 - labelled.mean())


def test_the_permutation_p_value_of_noise_is_uniform() -> None:
    rng = np.random.default_rng(1)
    values = [
        judge(rng.normal(size=9), rng.normal(size=9), resamples=100).spearman.p_value for _ in range(200)
    ]
    assert 0.01 < np.mean(np.array(values) < 0.1) < 0.2
    assert 0.4 < np.mean(values) < 0.6


def test_runs_that_share_the_best_score_cost_what_they_cost_on_average() -> None:
    for score in ([1.0, 1.0, 0.0], [1.0, 1.0, 0.5]):
        assert judge(np.array(score), np.array([0.0, 0.8, 0.2])).loss == pytest.approx(0.4)
        assert judge(np.array(score), np.array([0.8, 0.0, 0.2])).loss == pytest.approx(0.4)


def test_a_constant_score_says_nothing() -> None:
    result = judge(np.ones(5), np.arange(5.0))
    assert math.isnan(result.spearman.value)
    assert math.isnan(result.spearman.low)


def test_errors() -> None:
    with pytest.raises(ValueError, match="3 or more"):
        judge(np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="same 3"):
        judge(np.ones(4), np.ones(3))
    with pytest.raises(ValueError, match="collapsed"):
        judge(np.array([1, np.nan, 2]), np.ones(3))
