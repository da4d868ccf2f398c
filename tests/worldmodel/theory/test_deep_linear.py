"""The closed forms against quadrature of the printed equations, published-size tables, and their own limits."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from worldmodel.theory.deep_linear import (
    critical_time,
    fixed_point,
    leading_critical_time,
    reversal_threshold,
    trajectory,
    velocity,
)


def layer_velocity(w: float, *, objective: str, depth: int, rate: float, rho: float) -> float:
    """dw/dt of one layer as the theory prints it, with sigma^2 = lambda / rho."""
    sigma2 = rate / rho
    if objective == "jepa":
        return w ** (2 * depth) * (rate - sigma2 * w)
    return w**depth * (rate - sigma2 * w ** (depth + 1))


def quadrature_time(
    *, objective: str, depth: int, rate: float, rho: float, eps: float, fraction: float = 0.5
) -> float:
    """Time to the fraction by adaptive quadrature of dt = dw / (dw/dt) in log w."""
    final = rho**depth if objective == "jepa" else rho ** (depth / (depth + 1))
    ends = np.log(eps) / depth, np.log(fraction * final) / depth

    def slowness(s: float) -> float:
        w = float(np.exp(s))
        return w / layer_velocity(w, objective=objective, depth=depth, rate=rate, rho=rho)

    return quad(slowness, *ends, epsabs=0, epsrel=1e-12, limit=200)[0]


# L, lambda, rho, eps; JEPA exact and its diverging sum; MAE exact and its asymptote.
GOLDEN = [
    (1, 1, 1, 1e-2, "102.595", "100", "4.05581", "4.60517"),
    (1, 1, 0.5, 1e-4, "10013", "10000", "8.31446", "9.21034"),
    (2, 1, 1, 1e-2, "393.055", "393.333", "8.87675", "10"),
    (2, 1, 0.5, 1e-2, "464.618", "473.333", "8.58109", "10"),
    (2, 0.5, 1, 1e-2, "786.11", "786.667", "17.7535", "20"),
    (2, 1, 0.5, 1e-4, "343745", "343733", "98.591", "100"),
    (3, 1, 1, 1e-2, "594.328", "595.674", "10.3259", "10.7722"),
    (3, 1, 0.5, 1e-2, "881.235", "956.743", "10.1274", "10.7722"),
    (3, 1, 0.5, 1e-4, "1.05156e+06", "1.05157e+06", "231.479", "232.079"),
]


@pytest.mark.parametrize(("depth", "rate", "rho", "eps", "jepa", "jepa_sum", "mae", "mae_sum"), GOLDEN)
def test_golden_times(
    depth: int, rate: float, rho: float, eps: float, jepa: str, jepa_sum: str, mae: str, mae_sum: str
) -> None:
    for objective, exact, leading in (("jepa", jepa, jepa_sum), ("mae", mae, mae_sum)):
        mode: dict[str, Any] = {
            "objective": objective, "depth": depth, "covariance": rate, "regression": rho, "product_init": eps,
        }  # fmt: skip
        assert f"{critical_time(**mode):.6g}" == exact
        assert f"{leading_critical_time(**mode):.6g}" == leading
        expected = quadrature_time(objective=objective, depth=depth, rate=rate, rho=rho, eps=eps)
        assert critical_time(**mode) == pytest.approx(expected, rel=1e-11)


@settings(max_examples=60, deadline=None)
@given(
    objective=st.sampled_from(["jepa", "mae"]),
    depth=st.integers(1, 6),
    rate=st.floats(0.05, 5),
    rho=st.floats(0.1, 3),
    fraction=st.floats(0.05, 0.95),
    start=st.floats(0.05, 0.8),
)
def test_closed_form_is_the_quadrature_everywhere(
    objective: str, depth: int, rate: float, rho: float, fraction: float, start: float
) -> None:
    final = float(fixed_point(objective=objective, depth=depth, regression=rho))  # type: ignore[arg-type]
    eps = (fraction * final) * start**depth
    time = critical_time(
        objective=objective,  # type: ignore[arg-type]
        depth=depth, covariance=rate, regression=rho, fraction=fraction, product_init=eps,
    )  # fmt: skip
    expected = quadrature_time(
        objective=objective, depth=depth, rate=rate, rho=rho, eps=eps, fraction=fraction
    )
    assert time == pytest.approx(expected, rel=1e-8)


def test_jepa_formula_as_printed() -> None:
    """Theorem 4.4 in its own words: a sum over n, and a logarithmic rest."""
    depth, rate, rho, w0, p = 3, 0.7, 0.6, 0.11, 0.4
    w = p ** (1 / depth) * rho
    total = sum((w0**-n - w**-n) / (n * rho ** (2 * depth - n - 1)) for n in range(1, 2 * depth))
    total += rho ** (1 - 2 * depth) * (np.log(w / w0) - np.log((1 - w / rho) / (1 - w0 / rho)))
    time = critical_time(
        objective="jepa", depth=depth, covariance=rate, regression=rho, fraction=p, layer_init=w0
    )
    assert time == pytest.approx(total / rate, rel=1e-12)


def test_product_and_layer_init_are_two_names_of_one_start() -> None:
    mode: dict[str, Any] = {"objective": "jepa", "depth": 3, "covariance": 1.0, "regression": 0.5}
    assert critical_time(**mode, layer_init=0.1) == pytest.approx(
        critical_time(**mode, product_init=0.1**3), rel=1e-12
    )


# Three figures of the MAE row at eps = 1e-3 (.9455, .9905, .9995) lie at a rounding boundary; quadrature gives these.
@pytest.mark.parametrize(("objective", "start", "ratios"), [
    ("jepa", {"product_init": 1e-3}, [1.004, 1.054, 1.173, 1.369, 1.671, 2.131]),
    ("mae", {"product_init": 1e-3}, [0.945, 0.990, 0.996, 0.998, 0.999, 1.000]),
    ("jepa", {"layer_init": 0.1}, [0.860, 1.182, 1.173, 1.155, 1.147, 1.142]),
    ("mae", {"layer_init": 0.1}, [0.799, 0.967, 0.996, 1.000, 1.000, 1.000]),
])  # fmt: skip
def test_bias_towards_rho_by_depth(objective: Any, start: dict[str, float], ratios: list[float]) -> None:
    """t(rho = .5) / t(rho = 1) at equal lambda: grows with depth at a fixed product init, not at a fixed layer init."""
    found = [
        np.divide(*critical_time(objective=objective, depth=d, covariance=1, regression=[0.5, 1], **start))
        for d in range(1, 7)
    ]
    assert [f"{r:.3f}" for r in found] == [f"{r:.3f}" for r in ratios]


def test_at_equal_covariance_the_ratio_tends_to_one_for_mae_and_stays_above_for_jepa() -> None:
    starts = np.array([1e-2, 1e-3, 1e-4, 1e-5])
    for depth in (2, 3, 4):
        times = {
            o: critical_time(
                objective=o, depth=depth, covariance=1, regression=np.array([[0.5], [1]]), product_init=starts
            )
            for o in ("jepa", "mae")
        }
        mae, jepa = (times[o][0] / times[o][1] for o in ("mae", "jepa"))
        assert abs(mae[-1] - 1) < 5e-3
        assert (np.diff(abs(mae - 1)) < 0).all()
        assert (jepa > 1).all()
        assert jepa[0] > 1.15


REVERSAL = [
    # L; JEPA t_A, t_B; MAE t_A, t_B
    (1, ("3.018", "10.41"), ("0.9444", "1.955")),
    (2, ("324.6", "294.3"), ("6.639", "9.01")),
    (3, ("1.56e+04", "1.185e+04"), ("33.93", "42.86")),
    (4, ("7.577e+05", "5.8e+05"), ("192.6", "240.9")),
]


@pytest.mark.parametrize(("depth", "jepa", "mae"), REVERSAL)
def test_order_reversal(depth: int, jepa: tuple[str, str], mae: tuple[str, str]) -> None:
    """A has the higher covariance, B the higher regression: JEPA learns B first from depth 2 on, MAE never does."""
    for objective, expected in (("jepa", jepa), ("mae", mae)):
        a, b = critical_time(
            objective=objective,  # type: ignore[arg-type]
            depth=depth, covariance=[1, 0.8], regression=[0.3, 1], layer_init=0.12,
        )  # fmt: skip
        assert (f"{a:.4g}", f"{b:.4g}") == expected
        assert (b < a) == (objective == "jepa" and depth >= 2)


@pytest.mark.parametrize(("objective", "w0", "ratios"), [
    ("jepa", 0.05, [1.107, 1.100, 1.070, 1.053, 1.044, 1.039]),
    ("jepa", 0.1, [1.066, 1.576, 1.672, 1.649, 1.609, 1.576]),
    ("mae", 0.05, [0.766, 0.798, 0.800, 0.800, 0.800, 0.800]),
])  # fmt: skip
def test_second_reversal(objective: Any, w0: float, ratios: list[float]) -> None:
    found = [
        np.divide(*critical_time(
            objective=objective, depth=d, covariance=[1, 0.8], regression=[0.2, 1], layer_init=w0
        ))
        for d in range(2, 8)
    ]  # fmt: skip
    assert [f"{r:.3f}" for r in found] == [f"{r:.3f}" for r in ratios]


def test_reversal_threshold() -> None:
    assert reversal_threshold(depth=2, covariance=(1, 0.8), regression=(0.3, 1)) == pytest.approx(0.08)
    assert reversal_threshold(depth=1, covariance=(1, 0.8), regression=(0.3, 1)) == np.inf
    assert reversal_threshold(depth=3, covariance=(1, 0.8), regression=(1, 0.3)) == np.inf


def test_reversal_threshold_is_the_exact_boundary_when_it_is_small() -> None:
    """Two terms are enough when w0 is small: nearly equal covariances move the boundary there."""
    covariance, regression = (1.0, 0.99), (0.3, 1.0)
    for depth in (2, 3):
        edge = reversal_threshold(depth=depth, covariance=covariance, regression=regression)
        assert edge < 0.01
        for factor, b_first in ((0.97, False), (1.03, True)):
            a, b = critical_time(
                objective="jepa", depth=depth, covariance=covariance, regression=regression,
                layer_init=factor * edge,
            )  # fmt: skip
            assert (b < a) == b_first


def test_asymptotes() -> None:
    """JEPA's sum is within 9 % at eps = 1e-2 and 0.15 % at 1e-4; MAE's offset is a constant, not a fraction."""
    for depth, eps, bar in ((2, 1e-2, 0.09), (3, 1e-2, 0.09), (2, 1e-4, 1.5e-3), (3, 1e-4, 1.5e-3)):
        mode: dict[str, Any] = {
            "depth": depth, "covariance": 1, "regression": [0.5, 1], "product_init": eps, "objective": "jepa"
        }  # fmt: skip
        assert np.allclose(leading_critical_time(**mode), critical_time(**mode), rtol=bar)
    for depth in (2, 3):
        offsets = [
            leading_critical_time(**mae) - critical_time(**mae)
            for eps in (1e-6, 1e-7)
            for mae in [
                {"objective": "mae", "depth": depth, "covariance": 1, "regression": 0.5, "product_init": eps}
            ]
        ]
        assert offsets[0] == pytest.approx(offsets[1], rel=1e-3)


def test_fixed_points() -> None:
    assert fixed_point(objective="jepa", depth=3, regression=0.5) == pytest.approx(0.125)
    assert fixed_point(objective="mae", depth=3, regression=0.5) == pytest.approx(0.5**0.75)
    for objective in ("jepa", "mae"):
        for depth in (1, 2, 5):
            end = fixed_point(objective=objective, depth=depth, regression=0.3)  # type: ignore[arg-type]
            mode: dict[str, Any] = {
                "objective": objective, "depth": depth, "covariance": 0.7, "regression": 0.3
            }  # fmt: skip
            assert velocity(end, **mode) == pytest.approx(0, abs=1e-15)
            assert velocity(0.9 * end, **mode) > 0 > velocity(1.1 * end, **mode)
            assert trajectory(1e12, **mode, product_init=end / 50) == pytest.approx(end, rel=1e-9)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_velocity_as_printed(depth: int) -> None:
    """In wbar, and as L w^(L-1) dw/dt: the factor L is kept."""
    w, rate, rho = 0.37, 0.8, 0.6
    for objective, power in (("jepa", 3), ("mae", 2)):
        found = velocity(
            w**depth, objective=objective, depth=depth, covariance=rate, regression=rho  # type: ignore[arg-type]
        )  # fmt: skip
        wbar = w**depth
        assert found == pytest.approx(depth * rate * (wbar ** (power - 1 / depth) - wbar**3 / rho), rel=1e-12)
        layer = layer_velocity(w, objective=objective, depth=depth, rate=rate, rho=rho)
        assert found == pytest.approx(depth * w ** (depth - 1) * layer, rel=1e-12)


@pytest.mark.parametrize("objective", ["jepa", "mae"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_trajectory_inverts_the_critical_time(objective: Any, depth: int) -> None:
    mode: dict[str, Any] = {
        "objective": objective, "depth": depth, "covariance": [1, 0.8], "regression": [0.3, 1], "layer_init": 0.04
    }  # fmt: skip
    fractions = np.array([0.15, 0.5, 0.9, 0.999])[:, None]
    times = critical_time(**mode, fraction=fractions)
    wbar = trajectory(times, **mode)
    end = fixed_point(objective=objective, depth=depth, regression=[0.3, 1])
    assert wbar.shape == (4, 2)
    assert np.allclose(wbar / end, np.broadcast_to(fractions, (4, 2)), rtol=1e-10)


@pytest.mark.parametrize("objective", ["jepa", "mae"])
def test_trajectory_solves_the_equation(objective: Any) -> None:
    """Its finite difference is the velocity; it starts at the init and rises."""
    mode: dict[str, Any] = {"objective": objective, "depth": 2, "covariance": 0.9, "regression": 0.7}
    times = np.linspace(0, 8, 40)
    wbar = trajectory(times, **mode, product_init=0.09)
    assert wbar[0] == pytest.approx(0.09, rel=1e-13)
    assert (np.diff(wbar) > 0).all()
    h = 1e-4
    slope = [np.subtract(*trajectory([t + h, t - h], **mode, product_init=0.09)) / (2 * h) for t in times[1:]]
    assert np.allclose(slope, velocity(wbar[1:], **mode), rtol=1e-5, atol=1e-9)


def test_floats_in_floats_out() -> None:
    mode: dict[str, Any] = {"objective": "mae", "depth": 2, "covariance": 1, "regression": 1}
    for value in (
        critical_time(**mode, product_init=0.01),
        leading_critical_time(**mode, product_init=0.01),
        trajectory(3.0, **mode, product_init=0.01),
        velocity(0.3, **mode),
        fixed_point(objective="mae", depth=2, regression=1),
    ):
        assert isinstance(value, float)


@pytest.mark.parametrize(("change", "message"), [
    ({"fraction": 1.0}, r"fraction must lie in \(0, 1\)"),
    ({"fraction": 0}, r"fraction must lie in \(0, 1\)"),
    ({"fraction": float("nan")}, r"fraction must lie in \(0, 1\)"),
    ({"depth": 0}, "depth must be a whole number of layers, 1 or more, got 0"),
    ({"depth": 1.5}, "whole number of layers"),
    ({"covariance": -1}, "covariance must be positive"),
    ({"regression": [0.5, 0]}, "regression must be positive"),
    ({"product_init": -0.1}, "product_init must be positive"),
    ({"product_init": None, "layer_init": float("nan")}, "layer_init must be positive"),
    ({"layer_init": 0.1}, "give exactly one of product_init"),
    ({"product_init": None}, "give exactly one of product_init"),
    ({"product_init": 0.3}, "at or above the fixed point of a mode"),
    ({"product_init": 0.2}, "starts at or beyond the requested fraction"),
    ({"objective": "vae"}, 'objective must be "jepa" or "mae", got \'vae\''),
])  # fmt: skip
def test_errors(change: dict[str, Any], message: str) -> None:
    mode = {"objective": "jepa", "depth": 2, "covariance": 1, "regression": 0.5, "product_init": 0.01}
    with pytest.raises(ValueError, match=message):
        critical_time(**{**mode, **change})


def test_errors_of_the_others() -> None:
    mode: dict[str, Any] = {"objective": "jepa", "depth": 2, "covariance": 1, "regression": 0.5}
    for times in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="times must not be negative or NaN"):
            trajectory(times, **mode, product_init=0.01)
    with pytest.raises(ValueError, match="at or above the fixed point"):
        trajectory(1.0, **mode, product_init=0.26)
    with pytest.raises(ValueError, match="wbar must be positive"):
        velocity(0.0, **mode)
    with pytest.raises(ValueError, match="give exactly one"):
        leading_critical_time(**mode)
    with pytest.raises(ValueError, match="mode A must have the higher covariance"):
        reversal_threshold(depth=2, covariance=(0.8, 1), regression=(1, 0.3))
