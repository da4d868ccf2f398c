"""Exact learning dynamics of a deep linear encoder under JEPA and under MAE, one mode at a time.

Setting (Littwin et al., "How JEPA avoids noisy features", arXiv 2407.03475). Encoder Wbar = W_L ... W_1, predictor or
decoder V, data x (context) and y (target):

    JEPA: 1/2 E norm(V Wbar x - stopgrad(Wbar y))^2            MAE: 1/2 E norm(V Wbar x - y)^2

With Sigma_xx = diag(lambda_i / rho_i), Sigma_yx = diag(lambda_i) and every layer starting as w0 times an orthogonal
matrix, sign-aligned with its neighbours (`worldmodel.theory.matrix_flow.balanced_weights`), all layers and V keep the
same singular value w in a mode, and gradient flow becomes one equation for each mode:

    JEPA: dw/dt = lambda w^(2L) (1 - w / rho),        wbar = w^L -> rho^L
    MAE : dw/dt = lambda w^L (1 - w^(L+1) / rho),     wbar = w^L -> rho^(L/(L+1))

Both are dx/dt = lambda w*^(a-1) x^a (1 - x^b) for x = w / w*, w* = rho^(1/b), with (a, b) = (2L, 1) for JEPA and
(L, L + 1) for MAE, whose time as a function of x is a closed form. Everything here follows from that one function.

Time is that of gradient flow on the matrices themselves: dwbar/dt carries a factor L. Presentations that drop it have
times L times as long.

Two conventions for the start, and they matter. `product_init` is wbar(0) = eps, the whole encoder; `layer_init` is
w0 = eps^(1/L), one layer. Exactly one must be given. At a fixed product init, deeper encoders prefer modes of high rho
more and more; at a fixed layer init they do not: the preference is governed by w0, which the former raises with depth.

Rates (covariance lambda, regression rho), starts, fractions and times are floats or arrays that broadcast; results
have the broadcast shape.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import hyp2f1

Array = NDArray[np.float64]
Objective = Literal["jepa", "mae"]
_HALVINGS = 64  # of a range of logarithms: below float64 rounding


def fixed_point(*, objective: Objective, depth: int, regression: ArrayLike) -> Array:
    """wbar* that the encoder reaches in the end: rho^L for JEPA, rho^(L/(L+1)) for MAE."""
    _, b = _exponents(objective, depth)
    return _positive(regression, "regression") ** (depth / b)


def velocity(
    wbar: ArrayLike, *, objective: Objective, depth: int, covariance: ArrayLike, regression: ArrayLike
) -> Array:
    """dwbar/dt = L lambda (wbar^(c - 1/L) - wbar^3 / rho), with c = 3 for JEPA and c = 2 for MAE."""
    a, b = _exponents(objective, depth)
    rate, rho = _positive(covariance, "covariance"), _positive(regression, "regression")
    w = _positive(wbar, "wbar") ** (1 / depth)
    return depth * rate * w ** (depth - 1 + a) * (1 - w**b / rho)


def critical_time(
    *,
    objective: Objective,
    depth: int,
    covariance: ArrayLike,
    regression: ArrayLike,
    fraction: ArrayLike = 0.5,
    product_init: ArrayLike | None = None,
    layer_init: ArrayLike | None = None,
) -> Array:
    """Exact time at which wbar reaches a fraction of its fixed point.

    Args:
        objective: "jepa" or "mae".
        depth: L, encoder layers.
        covariance: lambda > 0.
        regression: rho > 0.
        fraction: of wbar*, in (0, 1).
        product_init: wbar(0); or
        layer_init: w0, the singular value of every layer at the start. See the module on why the choice matters.

    Raises:
        ValueError: for values outside these ranges, both or neither init, or a start not below the fraction.
    """
    p = np.asarray(fraction, float)
    if not ((p > 0) & (p < 1)).all():
        raise ValueError(f"fraction must lie in (0, 1), got {p}: the fixed point itself is never reached")
    start = _start(objective, depth, regression, product_init, layer_init)
    end = np.log(p) / depth
    if not (start < end).all():
        raise ValueError(
            "a mode starts at or beyond the requested fraction of its fixed point "
            f"(at {np.exp(depth * start).max():.3g} of it): lower the init or raise fraction"
        )
    unit = _time_unit(objective, depth, covariance, regression)
    return unit * _elapsed(start, end, *_exponents(objective, depth))


def trajectory(
    times: ArrayLike,
    *,
    objective: Objective,
    depth: int,
    covariance: ArrayLike,
    regression: ArrayLike,
    product_init: ArrayLike | None = None,
    layer_init: ArrayLike | None = None,
) -> Array:
    """wbar(t), exact: t(w) is known and rises, and is inverted by bisection in log w.

    Args:
        times: t >= 0; times[:, None] for every mode at every time.
        objective, depth, covariance, regression, product_init, layer_init: as in `critical_time`.

    Raises:
        ValueError: as `critical_time`, for negative times, or a start not below the fixed point.
    """
    t = np.asarray(times, float)
    if not (t >= 0).all():
        raise ValueError(f"times must not be negative or NaN, got {t}")
    start = _start(objective, depth, regression, product_init, layer_init)
    target = t / _time_unit(objective, depth, covariance, regression)
    a, b = _exponents(objective, depth)
    low, high = np.broadcast_arrays(start, np.zeros_like(start + target))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        late = _elapsed(start, middle, a, b) > target
        low, high = np.where(late, low, middle), np.where(late, middle, high)
    return fixed_point(objective=objective, depth=depth, regression=regression) * np.exp(depth * low)


def leading_critical_time(
    *,
    objective: Objective,
    depth: int,
    covariance: ArrayLike,
    regression: ArrayLike,
    product_init: ArrayLike | None = None,
    layer_init: ArrayLike | None = None,
) -> Array:
    """The part of the critical time that diverges as the init goes to zero; it does not depend on the fraction.

    JEPA: 1/lambda sum_{n=1}^{2L-1} 1 / (n rho^(2L-n-1) w0^n), rho entering from the second largest term on.
    MAE: -L ln(w0) / lambda for L = 1, w0^(1-L) / ((L - 1) lambda) beyond: no rho at all.
    """
    a, _ = _exponents(objective, depth)
    _start(objective, depth, regression, product_init, layer_init)
    rate, rho = _positive(covariance, "covariance"), _positive(regression, "regression")
    w0 = _layer_init(depth, product_init, layer_init)
    if objective == "jepa":
        total = sum(1 / (n * rho ** (a - 1 - n) * w0**n) for n in range(1, a))
        return np.asarray(total / rate)[()]
    diverging = -np.log(w0) if depth == 1 else w0 ** (1 - depth) / (depth - 1)
    return diverging / rate + 0 * rho


def reversal_threshold(
    *, depth: int, covariance: tuple[float, float], regression: tuple[float, float]
) -> float:
    """Layer init w0 above which JEPA learns mode B before mode A, though A has the higher covariance.

    From the two largest terms of the critical time; a truncation, so compare `critical_time` near the boundary. MAE
    never reverses the two, nor does JEPA at depth 1: infinity.

    Args:
        depth: L.
        covariance: (lambda_A, lambda_B), lambda_A > lambda_B.
        regression: (rho_A, rho_B).

    Returns:
        w0; infinity if lambda_A rho_A >= lambda_B rho_B or depth is 1, where the two terms never reverse.
    """
    _exponents("jepa", depth)
    (rate_a, rate_b), (rho_a, rho_b) = (
        _positive(covariance, "covariance"),
        _positive(regression, "regression"),
    )
    if rate_a <= rate_b:
        raise ValueError(f"mode A must have the higher covariance, got {covariance}: swap the modes")
    gain = 1 / (rate_a * rho_a) - 1 / (rate_b * rho_b)
    if depth == 1 or gain <= 0:
        return float("inf")
    return float((2 * depth - 2) / (2 * depth - 1) * (1 / rate_b - 1 / rate_a) / gain)


def _exponents(objective: str, depth: int) -> tuple[int, int]:
    """(a, b) of dx/dt proportional to x^a (1 - x^b)."""
    if depth < 1 or depth != int(depth):
        raise ValueError(f"depth must be a whole number of layers, 1 or more, got {depth}")
    if objective == "jepa":
        return 2 * depth, 1
    if objective == "mae":
        return depth, depth + 1
    raise ValueError(f'objective must be "jepa" or "mae", got {objective!r}')


def _positive(value: ArrayLike, name: str) -> Array:
    array = np.asarray(value, float)
    if not ((array > 0) & np.isfinite(array)).all():
        raise ValueError(f"{name} must be positive and finite, got {array}")
    return array


def _layer_init(depth: int, product_init: ArrayLike | None, layer_init: ArrayLike | None) -> Array:
    if layer_init is not None and product_init is None:
        return _positive(layer_init, "layer_init")
    if product_init is not None and layer_init is None:
        return _positive(product_init, "product_init") ** (1 / depth)
    raise ValueError(
        "give exactly one of product_init (eps, the whole encoder) and layer_init (w0 = eps**(1/depth), one layer)"
    )


def _start(
    objective: str,
    depth: int,
    regression: ArrayLike,
    product_init: ArrayLike | None,
    layer_init: ArrayLike | None,
) -> Array:
    """log(w0 / w*), negative."""
    _, b = _exponents(objective, depth)
    start = (
        np.log(_layer_init(depth, product_init, layer_init)) - np.log(_positive(regression, "regression")) / b
    )
    if not (start < 0).all():
        raise ValueError(
            "the init lies at or above the fixed point of a mode "
            f"(layers start at {np.exp(start).max():.3g} of their final value): lower it"
        )
    return start


def _time_unit(objective: str, depth: int, covariance: ArrayLike, regression: ArrayLike) -> Array:
    a, b = _exponents(objective, depth)
    return _positive(regression, "regression") ** (-(a - 1) / b) / _positive(covariance, "covariance")


def _elapsed(start: Array, end: Array, a: int, b: int) -> Array:
    """Integral of dx / (x^a (1 - x^b)) from exp(start) to exp(end).

    The integrand is a sum of negative powers x^(bk - a), whose differences are taken without cancellation, and a
    remainder x^r / (1 - x^b), r >= 0, whose integral from 0 is a hypergeometric function (a logarithm for b = 1).
    """
    terms = -(-a // b)
    total: Array = np.zeros(np.broadcast(start, end).shape)
    for k in range(terms):
        n = a - 1 - b * k
        total = total + (np.exp(-n * start) * -np.expm1(-n * (end - start)) / n if n else end - start)
    r = b * terms - a + 1
    return total + _remainder(end, r, b) - _remainder(start, r, b)


def _remainder(log_x: Array, r: int, b: int) -> Array:
    """Integral of y^(r - 1) / (1 - y^b) from 0 to x."""
    return np.exp(r * log_x) / r * hyp2f1(1.0, r / b, 1 + r / b, np.exp(b * log_x))
