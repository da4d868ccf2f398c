"""The modes of a prediction problem, and how much of each a set of features holds.

In the deep linear theory (Littwin et al., arXiv 2407.03475) data x (context) and y (target) with covariances Sigma_xx
and Sigma_yx = E[y x^T] are learnt mode by mode. A mode is a direction v with

    Sigma_yx v = rho Sigma_xx v,      lambda = v^T Sigma_yx v / v^T v,      variance = v^T Sigma_xx v / v^T v,

so that rho = lambda / variance is the regression coefficient of the target on the context along v. MAE learns modes of
high covariance lambda first; JEPA of depth 2 and more also prefers high regression rho. Which of the two a trained
model did is read off with `mode_energy` over its checkpoints, `learning_order` and `mode_report`.

How to use it on real features. x and y must not change during training: inputs pooled to a fixed size, or the features
of one fixed encoder, for the same N places, the context side and the target side. The checkpoint's features of the
same N contexts go to `mode_energy`.

Caveats. An EMA target, a nonlinear encoder and SIGReg are outside the theory: the modes are still well defined, the
order they are learnt in is then an observation, not a prediction. `linear_map` tells how much of a checkpoint's
features is linear in x at all. If an action decides how x becomes y, Sigma_yx mixes the effects of all actions and
loses its symmetry: compute the modes for one action at a time, or take the action out with `residualised` first.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg

Array = NDArray[np.float64]
Features = torch.Tensor | NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Modes:
    """K = D modes, sorted by falling rho.

    Attributes:
        covariance: [K] lambda_i, the covariance of target and context along unit v_i.
        regression: [K] rho_i = lambda_i / variance_i.
        variance: [K] of the context along unit v_i, shrinkage included.
        directions: [D, K] columns v_i of unit length; orthogonal under Sigma_xx, not in general to each other.
            v_i^T x is the mode's score, what an encoder has to read out.
        patterns: [D, K] columns of unit length along Sigma_xx v_i: how x changes with the score of mode i alone. They
            are the directions themselves if Sigma_xx and Sigma_yx are jointly diagonal in an orthogonal basis.
        asymmetry: share of the whitened Sigma_yx's squared Frobenius norm that is antisymmetric, 0 to 1, and was
            dropped. Near 0 the modes describe the data; 0.5 is what a matrix without any symmetry has.
        shrinkage: as given.
    """

    covariance: Array
    regression: Array
    variance: Array
    directions: Array
    patterns: Array
    asymmetry: float
    shrinkage: float


@dataclass(frozen=True, kw_only=True)
class LinearMap:
    """Best linear map from inputs [N, D] to features [N, K].

    Attributes:
        weight: [K, D].
        r2: share of the features' variance it explains.
    """

    weight: Array
    r2: float


def modes(x: Features, y: Features, *, shrinkage: float = 1e-3) -> Modes:
    """Modes of context features x and target features y, both [N, D]; row n of y is the target of row n of x.

    Means are subtracted. See `modes_of_covariances` for shrinkage and for what is done about asymmetry.

    Raises:
        ValueError: if shapes differ, N < 2, or a value is not finite.
    """
    context, target = _matrix(x, "x"), _matrix(y, "y")
    if context.shape != target.shape:
        raise ValueError(f"x and y must have the same shape [N, D], got {context.shape} and {target.shape}")
    context, target = context - context.mean(0), target - target.mean(0)
    n = len(context)
    return modes_of_covariances(
        sigma_xx=context.T @ context / n, sigma_yx=target.T @ context / n, shrinkage=shrinkage
    )


def modes_of_covariances(*, sigma_xx: Array, sigma_yx: Array, shrinkage: float = 0.0) -> Modes:
    """Modes from covariances [D, D], for instance accumulated over batches; sigma_yx[i, j] = E[y_i x_j].

    Sigma_xx is shrunk to (1 - s) Sigma_xx + s (tr Sigma_xx / D) I, which bounds the rho of directions that hardly vary.
    Measured Sigma_yx is not symmetric, and a general matrix has complex modes; its symmetric part is used, which keeps
    them real and orthogonal under Sigma_xx, and the share that was dropped is reported as `asymmetry`.

    Raises:
        ValueError: if shapes do not fit, shrinkage is outside [0, 1], or Sigma_xx is singular after shrinkage.
    """
    d = len(sigma_xx)
    if sigma_xx.shape != (d, d) or sigma_yx.shape != (d, d):
        raise ValueError(
            f"sigma_xx and sigma_yx must both be [D, D], got {sigma_xx.shape} and {sigma_yx.shape}"
        )
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must lie in [0, 1], got {shrinkage}")
    shrunk = (1 - shrinkage) * sigma_xx + shrinkage * np.trace(sigma_xx) / d * np.eye(d)
    try:
        # The test is not left to Cholesky, which may pass on rounding alone.
        if np.linalg.cond(shrunk) > 1e13:
            raise linalg.LinAlgError
        root = linalg.cholesky(shrunk, lower=True)
    except linalg.LinAlgError:
        raise ValueError(
            f"sigma_xx is singular at shrinkage {shrinkage:g}: raise shrinkage, drop constant or duplicate "
            "features, or give more samples than dimensions"
        ) from None
    half = linalg.solve_triangular(root, sigma_yx, lower=True)
    whitened = linalg.solve_triangular(root, half.T, lower=True).T
    symmetric = (whitened + whitened.T) / 2
    energy = float(np.square(whitened).sum())
    regression, vectors = np.linalg.eigh(symmetric)
    directions = linalg.solve_triangular(root, vectors[:, ::-1], lower=True, trans="T")
    directions = directions / np.linalg.norm(directions, axis=0)
    patterns = shrunk @ directions
    variance = np.einsum("dk,dk->k", directions, patterns)
    return Modes(
        covariance=regression[::-1] * variance,
        regression=regression[::-1].copy(),
        variance=variance,
        directions=directions,
        patterns=patterns / np.linalg.norm(patterns, axis=0),
        asymmetry=float(np.square(whitened - symmetric).sum()) / energy if energy > 0 else 0.0,
        shrinkage=shrinkage,
    )


def linear_map(features: Features, inputs: Features, *, ridge: float = 1e-3) -> LinearMap:
    """Ridge regression of features [N, K] on inputs [N, D], means subtracted.

    Args:
        features: what a checkpoint makes of the N inputs.
        inputs: the x the modes were computed from.
        ridge: penalty relative to the mean variance of the inputs.

    Raises:
        ValueError: if N differs or is below 2, a value is not finite, ridge is negative, or the system is singular.
    """
    f, x = _matrix(features, "features"), _matrix(inputs, "inputs")
    if len(f) != len(x):
        raise ValueError(f"features and inputs must have one row per sample, got {len(f)} and {len(x)} rows")
    if ridge < 0:
        raise ValueError(f"ridge must not be negative, got {ridge}")
    f, x = f - f.mean(0), x - x.mean(0)
    gram = x.T @ x
    penalty = ridge * np.trace(gram) / len(gram)
    try:
        weight = linalg.solve(gram + penalty * np.eye(len(gram)), x.T @ f, assume_a="pos").T
    except linalg.LinAlgError:
        raise ValueError(
            "the inputs do not determine a linear map: raise ridge or give more samples"
        ) from None
    total = float(np.square(f).sum())
    error = float(np.square(f - x @ weight.T).sum())
    return LinearMap(weight=weight, r2=1 - error / total if total > 0 else float("nan"))


def mode_energy(
    features: Features,
    inputs: Features,
    modes: Modes,
    *,
    ridge: float = 1e-3,
    along: Literal["patterns", "directions"] = "patterns",
) -> Array:
    """norm(Wbar u_i) / norm(u_i) [K]: how strongly features [N, F] respond to each mode of the inputs [N, D].

    Wbar is the `linear_map` from inputs to features and u_i the mode's pattern. On jointly diagonal data patterns and
    directions are one, and this is the theory's wbar_i. On other data they are not: an encoder that reads out the
    scores is Wbar = sum_i c_i a_i v_i^T, which answers pattern i with c_i alone, but direction i with a share of every
    mode that v_i is not perpendicular to. That share soon outweighs a mode of low rho, whose c_i is small;
    "directions" is there for comparison.

    Raises:
        ValueError: if the inputs' dimension is not that of the modes; and what `linear_map` raises.
    """
    units = {"patterns": modes.patterns, "directions": modes.directions}[along]
    weight = linear_map(features, inputs, ridge=ridge).weight
    if weight.shape[1] != len(units):
        raise ValueError(
            f"the modes are of {len(units)} dimensions and the inputs of {weight.shape[1]}: "
            "give the inputs the modes were computed from"
        )
    return np.linalg.norm(weight @ units, axis=0)


def residualised(features: Features, covariates: Features) -> Array:
    """Features [N, D] less what is linear in covariates [N, A] (actions, say), and less their mean.

    Raises:
        ValueError: if N differs or is below 2, or a value is not finite.
    """
    f, c = _matrix(features, "features"), _matrix(covariates, "covariates")
    if len(f) != len(c):
        raise ValueError(
            f"features and covariates must have one row per sample, got {len(f)} and {len(c)} rows"
        )
    f, c = f - f.mean(0), c - c.mean(0)
    return f - c @ np.linalg.lstsq(c, f, rcond=None)[0]


def _matrix(values: Features, name: str) -> Array:
    """As float64 numpy [N, D], checked."""
    array: Array = torch.as_tensor(values).detach().double().cpu().numpy()
    if array.ndim != 2 or len(array) < 2 or array.shape[1] < 1:
        raise ValueError(f"{name} must have shape [N, D] with N >= 2, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite values: drop those rows or mend the features")
    return array
