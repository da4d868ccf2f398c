"""Modes and energies of data whose covariances are known exactly."""

from typing import Any

import numpy as np
import pytest
import torch

from worldmodel.theory import Modes, linear_map, mode_energy, modes, modes_of_covariances, residualised

RATES, RHO = np.array([0.5, 0.9, 0.7, 0.2, 0.4]), np.array([1.0, 0.4, 0.7, 0.9, 0.2])


def white(n: int, dim: int, seed: int = 0) -> np.ndarray:
    """[n, dim] of zero mean and identity covariance, exactly."""
    z = np.random.default_rng(seed).standard_normal((n, dim))
    return np.linalg.qr(z - z.mean(0))[0] * n**0.5


def diagonal_pair(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """x, y [n, 5] with Sigma_xx = diag(RATES / RHO) and Sigma_yx = diag(RATES), and noise in y of its own."""
    z = white(n, 10)
    x = z[:, :5] * np.sqrt(RATES / RHO)
    return x, RHO * x + 0.6 * z[:, 5:]


def rotation(dim: int, seed: int = 1) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]


def by_rho(values: np.ndarray) -> np.ndarray:
    return values[np.argsort(-RHO)]


def check_modes(found: Modes) -> None:
    assert np.allclose(found.regression, by_rho(RHO), rtol=1e-12)
    assert np.allclose(found.covariance, by_rho(RATES), rtol=1e-12)
    assert np.allclose(found.variance, by_rho(RATES / RHO), rtol=1e-12)
    assert np.allclose(np.linalg.norm(found.directions, axis=0), 1)
    assert np.allclose(abs((found.directions * found.patterns).sum(0)), 1)
    assert found.asymmetry < 1e-25


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_known_modes(offset: float) -> None:
    x, y = diagonal_pair()
    found = modes(x + offset, y - offset, shrinkage=0)
    check_modes(found)
    assert np.allclose(abs(found.directions[np.argsort(-RHO), np.arange(5)]), 1)


def test_a_rotated_copy_has_the_same_modes_rotated() -> None:
    x, y = diagonal_pair()
    q = rotation(5)
    found, plain = modes(x @ q.T, y @ q.T, shrinkage=0), modes(x, y, shrinkage=0)
    check_modes(found)
    assert np.allclose(abs((q @ plain.directions * found.directions).sum(0)), 1)


def test_torch_and_numpy_agree_and_low_precision_is_upcast() -> None:
    x, y = diagonal_pair()
    expected = modes(x, y)
    found = modes(torch.tensor(x, requires_grad=True), torch.tensor(y))
    assert np.array_equal(found.regression, expected.regression)
    half = torch.tensor(x).bfloat16(), torch.tensor(y).bfloat16()
    upcast = modes(half[0].double(), half[1].double())
    assert np.array_equal(modes(*half).covariance, upcast.covariance)


def general_covariances() -> tuple[np.ndarray, np.ndarray]:
    a, b = np.random.default_rng(0).standard_normal((2, 6, 6))
    return a @ a.T / 6, b


def test_the_eigenproblem_is_solved() -> None:
    """Sigma_yx v = rho Sigma_xx v for symmetric Sigma_yx; directions orthogonal under Sigma_xx, patterns dual."""
    sigma_xx, b = general_covariances()
    sigma_yx = b + b.T
    found = modes_of_covariances(sigma_xx=sigma_xx, sigma_yx=sigma_yx)
    v = found.directions
    assert np.allclose(sigma_yx @ v, sigma_xx @ v * found.regression)
    assert np.allclose(v.T @ sigma_xx @ v, np.diag(found.variance), atol=1e-12)
    assert np.allclose(found.covariance, np.diag(v.T @ sigma_yx @ v))
    assert (np.diff(found.regression) <= 0).all()
    assert np.allclose(v.T @ found.patterns, np.diag(np.diag(v.T @ found.patterns)), atol=1e-12)
    assert found.asymmetry < 1e-25


def test_asymmetry_is_dropped_and_reported() -> None:
    sigma_xx, b = general_covariances()
    symmetric, antisymmetric = (b + b.T) / 2, (b - b.T) / 2
    found = modes_of_covariances(sigma_xx=sigma_xx, sigma_yx=b)
    alone = modes_of_covariances(sigma_xx=sigma_xx, sigma_yx=symmetric)
    assert np.allclose(found.regression, alone.regression)
    none = modes_of_covariances(sigma_xx=np.eye(6), sigma_yx=b)
    expected = np.square(antisymmetric).sum() / np.square(b).sum()
    assert none.asymmetry == pytest.approx(expected, rel=1e-12)
    turned = modes_of_covariances(sigma_xx=np.eye(6), sigma_yx=antisymmetric)
    assert turned.asymmetry == pytest.approx(1)
    assert modes_of_covariances(sigma_xx=np.eye(6), sigma_yx=np.zeros((6, 6))).asymmetry == 0


def test_shrinkage() -> None:
    """Towards a multiple of the identity of the same trace; rho of directions that hardly vary falls."""
    sigma_xx, sigma_yx = np.diag([2.0, 1e-6]), np.diag([1.0, 9e-7])
    plain = modes_of_covariances(sigma_xx=sigma_xx, sigma_yx=sigma_yx)
    assert np.allclose(plain.regression, [0.9, 0.5])
    shrunk = modes_of_covariances(sigma_xx=sigma_xx, sigma_yx=sigma_yx, shrinkage=0.1)
    assert np.allclose(shrunk.variance, [1.9, 0.1], atol=1e-5)
    assert np.allclose(shrunk.regression, [1 / 1.9, 9e-7 / 0.1], rtol=1e-5)
    full = modes_of_covariances(sigma_xx=sigma_xx, sigma_yx=sigma_yx, shrinkage=1)
    assert np.allclose(full.variance, (2 + 1e-6) / 2)


def test_fewer_samples_than_dimensions_need_shrinkage() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 4, 8))
    with pytest.raises(ValueError, match="sigma_xx is singular at shrinkage 0: raise shrinkage"):
        modes(x, y, shrinkage=0)
    assert np.isfinite(modes(x, y, shrinkage=0.1).regression).all()
    with pytest.raises(ValueError, match="singular"):
        modes(np.ones((4, 2)), np.ones((4, 2)))


def test_energy_of_a_known_encoder() -> None:
    """Features made as rotation . diag(wbar) . x, with an offset: energies are wbar, on rotated inputs too."""
    x, y = diagonal_pair()
    wbar, q = np.array([0.1, 2.0, 0.5, 0.0, 1.0]), rotation(5)
    features = x * wbar @ rotation(7, seed=2)[:5] + 4.0
    for inputs, targets in ((x, y), (x @ q.T, y @ q.T)):
        found = modes(inputs, targets, shrinkage=0)
        for along in ("patterns", "directions"):
            energy = mode_energy(features, inputs, found, ridge=0, along=along)  # type: ignore[arg-type]
            assert np.allclose(energy, by_rho(wbar), atol=1e-12)


def test_energy_along_patterns_does_not_leak() -> None:
    """An encoder of scores c_i v_i^T x answers pattern i in proportion to c_i; a direction, also to other modes."""
    sigma_xx, b = general_covariances()
    x = white(300, 6) @ np.linalg.cholesky(sigma_xx).T
    found = modes_of_covariances(sigma_xx=sigma_xx, sigma_yx=b + b.T)
    c = np.array([1.0, 0.5, 0.1, 0.01, 0.0, 0.2])
    features = x @ found.directions * c
    overlap = abs((found.directions * found.patterns).sum(0))
    assert np.allclose(mode_energy(features, x, found, ridge=0), c * overlap, atol=1e-12)
    assert mode_energy(features, x, found, ridge=0, along="directions")[4] > 0.05


def test_linear_map() -> None:
    x = white(300, 9)
    x, noise = x[:, :5], x[:, 5:]
    weight = np.random.default_rng(3).standard_normal((4, 5))
    exact = linear_map(x @ weight.T + 1, x, ridge=0)
    assert np.allclose(exact.weight, weight)
    assert exact.r2 == pytest.approx(1)
    assert np.allclose(linear_map(x @ weight.T, x, ridge=0.25).weight, weight / 1.25)
    scale = np.sqrt(np.square(weight).sum() / 4)
    half = linear_map(x @ weight.T + scale * noise, x, ridge=0)
    assert np.allclose(half.weight, weight)
    assert half.r2 == pytest.approx(0.5)
    assert np.isnan(linear_map(np.ones((300, 2)), x).r2)


def test_an_action_is_taken_out() -> None:
    """A shift by the action, seen in context and target, would add a mode of its own and asymmetry."""
    x, y = diagonal_pair()
    action = white(400, 12, seed=5)[:, 10:]
    # Only the part of the action that the data do not hold, so that the answer is exact.
    held = np.concatenate([x, y], axis=1)
    action = action - held @ np.linalg.lstsq(held, action, rcond=None)[0]
    to_x, to_y = np.random.default_rng(6).standard_normal((2, 2, 5))
    seen_x, seen_y = x + action @ to_x, y + action @ to_y
    assert modes(seen_x, seen_y, shrinkage=0).asymmetry > 0.05
    found = modes(residualised(seen_x, action), residualised(seen_y, action), shrinkage=0)
    assert np.allclose(found.regression, by_rho(RHO))
    assert np.allclose(found.covariance, by_rho(RATES))


X = np.random.default_rng(0).standard_normal((20, 3))
NAN = np.where(np.arange(60).reshape(20, 3) == 7, np.nan, X)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: modes(X, X[:, :2]), r"same shape \[N, D\], got \(20, 3\) and \(20, 2\)"),
    (lambda: modes(X[:1], X[:1]), r"x must have shape \[N, D\] with N >= 2, got \(1, 3\)"),
    (lambda: modes(X[0], X[0]), "x must have shape"),
    (lambda: modes(X, NAN), "y holds NaN or infinite values"),
    (lambda: modes(X, X, shrinkage=-0.1), r"shrinkage must lie in \[0, 1\]"),
    (lambda: modes(X, X, shrinkage=1.1), r"shrinkage must lie in \[0, 1\]"),
    (lambda: modes_of_covariances(sigma_xx=np.eye(3), sigma_yx=np.eye(2)), r"both be \[D, D\]"),
    (lambda: linear_map(X, X[:5]), "got 20 and 5 rows"),
    (lambda: linear_map(X, NAN), "inputs holds NaN"),
    (lambda: linear_map(X, X, ridge=-1), "ridge must not be negative"),
    (lambda: linear_map(X, np.zeros((20, 3)), ridge=0), "raise ridge"),
    (lambda: mode_energy(X, X[:, :2], modes(X, X)), "modes are of 3 dimensions and the inputs of 2"),
    (lambda: residualised(X, X[:4]), "got 20 and 4 rows"),
])  # fmt: skip
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
