"""The fits of CEM, iCEM and MPPI, Adam's direction, and coloured noise."""

import pytest
import torch

from tests.worldmodel.planning.toys import box
from worldmodel.planning import CEM, ICEM, MPPI, Fit, SamplingPlanner, mppi_weights
from worldmodel.planning.gradient import _Adam
from worldmodel.planning.noise import _mixed, coloured, colouring, draw_normal, generators
from worldmodel.planning.search import cheapest


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Candidates [2, 50, 3, 2], costs [2, 50], and the distribution they came from."""
    g = torch.Generator().manual_seed(0)
    candidates, costs = torch.randn(2, 50, 3, 2, generator=g), torch.rand(2, 50, generator=g)
    return candidates, costs, {"mean": torch.full((2, 3, 2), 0.5), "spread": torch.full((2, 3, 2), 2.0)}


def fitted(planner: SamplingPlanner, drawn) -> Fit:  # type: ignore[no-untyped-def]
    candidates, costs, old = drawn
    return planner.fit(*cheapest(candidates, costs, planner.elite_count), **old)


def test_mppi_weights_are_a_softmax_of_the_cost() -> None:
    costs = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
    weights = mppi_weights(costs, temperature=0.5)
    expected = torch.exp(-costs / 0.5)
    assert torch.allclose(weights, expected / expected.sum(1, keepdim=True))
    for normalise in (False, True):
        plain = mppi_weights(costs, temperature=0.5, normalise=normalise)
        assert torch.allclose(
            plain, mppi_weights(costs + 100.0, temperature=0.5, normalise=normalise), atol=1e-5
        )
    scaled = mppi_weights(costs * 1000, temperature=0.5, normalise=True)
    assert torch.allclose(scaled, mppi_weights(costs, temperature=0.5, normalise=True), atol=1e-5)


def test_infinite_costs_get_no_weight() -> None:
    costs = torch.tensor([[1.0, torch.inf, 2.0]])
    for normalise in (False, True):
        weights = mppi_weights(costs, temperature=1.0, normalise=normalise)
        without = mppi_weights(costs[:, [0, 2]], temperature=1.0, normalise=normalise)
        assert torch.allclose(weights[:, [0, 2]], without)
        assert weights[0, 1] == 0


def test_mppi_at_low_temperature_is_the_best_candidate_and_at_high_the_mean(drawn) -> None:  # type: ignore[no-untyped-def]
    candidates, costs, old = drawn
    cold = fitted(MPPI(bounds=box(2), horizon=3, temperature=1e-6), drawn)
    assert torch.allclose(cold.mean, candidates[torch.arange(2), costs.argmin(1)])
    assert torch.equal(cold.spread, old["spread"])
    hot = fitted(MPPI(bounds=box(2), horizon=3, temperature=1e6, adapt_spread=True), drawn)
    assert torch.allclose(hot.mean, candidates.mean(1), atol=1e-5)
    assert torch.allclose(hot.spread, candidates.std(1, correction=0), atol=1e-5)


def test_mppi_weighs_the_elites_alone(drawn) -> None:  # type: ignore[no-untyped-def]
    candidates, costs, _ = drawn
    few = fitted(MPPI(bounds=box(2), horizon=3, temperature=1e6, elites=5, normalise=False), drawn)
    index = costs.argsort(1)[:, :5]
    expected = torch.stack([c[i].mean(0) for c, i in zip(candidates, index, strict=True)])
    assert torch.allclose(few.mean, expected, atol=1e-5)


def test_cem_fits_mean_and_standard_deviation_of_the_elites(drawn) -> None:  # type: ignore[no-untyped-def]
    candidates, costs, _ = drawn
    index = costs.argsort(1)[:, :7]
    elites = torch.stack([c[i] for c, i in zip(candidates, index, strict=True)])
    fit = fitted(CEM(bounds=box(2), horizon=3, elites=7), drawn)
    assert torch.allclose(fit.mean, elites.mean(1), atol=1e-6)
    assert torch.allclose(
        fit.spread, (elites - elites.mean(1, keepdim=True)).square().mean(1).sqrt(), atol=1e-6
    )
    assert fit.elites is not None
    assert torch.equal(fit.elites, elites)


def test_cem_uses_the_spread_as_a_standard_deviation() -> None:
    """Doubling it doubles the distance of candidates from the mean."""
    seen = []

    class Model:
        def encode(self, observations: torch.Tensor) -> torch.Tensor:
            return observations

        def rollout(self, state: object, future: torch.Tensor) -> torch.Tensor:
            seen.append(future)
            return future

    from tests.worldmodel.planning.toys import free, state_of

    for spread in (1.0, 2.0, (3.0, 0.5)):
        planner = CEM(bounds=free(2), horizon=3, samples=4000, iterations=1, spread=spread)
        planner.plan(Model(), state_of(torch.zeros(1, 2), 2), lambda z, a: z.sum((-2, -1)), seeds=[0], step=0)
    assert torch.allclose(seen[1], 2 * seen[0])
    assert torch.allclose(seen[0].std((0, 1)), torch.ones(2), atol=0.02)
    assert torch.allclose(seen[2].std((0, 1)), torch.tensor([3.0, 0.5]), rtol=0.02)


def test_momentum_0_forgets_and_1_stays(drawn) -> None:  # type: ignore[no-untyped-def]
    old = drawn[2]
    plain = fitted(CEM(bounds=box(2), horizon=3, elites=7), drawn)
    stays = fitted(CEM(bounds=box(2), horizon=3, elites=7, momentum=1.0), drawn)
    assert torch.equal(stays.mean, old["mean"])
    assert torch.equal(stays.spread, old["spread"])
    part = fitted(CEM(bounds=box(2), horizon=3, elites=7, momentum=0.25), drawn)
    assert torch.allclose(part.mean, 0.25 * old["mean"] + 0.75 * plain.mean)
    assert torch.allclose(part.spread, 0.25 * old["spread"] + 0.75 * plain.spread)


def test_one_elite_has_the_smallest_spread_allowed(drawn) -> None:  # type: ignore[no-untyped-def]
    fit = fitted(CEM(bounds=box(2), horizon=3, elites=1, min_spread=0.1), drawn)
    assert torch.equal(fit.spread, torch.full_like(fit.spread, 0.1))


def test_icem_without_its_additions_is_cem() -> None:
    from tests.worldmodel.planning.test_planners import solve

    options = {"bounds": box(2), "horizon": 3, "samples": 40, "elites": 6, "iterations": 4}
    plain = ICEM(**options, noise_beta=0.0, momentum=0.0, keep=0.0, decay=1.0)  # type: ignore[arg-type]
    assert torch.equal(solve(plain).actions, solve(CEM(**options)).actions)  # type: ignore[arg-type]


def test_icem_shrinks_its_population_and_judges_elites_again() -> None:
    from tests.worldmodel.planning.test_planners import LQ, solve
    from tests.worldmodel.planning.toys import Recording

    model = Recording(LQ.model)
    planner = ICEM(bounds=box(2), horizon=3, samples=100, elites=10, iterations=5, decay=2.0, keep=0.3)
    plan = solve(planner, model=model)
    assert [len(f) // 2 for f in model.futures] == [100, 50 + 3, 25 + 3, 20 + 3, 20 + 3]
    later = Recording(LQ.model)
    solve(planner, model=later, warm=plan.shifted(1), step=1)
    assert len(later.futures[0]) // 2 == 100 + 3
    assert plan.elites is not None
    assert torch.equal(later.futures[0].unflatten(0, (2, -1))[:, 100:, :2], plan.elites[:, :3, 1:])


def test_adam_divides_the_mean_slope_by_its_root_mean_square() -> None:
    """Against the sums that the recursions stand for: weights beta^(t - i), normalised to 1."""
    slopes = torch.tensor([[1.0, -2.0, 0.1 * i] for i in range(1, 6)])
    adam = _Adam(slopes[0])
    for t in range(len(slopes)):
        direction = adam.direction(slopes[t])
        age = t - torch.arange(t + 1.0)
        first, second = (beta**age / (beta**age).sum() for beta in (0.9, 0.999))
        expected = first @ slopes[: t + 1] / ((second @ slopes[: t + 1].square()).sqrt() + 1e-8)
        assert torch.allclose(direction, expected, rtol=1e-4)


def test_seeds_and_steps_that_are_neighbours_give_unrelated_noise() -> None:
    rows = [(seed, step) for seed in range(30) for step in range(30)]
    sources = [generators([seed], step, torch.device("cpu"))[0] for seed, step in rows]
    noise = draw_normal(torch.empty(len(rows), 64), sources)
    correlation = torch.corrcoef(noise) - torch.eye(len(rows))
    assert correlation.abs().max() < 0.75  # of 400,000 pairs; equal streams have 1
    assert noise.mean().abs() < 0.02
    assert noise.std() == pytest.approx(1.0, abs=0.02)
    known = _mixed(0)
    assert known == 0xE220A8397B1DCDAF  # the generator's published first output


@pytest.mark.parametrize("steps", [1, 4, 5, 16])
def test_noise_of_exponent_0_is_white(steps: int) -> None:
    matrix = colouring(steps, 0.0)
    assert torch.allclose(matrix @ matrix.T, torch.eye(steps, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_coloured_noise_has_unit_variance_and_the_asked_for_spectrum(beta: float) -> None:
    """Power at frequency f is f^-beta times that at 1, from the covariance itself: no draw, no tolerance of one."""
    steps = 16
    matrix = colouring(steps, beta)
    covariance = matrix @ matrix.T
    assert torch.allclose(covariance.diag(), torch.ones(steps, dtype=torch.float64))
    fourier = torch.fft.fft(torch.eye(steps, dtype=torch.complex128))
    power = (fourier @ covariance.to(torch.complex128) @ fourier.conj().T).diag().real
    for f in range(1, steps // 2):
        assert power[f] / power[1] == pytest.approx(f**-beta, rel=1e-9)


def test_noise_is_coloured_along_the_steps_of_the_environment_not_of_the_blocks() -> None:
    white = draw_normal(torch.empty(1, 4000, 3, 4), generators([0], 0, torch.device("cpu")))
    noise = coloured(white, block=2, beta=2.0).view(4000, 6, 2)  # 3 blocks of 2 actions of 2 numbers
    correlation = torch.corrcoef(torch.cat([noise[..., 0], noise[..., 1]], dim=1).T)
    expected = (colouring(6, 2.0) @ colouring(6, 2.0).T).float()
    assert torch.allclose(correlation[:6, :6], expected, atol=0.05)
    assert torch.allclose(correlation[:6, 6:], torch.zeros(6, 6), atol=0.05)
