"""Learning orders of known curves, rank correlations against scipy, and the whole diagnostic on exact dynamics."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from worldmodel.theory import Modes, learning_order, mode_energy, mode_report, modes, modes_of_covariances
from worldmodel.theory.deep_linear import critical_time, trajectory


def test_order_of_straight_lines() -> None:
    """Interpolated between checkpoints; falling modes alike; modes that stay have none."""
    energies = [[0, 4.0, 1, 0, 0], [1, 4.0, 1.01, 0, 4], [4, 1.0, 1.0, 0, 2]]
    order = learning_order(energies, [0, 10, 30])
    assert np.allclose(order, [10 + 20 / 3, 10 + 10, np.nan, np.nan, 2.5], equal_nan=True)


def test_first_crossing_counts() -> None:
    assert learning_order([[0.0], [3.0], [0.5], [4.0]], [0, 1, 2, 3])[0] == pytest.approx(2 / 3)


def test_min_change() -> None:
    energies = [[1.0, 1.0], [1.2, 0.8]]
    assert np.allclose(learning_order(energies, [0, 1]), [0.5, 0.5])
    assert np.isnan(learning_order(energies, [0, 1], min_change=0.3)).all()


def known(rates: Any, rho: Any) -> Modes:
    rates, rho = np.asarray(rates, float), np.asarray(rho, float)
    return modes_of_covariances(sigma_xx=np.diag(rates / rho), sigma_yx=np.diag(rates))


def test_rank_correlations_are_spearmans_and_p_values_its_permutations() -> None:
    generator = np.random.default_rng(0)
    found = known(generator.uniform(0.2, 1, 12), generator.uniform(0.2, 1, 12))
    order = np.round(-3 * found.regression + generator.standard_normal(12), 0)  # with ties
    report = mode_report(order=order, modes=found, resamples=4000)
    for ours, values in (
        (report.with_regression, found.regression),
        (report.with_covariance, found.covariance),
    ):
        theirs = spearmanr(order, values)
        assert ours.value == pytest.approx(theirs.statistic, abs=1e-12)
        assert ours.p_value == pytest.approx(theirs.pvalue, abs=0.03)
        assert ours.low <= ours.value <= ours.high
    pair = spearmanr(found.covariance, found.regression).statistic
    assert report.covariance_with_regression.value == pytest.approx(pair, abs=1e-12)
    assert (report.compared, report.unmoved) == (12, 0)


def test_the_same_seed_gives_the_same_report() -> None:
    found = known(np.linspace(0.3, 1, 9), np.linspace(0.9, 0.2, 9))
    order = np.random.default_rng(1).standard_normal(9)
    first, again, other = (
        mode_report(order=order, modes=found, resamples=200, seed=s).with_regression for s in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_p_values_are_uniform_without_a_relation() -> None:
    found = known(np.linspace(0.3, 1, 10), np.linspace(0.9, 0.2, 10))
    generator = np.random.default_rng(2)
    p = [
        mode_report(order=generator.standard_normal(10), modes=found, resamples=200).with_regression.p_value
        for _ in range(100)
    ]
    assert np.mean(np.array(p) < 0.1) == pytest.approx(0.1, abs=0.05)


def test_modes_that_did_not_move() -> None:
    found = known([1.0, 0.9, 0.8, 0.7], [0.9, 0.7, 0.5, 0.3])
    order = np.array([1.0, 2.0, 3.0, np.nan])
    dropped = mode_report(order=order, modes=found)
    assert (dropped.compared, dropped.unmoved) == (3, 1)
    assert dropped.with_regression.value == pytest.approx(-1)
    early = mode_report(order=np.array([np.nan, 1.0, 2.0, 3.0]), modes=found, unmoved="last")
    assert early.compared == 4
    assert early.with_regression.value == pytest.approx(spearmanr([9, 1, 2, 3], found.regression).statistic)


@pytest.mark.parametrize("order", [[1.0, 2.0, np.nan, np.nan], [1.0, 1.0, 1.0, 1.0]])
def test_too_little_to_rank_gives_nan(order: list[float]) -> None:
    report = mode_report(order=order, modes=known([1.0, 0.9, 0.8, 0.7], [0.9, 0.7, 0.5, 0.3]))
    assert np.isnan(
        [report.with_regression.value, report.with_regression.p_value, report.with_covariance.low]
    ).all()


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize(("objective", "depth", "goes_with"), [
    ("jepa", 1, "covariance"), ("jepa", 3, "regression"), ("mae", 1, "covariance"), ("mae", 3, "covariance")
])  # fmt: skip
def test_the_whole_diagnostic_on_exact_dynamics(
    objective: Any, depth: int, goes_with: str, rotated: bool
) -> None:
    """Features of a deep linear encoder along training: JEPA goes by rho from depth 2 on, MAE by lambda."""
    rates, rho = np.array([0.9, 0.925, 0.95, 0.975, 1.0]), np.array([1.0, 0.7, 0.5, 0.35, 0.25])
    generator = np.random.default_rng(0)
    z = generator.standard_normal((300, 10))
    z = np.linalg.qr(z - z.mean(0))[0] * 300**0.5
    x = z[:, :5] * np.sqrt(rates / rho)
    y = rho * x + 0.3 * z[:, 5:]
    turn, out = (np.linalg.qr(generator.standard_normal((5, 5)))[0] for _ in range(2))
    seen_x, seen_y = (x @ turn.T, y @ turn.T) if rotated else (x, y)
    mode: Any = {
        "objective": objective, "depth": depth, "covariance": rates, "regression": rho, "layer_init": 0.1
    }  # fmt: skip
    theory = critical_time(**mode)
    steps = np.concatenate([[0], np.geomspace(0.1, 20, 300) * theory.max()])
    checkpoints = [x * wbar @ out.T for wbar in trajectory(steps[:, None], **mode)]
    found = modes(seen_x, seen_y, shrinkage=0)
    energies = np.array([mode_energy(f, seen_x, found, ridge=0) for f in checkpoints])
    # rho falls, as the modes are sorted
    assert np.allclose(energies, trajectory(steps[:, None], **mode), atol=1e-10)
    order = learning_order(energies, steps)
    assert np.array_equal(np.argsort(order), np.argsort(theory))
    report = mode_report(order=order, modes=found)
    correlation = report.with_regression if goes_with == "regression" else report.with_covariance
    assert correlation.value == pytest.approx(-1)
    assert report.covariance_with_regression.value == pytest.approx(-1)
    assert np.array_equal(report.order, order)


GOOD = [[0.0, 1.0], [1.0, 2.0]]


@pytest.mark.parametrize(("energies", "steps", "message"), [
    (GOOD, [0, 1, 2], r"energies \[T, K\] and steps \[T\]"),
    (GOOD[:1], [0], "with T >= 2"),
    ([1.0, 2.0], [0, 1], r"energies \[T, K\]"),
    (GOOD, [1, 1], "steps must rise"),
    (GOOD, [1, 0], "steps must rise"),
    ([[0.0, np.nan], [1.0, 1.0]], [0, 1], "finite and not negative"),
    ([[0.0, -1.0], [1.0, 1.0]], [0, 1], "finite and not negative"),
])  # fmt: skip
def test_errors_of_learning_order(energies: Any, steps: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learning_order(energies, steps)


def test_errors_of_the_report() -> None:
    found = known([1.0, 0.9], [0.9, 0.7])
    with pytest.raises(ValueError, match=r"each of the 2 modes, got shape \(3,\)"):
        mode_report(order=[1, 2, 3], modes=found)
    with pytest.raises(ValueError, match="resamples must be 1 or more"):
        mode_report(order=[1, 2], modes=found, resamples=0)
