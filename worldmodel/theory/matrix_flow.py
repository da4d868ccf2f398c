"""Gradient flow of all matrices of a deep linear JEPA or MAE: what the scalar theory is a reduction of.

Loss on the population, for Sigma_xx = E[x x^T] and Sigma_yx = E[y x^T], both [D, D] and not necessarily diagonal:

    JEPA: 1/2 E norm(V Wbar x - stopgrad(Wbar y))^2            MAE: 1/2 E norm(V Wbar x - y)^2

`worldmodel.theory.deep_linear` holds only from a balanced, sign-aligned start (`balanced_weights`). From a generic
random one JEPA loses modes, or waits on a plateau for longer than anyone simulates; MAE does not. `simulate` warns.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp

from worldmodel.theory.deep_linear import Array, Objective


class OutsideTheoryWarning(UserWarning):
    """The initialisation is not one the scalar dynamics describe."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A deep linear encoder and its predictor (JEPA) or decoder (MAE).

    Attributes:
        layers: W_1 to W_L in the order they are applied; W_l is [D_l, D_(l-1)], D_0 = D.
        head: V, [D_L, D_L] for JEPA, [D, D_L] for MAE.
    """

    layers: tuple[Array, ...]
    head: Array

    @property
    def encoder(self) -> Array:
        """Wbar = W_L ... W_1, [D_L, D]."""
        return _product(self.layers, self.layers[0].shape[1])


@dataclass(frozen=True, kw_only=True)
class MatrixTrajectory:
    """A simulated flow: `weights[t]` at `times[t]`."""

    times: Array
    weights: tuple[Weights, ...]

    def energy(self, patterns: Array) -> Array:
        """norm(Wbar(t) u_i) / norm(u_i), [T, K], for the columns u_i of patterns [D, K]; wbar_i in the theory."""
        encoders = np.stack([w.encoder for w in self.weights])
        return np.linalg.norm(encoders @ patterns, axis=1) / np.linalg.norm(patterns, axis=0)


def balanced_weights(
    *, objective: Objective, depth: int, dim: int, layer_init: float, seed: int = 0
) -> Weights:
    """Every matrix w0 times an orthogonal one, V turned so that it undoes what it has to (positive signs).

    Wbar = w0^L Q with Q a random rotation; V = w0 I for JEPA, whose target is Wbar y, and w0 Q^T for MAE, whose target
    is y.
    """
    _check_objective(objective)
    if depth < 1 or dim < 1 or layer_init <= 0:
        raise ValueError(
            f"depth and dim must be 1 or more and layer_init positive, got {depth}, {dim}, {layer_init}"
        )
    generator = np.random.default_rng(seed)
    layers = tuple(layer_init * _orthogonal(dim, generator) for _ in range(depth))
    turned = _product(layers, dim) / layer_init**depth
    return Weights(layers=layers, head=layer_init * (np.eye(dim) if objective == "jepa" else turned.T))


def random_weights(*, depth: int, dim: int, layer_init: float, seed: int) -> Weights:
    """Independent Gaussian matrices of standard deviation w0 / sqrt(D): the usual start, outside the theory."""
    generator = np.random.default_rng(seed)
    matrices = layer_init / dim**0.5 * generator.standard_normal((depth + 1, dim, dim))
    return Weights(layers=tuple(matrices[:-1]), head=matrices[-1])


def imbalance(weights: Weights) -> float:
    """Largest norm(W_(l+1)^T W_(l+1) - W_l W_l^T) over neighbours, V last, relative to the larger of the two.

    The differences themselves are conserved by the flow, for JEPA with its stop-gradient too.
    """
    matrices = [*weights.layers, weights.head]
    pairs = [(b.T @ b, a @ a.T) for a, b in pairwise(matrices)]
    return max(
        float(np.linalg.norm(b - a) / max(np.linalg.norm(b), np.linalg.norm(a), np.finfo(float).tiny))
        for b, a in pairs
    )


def alignment(weights: Weights, *, objective: Objective) -> float:
    """How far the prediction points along its target: 1 is fully, 0 at random, -1 against it.

    trace(M) over the nuclear norm of M, for M = Wbar^T V Wbar (JEPA) or V Wbar (MAE), [D, D]: 1 exactly if M is
    symmetric and has no negative eigenvalue. NaN for weights of zero.
    """
    encoder = weights.encoder
    m = weights.head @ encoder if objective == "mae" else encoder.T @ weights.head @ encoder
    return float(np.trace(m) / np.linalg.norm(m, ord="nuc")) if m.any() else float("nan")


def flow(weights: Weights, *, objective: Objective, sigma_xx: Array, sigma_yx: Array) -> Weights:
    """Time derivative of every matrix: minus the gradient of the loss, targets held fixed for JEPA."""
    layers, head, dim = weights.layers, weights.head, len(sigma_xx)
    encoder = weights.encoder
    residual = head @ encoder @ sigma_xx - (encoder @ sigma_yx if objective == "jepa" else sigma_yx)
    back, above = head.T @ residual, []
    for layer in reversed(layers):  # back: the gradient's factor left of W_l
        above.append(back)
        back = layer.T @ back
    changes, below = [], np.eye(dim)
    for layer, left in zip(layers, reversed(above), strict=True):
        changes.append(-left @ below.T)
        below = layer @ below
    return Weights(layers=tuple(changes), head=-residual @ encoder.T)


def simulate(
    weights: Weights,
    times: ArrayLike,
    *,
    objective: Objective,
    sigma_xx: Array,
    sigma_yx: Array,
    rtol: float = 1e-8,
    tolerance: float = 1e-6,
) -> MatrixTrajectory:
    """Integrate the flow from time 0 (LSODA). A cross-check: JEPA times grow as w0^(1 - 2L), so keep D <= 4, L <= 3.

    Args:
        weights: at time 0.
        times: [T], rising, at which to report.
        sigma_xx, sigma_yx: [D, D].
        rtol: relative tolerance of the integrator; the absolute one is rtol / 1000.
        tolerance: of imbalance and of 1 - alignment, above which an `OutsideTheoryWarning` is given.

    Raises:
        ValueError: if shapes do not fit, or times do not rise or are negative.
        RuntimeError: if the integrator gives up.
    """
    at = np.asarray(times, float)
    if at.ndim != 1 or len(at) < 1 or at[0] < 0 or not (np.diff(at) > 0).all():
        raise ValueError(f"times must be a rising list that starts at 0 or later, got {at}")
    _check(weights, objective, sigma_xx, sigma_yx)
    off, along = imbalance(weights), alignment(weights, objective=objective)
    if not (off <= tolerance and along >= 1 - tolerance):
        warnings.warn(
            f"the initialisation is outside the deep linear theory (imbalance {off:.2g}, should be 0; alignment "
            f"{along:.2g}, should be 1): expect lost modes or long plateaus with JEPA. Start from balanced_weights",
            OutsideTheoryWarning,
            stacklevel=2,
        )
    shapes = [m.shape for m in (*weights.layers, weights.head)]

    def derivative(_: float, flat: Array) -> Array:
        moving = _unpack(flat, shapes)
        return _pack(flow(moving, objective=objective, sigma_xx=sigma_xx, sigma_yx=sigma_yx))

    done = solve_ivp(
        derivative, (0.0, at[-1]), _pack(weights), method="LSODA", t_eval=at, rtol=rtol, atol=rtol * 1e-3
    )
    if not done.success:
        raise RuntimeError(
            f"the integrator stopped at t = {done.t[-1] if len(done.t) else 0:g}: {done.message}"
        )
    return MatrixTrajectory(times=at, weights=tuple(_unpack(column, shapes) for column in done.y.T))


def _check(weights: Weights, objective: Objective, sigma_xx: Array, sigma_yx: Array) -> None:
    _check_objective(objective)
    dim = len(sigma_xx)
    if sigma_xx.shape != (dim, dim) or sigma_yx.shape != (dim, dim):
        raise ValueError(f"sigma_xx and sigma_yx must both be [D, D], got {sigma_xx.shape}, {sigma_yx.shape}")
    if not weights.layers:
        raise ValueError("an encoder needs at least one layer")
    width = dim
    for number, layer in enumerate(weights.layers, start=1):
        if layer.ndim != 2 or layer.shape[1] != width:
            raise ValueError(f"layer {number} must be [*, {width}] to follow its input, got {layer.shape}")
        width = len(layer)
    expected = (width if objective == "jepa" else dim, width)
    if weights.head.shape != expected:
        raise ValueError(f"the head of {objective} must be {list(expected)}, got {weights.head.shape}")


def _check_objective(objective: str) -> None:
    if objective not in ("jepa", "mae"):
        raise ValueError(f'objective must be "jepa" or "mae", got {objective!r}')


def _product(layers: Sequence[Array], dim: int) -> Array:
    product = np.eye(dim)
    for layer in layers:
        product = layer @ product
    return product


def _orthogonal(dim: int, generator: np.random.Generator) -> Array:
    return np.linalg.qr(generator.standard_normal((dim, dim)))[0]


def _pack(weights: Weights) -> Array:
    return np.concatenate([m.ravel() for m in (*weights.layers, weights.head)])


def _unpack(flat: Array, shapes: Sequence[tuple[int, ...]]) -> Weights:
    ends = np.cumsum([a * b for a, b in shapes])[:-1]
    *layers, head = (part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes, strict=True))
    return Weights(layers=tuple(layers), head=head)
