"""Full matrices against autograd, against the scalar theory, and outside its assumptions."""

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from worldmodel.theory import learning_order, modes_of_covariances
from worldmodel.theory.deep_linear import critical_time, fixed_point, trajectory, velocity
from worldmodel.theory.matrix_flow import (
    OutsideTheoryWarning,
    Weights,
    alignment,
    balanced_weights,
    flow,
    imbalance,
    random_weights,
    simulate,
)

OBJECTIVES: Any = ("jepa", "mae")
RATES, RHO = np.array([1.0, 0.8, 0.6]), np.array([0.4, 0.7, 1.0])
DIAGONAL = {"sigma_xx": np.diag(RATES / RHO), "sigma_yx": np.diag(RATES)}


def any_data(dim: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    a, b = generator.standard_normal((2, dim, dim))
    return {"sigma_xx": a @ a.T + 0.1 * np.eye(dim), "sigma_yx": b}


def autograd_flow(weights: Weights, *, objective: str, sigma_xx: Any, sigma_yx: Any) -> list[np.ndarray]:
    """Minus the gradient of the loss on the population, target branch detached for JEPA."""
    parameters = [torch.tensor(m, requires_grad=True) for m in (*weights.layers, weights.head)]
    *layers, head = parameters
    encoder = torch.eye(len(sigma_xx), dtype=torch.float64)
    for layer in layers:
        encoder = layer @ encoder
    xx, yx = torch.tensor(sigma_xx), torch.tensor(sigma_yx)
    target = encoder.detach() if objective == "jepa" else torch.eye(len(xx), dtype=torch.float64)
    a = head @ encoder
    # E norm(A x - B y)^2 / 2, without the part that depends on the target alone.
    loss = (a @ xx * a).sum() / 2 - (a * (target @ yx)).sum()
    loss.backward()
    return [-p.grad.numpy() for p in parameters if p.grad is not None]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("start", ["balanced", "random"])
def test_flow_is_minus_the_gradient(objective: Any, depth: int, start: str) -> None:
    data = any_data(4)
    weights = (
        balanced_weights(objective=objective, depth=depth, dim=4, layer_init=0.5)
        if start == "balanced"
        else random_weights(depth=depth, dim=4, layer_init=0.7, seed=3)
    )
    found = flow(weights, objective=objective, **data)
    expected = autograd_flow(weights, objective=objective, **data)
    for ours, theirs in zip((*found.layers, found.head), expected, strict=True):
        assert np.allclose(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_flow_with_layers_of_other_widths(objective: Any) -> None:
    generator, data = np.random.default_rng(0), any_data(3)
    layers = (generator.standard_normal((5, 3)), generator.standard_normal((2, 5)))
    head = generator.standard_normal((2 if objective == "jepa" else 3, 2))
    weights = Weights(layers=layers, head=head)
    found = flow(weights, objective=objective, **data)
    expected = autograd_flow(weights, objective=objective, **data)
    for ours, theirs in zip((*found.layers, found.head), expected, strict=True):
        assert np.allclose(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gradient_at_a_balanced_point_is_the_scalar_velocity(objective: Any, depth: int) -> None:
    """d(Wbar)/dt from autograd, mode by mode."""
    weights = balanced_weights(objective=objective, depth=depth, dim=3, layer_init=0.6)
    changes = autograd_flow(weights, objective=objective, **DIAGONAL)
    change = np.zeros((3, 3))
    for moving in range(depth):
        product = np.eye(3)
        for number, layer in enumerate(weights.layers):
            product = (changes[number] if number == moving else layer) @ product
        change += product
    along = np.diag(weights.encoder.T @ change) / 0.6**depth
    expected = velocity(0.6**depth, objective=objective, depth=depth, covariance=RATES, regression=RHO)
    assert np.allclose(along, expected, rtol=1e-12)


@pytest.mark.parametrize(("objective", "end", "final"), [
    ("jepa", 4e3, [0.16, 0.49, 1.0]), ("mae", 2e2, [0.5429, 0.7884, 1.0])
])  # fmt: skip
def test_matrices_follow_the_closed_form(objective: Any, end: float, final: list[float]) -> None:
    weights = balanced_weights(objective=objective, depth=2, dim=3, layer_init=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = simulate(weights, np.linspace(0, end, 400), objective=objective, **DIAGONAL)
    exact = trajectory(
        run.times[:, None], objective=objective, depth=2, covariance=RATES, regression=RHO, layer_init=0.2
    )
    energy = run.energy(np.eye(3))
    assert np.abs(energy - exact).max() < 5e-8
    assert np.allclose(energy[-1], fixed_point(objective=objective, depth=2, regression=RHO), atol=1e-7)
    assert np.allclose(energy[-1], final, atol=5e-5)


def differences(weights: Weights) -> list[np.ndarray]:
    """W_(l+1)^T W_(l+1) - W_l W_l^T: the matrix form of v^2 - w^2."""
    m = [*weights.layers, weights.head]
    return [b.T @ b - a @ a.T for a, b in pairwise(m)]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("balanced", [True, False])
def test_the_flow_conserves_balance(objective: Any, balanced: bool) -> None:
    start = (
        balanced_weights(objective=objective, depth=2, dim=3, layer_init=0.4)
        if balanced
        else random_weights(depth=2, dim=3, layer_init=0.6, seed=1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutsideTheoryWarning)
        run = simulate(start, [0, 5, 30], objective=objective, **any_data(3, seed=2), rtol=1e-10)
    moved = max(
        np.abs(a - b).max() for a, b in zip(run.weights[0].layers, run.weights[-1].layers, strict=True)
    )
    assert moved > 0.05
    for weights in run.weights:
        for found, first in zip(differences(weights), differences(start), strict=True):
            assert np.allclose(found, first, atol=1e-7)
    if balanced:
        assert imbalance(run.weights[-1]) < 1e-6


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_order_reversal_in_full_matrices(objective: Any, depth: int) -> None:
    """JEPA of depth 2 and 3 learns B, of lower covariance, first; at depth 1, and with MAE, A comes first."""
    rates, rho = np.array([1.0, 0.8]), np.array([0.3, 1.0])
    predicted = critical_time(
        objective=objective, depth=depth, covariance=rates, regression=rho, layer_init=0.12
    )
    weights = balanced_weights(objective=objective, depth=depth, dim=2, layer_init=0.12)
    run = simulate(
        weights,
        np.sort(predicted),
        objective=objective,
        sigma_xx=np.diag(rates / rho),
        sigma_yx=np.diag(rates),
        rtol=1e-10,
    )
    done = run.energy(np.eye(2)) / fixed_point(objective=objective, depth=depth, regression=rho)
    first, second = np.argsort(predicted)
    assert first == (1 if objective == "jepa" and depth >= 2 else 0)
    assert done[0, first] == pytest.approx(0.5, abs=1e-5)
    assert done[1, second] == pytest.approx(0.5, abs=1e-5)
    assert done[0, second] < 0.45


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", [1, 2])
def test_data_that_are_not_diagonal(objective: Any, seed: int) -> None:
    """Small off-diagonals: the generalised eigenproblem finds the modes, whose patterns are learnt when predicted.

    Along the eigenvectors themselves JEPA's mode of lowest rho is drowned by what leaks in from the others.
    """
    depth, w0, rates, rho = 3, 0.1, np.array([1, 0.9, 0.8]), np.array([0.2, 0.4, 1])
    small = 0.02 * np.random.default_rng(seed).standard_normal((2, 3, 3))
    sigma_xx = np.diag(rates / rho) + small[0] + small[0].T
    sigma_yx = np.diag(rates) + small[1] + small[1].T
    found = modes_of_covariances(sigma_xx=sigma_xx, sigma_yx=sigma_yx)
    end = fixed_point(objective=objective, depth=depth, regression=found.regression)
    predicted = critical_time(
        objective=objective, depth=depth, covariance=found.covariance, regression=found.regression,
        layer_init=w0, fraction=(1 + w0**depth / end) / 2,
    )  # fmt: skip
    weights = balanced_weights(objective=objective, depth=depth, dim=3, layer_init=w0)
    times = np.concatenate([[0], np.geomspace(1e-2, 30, 400) * predicted.max()])
    run = simulate(weights, times, objective=objective, sigma_xx=sigma_xx, sigma_yx=sigma_yx)
    energy = run.energy(found.patterns)
    assert np.allclose(energy[-1], end, rtol=2e-3)
    order = learning_order(energy, times)
    assert np.array_equal(np.argsort(order), np.argsort(predicted))
    assert np.array_equal(np.argsort(order), [0, 1, 2] if objective == "jepa" else [2, 1, 0])
    assert np.allclose(order, predicted, rtol=0.01 if objective == "jepa" else 0.08)
    leaky = run.energy(found.directions)[-1] / end
    assert (leaky[2] > 1.5) == (objective == "jepa")


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_random_start_is_outside_the_theory(seed: int) -> None:
    """The failing example: JEPA loses the low-rho mode (both, with seed 0) and says so; MAE learns both."""
    rates, rho = np.array([1.0, 0.8]), np.array([0.3, 1.0])
    weights = random_weights(depth=3, dim=2, layer_init=0.35, seed=seed)
    final = {}
    for objective in OBJECTIVES:
        with pytest.warns(OutsideTheoryWarning, match="outside the deep linear theory") as caught:
            run = simulate(
                weights, [0, 4e4], objective=objective,
                sigma_xx=np.diag(rates / rho), sigma_yx=np.diag(rates),
            )  # fmt: skip
        assert caught[0].filename == __file__
        final[objective] = run.energy(np.eye(2))[-1]
    assert final["jepa"][0] < 4e-4  # the theory's fixed point is 0.027
    assert final["mae"] == pytest.approx(fixed_point(objective="mae", depth=3, regression=rho), rel=0.25)
    lost_both = final["jepa"][1] < 1e-3
    assert lost_both == (seed == 0)
    if not lost_both:
        assert final["jepa"][1] > 1


def test_balanced_weights() -> None:
    for objective in OBJECTIVES:
        weights = balanced_weights(objective=objective, depth=3, dim=4, layer_init=0.3, seed=1)
        assert imbalance(weights) < 1e-14
        assert alignment(weights, objective=objective) == pytest.approx(1, abs=1e-14)
        assert np.allclose(np.linalg.svd(weights.encoder)[1], 0.3**3)
        assert not np.allclose(weights.layers[0], weights.layers[1])


def test_balanced_but_not_aligned_is_warned_about() -> None:
    """Balance alone is not enough: a predictor that turns the wrong way is as bad as random weights."""
    weights = balanced_weights(objective="jepa", depth=2, dim=3, layer_init=0.3)
    flipped = Weights(layers=weights.layers, head=-weights.head)
    assert imbalance(flipped) < 1e-14
    assert alignment(flipped, objective="jepa") == pytest.approx(-1)
    with pytest.warns(OutsideTheoryWarning, match="alignment -1"):
        simulate(flipped, [0, 1], objective="jepa", **DIAGONAL)


def test_zero_weights_have_no_alignment() -> None:
    zero = Weights(layers=(np.zeros((3, 3)),), head=np.zeros((3, 3)))
    assert imbalance(zero) == 0
    assert np.isnan(alignment(zero, objective="mae"))
    with pytest.warns(OutsideTheoryWarning, match="alignment nan"):
        simulate(zero, [0, 1], objective="mae", **DIAGONAL)


EYE = np.eye(3)


@pytest.mark.parametrize(("change", "message"), [
    ({"objective": "vae"}, 'objective must be "jepa" or "mae"'),
    ({"sigma_xx": np.eye(3)[:2]}, r"must both be \[D, D\]"),
    ({"sigma_yx": np.eye(2)}, r"must both be \[D, D\]"),
    ({"times": [1.0, 0.5]}, "times must be a rising list"),
    ({"times": [-1.0, 0.5]}, "times must be a rising list"),
    ({"times": []}, "times must be a rising list"),
    ({"weights": Weights(layers=(), head=EYE)}, "at least one layer"),
    ({"weights": Weights(layers=(EYE, np.eye(2)), head=EYE)}, r"layer 2 must be \[\*, 3\]"),
    ({"weights": Weights(layers=(EYE,), head=np.eye(2))}, r"head of jepa must be \[3, 3\], got \(2, 2\)"),
])  # fmt: skip
def test_errors(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "weights": Weights(layers=(EYE,), head=EYE), "times": [0.0, 1.0], "objective": "jepa", **DIAGONAL
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        simulate(**{**arguments, **change})


@pytest.mark.parametrize("change", [{"depth": 0}, {"dim": 0}, {"layer_init": 0.0}, {"objective": "vae"}])
def test_errors_of_balanced_weights(change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"objective": "jepa", "depth": 2, "dim": 3, "layer_init": 0.2}
    with pytest.raises(ValueError, match="must be"):
        balanced_weights(**{**arguments, **change})


def test_an_integrator_that_gives_up_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failed:
        success, t, message = False, np.array([0.5]), "too much work"

    monkeypatch.setattr("worldmodel.theory.matrix_flow.solve_ivp", lambda *_, **__: Failed)
    weights = balanced_weights(objective="mae", depth=1, dim=3, layer_init=0.2)
    with pytest.raises(RuntimeError, match=r"stopped at t = 0\.5: too much work"):
        simulate(weights, [0, 1], objective="mae", **DIAGONAL)
