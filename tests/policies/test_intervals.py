"""Intervals against closed forms, references and simulated coverage."""

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from policies.intervals import compare, seeds_and_problems, wilson
from policies.report import about_intervals, paired_by_seed, rate

Z2 = 1.959963984540054**2


@pytest.mark.parametrize("n", [1, 7, 50, 100])
def test_wilson_at_the_ends_is_the_closed_form(n: int):
    none, every = wilson(0, n), wilson(n, n)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(Z2 / (n + Z2), rel=1e-12)
    assert (every.value, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(n / (n + Z2), rel=1e-12)


def test_wilson_50_of_100():
    interval = wilson(50, 100)
    half = math.sqrt(Z2) / 2 / math.sqrt(100 + Z2)  # at a rate of one half
    assert (interval.low, interval.high) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-12)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.4038, 0.5962)


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (3, 11), (97, 100), (100, 100)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_equals_scipy(successes: int, n: int, confidence: float):
    reference = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    interval = wilson(successes, n, confidence=confidence)
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_wilson_of_nothing_and_of_the_impossible():
    assert math.isnan(wilson(0, 0).value)
    for successes, n in ((-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="impossible"):
            wilson(successes, n)


def test_bootstrap_of_one_seed_is_the_binomial_of_its_problems():
    table = np.arange(200)[None] < 140
    interval = seeds_and_problems(table)
    assert interval.value == 0.7
    low, high = binom.ppf([0.025, 0.975], 200, 0.7) / 200
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.006)


def test_bootstrap_sees_the_spread_of_training_seeds():
    """Seeds that always or never succeed: however many problems, the interval stays that of the number of seeds."""
    table = np.repeat([[1.0], [1.0], [1.0], [0.0]], 500, axis=1)
    interval = seeds_and_problems(table)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.75, 0.25, 1.0))
    assert seeds_and_problems(table, seed=0) == interval
    with pytest.raises(ValueError, match=r"\[training seeds, problems\]"):
        seeds_and_problems(np.ones(3))


@pytest.mark.parametrize("seeds", [2, 5])
def test_the_rate_of_several_seeds_is_no_point_where_all_or_none_succeed(seeds: int):
    for value, success in ((1.0, np.ones((seeds, 30), bool)), (0.0, np.zeros((seeds, 30), bool))):
        found, alone = rate(success), wilson(round(30 * value), 30)
        assert (found.value, found.low, found.high) == (value, alone.low, alone.high)
    assert rate(np.ones((1, 30), bool)) == wilson(30, 30)
    spread = np.repeat([[True], [False]] * seeds, 30, axis=1)
    assert rate(spread) == seeds_and_problems(spread)  # training seeds say more than problems
    with pytest.raises(ValueError, match="impossible"):
        wilson(30.5, 30)


def test_few_training_seeds_are_said_to_be_too_few():
    assert "too narrow" in about_intervals([1, 3])
    assert "too narrow" not in about_intervals([1, 5])


def test_agents_are_compared_seed_by_seed():
    rng = np.random.default_rng(0)
    success = {
        name: rng.random((seeds, 20)) < 0.5 for name, seeds in (("a", 1), ("b", 3), ("c", 3), ("d", 2))
    }
    found = paired_by_seed(success)
    assert [(a, b, i) for a, b, i, _ in found] == [
        *(("a", "b", i) for i in range(3)), *(("a", "c", i) for i in range(3)), *(("a", "d", i) for i in range(2)),
        *(("b", "c", i) for i in range(3)),
    ]  # fmt: skip
    assert found[1][3] == compare(success["a"][0], success["b"][1])
    assert found[-1][3] == compare(success["b"][2], success["c"][2])


def test_compare_is_mcnemar_on_the_discordant_pairs():
    a = np.array([1] * 8 + [0] * 2 + [1] * 10)
    b = np.array([0] * 8 + [1] * 2 + [1] * 10)
    found = compare(a, b)
    assert (found.first_only, found.second_only) == (8, 2)
    assert found.p_value == pytest.approx(2 * (1 + 10 + 45) / 1024)  # P(<= 2 of 10 fair tosses), both sides
    assert found.difference.value == pytest.approx(0.3)
    assert found.difference.low < 0.3 < found.difference.high
    other = compare(b, a)
    assert other.p_value == found.p_value
    assert other.difference.low == pytest.approx(-found.difference.high)


def test_compare_covers_the_true_difference():
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(400):
        a = rng.random(60) < 0.9
        b = a & (rng.random(60) < 0.8)
        interval = compare(a, b).difference
        hits.append(interval.low <= 0.18 <= interval.high)
    assert np.mean(hits) > 0.93


def test_equal_agents_do_not_differ_and_other_problems_are_refused():
    assert compare(np.ones(5), np.ones(5)).p_value == 1.0
    with pytest.raises(ValueError, match="same problems"):
        compare(np.ones(5), np.ones(4))
