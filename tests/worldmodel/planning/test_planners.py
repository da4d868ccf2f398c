"""Every planner: optimum, bounds, books, randomness, batches."""

import time
from typing import Any

import numpy as np
import pytest
import torch

from tests.worldmodel.planning.toys import Linear, LinearQuadratic, Recording, box, free, state_of
from worldmodel.batches import LatentState
from worldmodel.planning import (
    CEM,
    ICEM,
    MPPI,
    ActionBounds,
    Budget,
    CostFunction,
    GoalCost,
    GradientPlanner,
    Plan,
    Planner,
    predictive_sampling,
)


def planners(bounds: ActionBounds, *, horizon: int, **options: Any) -> dict[str, Planner]:
    common = {"bounds": bounds, "horizon": horizon, **options}
    return {
        "cem": CEM(samples=64, elites=8, iterations=4, **common),
        "icem": ICEM(samples=64, elites=8, iterations=4, **common),
        "mppi": MPPI(samples=64, iterations=4, **common),
        "predictive sampling": predictive_sampling(samples=64, **common),
        "adam": GradientPlanner(restarts=4, iterations=4, **common),
        "sgd": GradientPlanner(restarts=4, iterations=4, optimiser="sgd", **common),
    }


NAMES = [*planners(box(2), horizon=3)]
LQ = LinearQuadratic.make()


def solve(planner: Planner, lq: LinearQuadratic = LQ, **options: Any) -> Plan:
    cost = GoalCost(goal=lq.goal, action_weight=lq.weight)
    seeds = options.pop("seeds", range(len(lq.start)))
    state = state_of(lq.start, lq.model.b.shape[0])
    return planner.plan(
        options.pop("model", lq.model), state, cost, seeds=seeds, step=options.pop("step", 0), **options
    )


@pytest.mark.parametrize(
    ("planner", "excess", "error"),
    [
        (CEM(bounds=free(2), horizon=4, samples=300, elites=30, iterations=30), 1e-4, 0.02),
        (CEM(bounds=free(2), horizon=4, samples=300, elites=30, iterations=30, execute_mean=True), 1e-4, 0.02),
        (ICEM(bounds=free(2), horizon=4, samples=300, elites=20, iterations=30, noise_beta=0.5), 1e-3, 0.05),
        (MPPI(bounds=free(2), horizon=4, samples=500, elites=50, iterations=30, adapt_spread=True), 1e-3, 0.05),
        (MPPI(bounds=free(2), horizon=4, samples=2000, iterations=40, temperature=0.05, spread=0.3), 2e-2, 0.2),
        (GradientPlanner(bounds=free(2), horizon=4, restarts=2, iterations=120, lr=0.1), 1e-4, 0.02),
        (GradientPlanner(bounds=free(2), horizon=4, restarts=2, iterations=100, lr=0.3, optimiser="sgd"), 1e-4, 0.02),
    ],
)  # fmt: skip
def test_the_optimum_of_a_linear_quadratic_problem_is_reached(
    planner: Planner, excess: float, error: float
) -> None:
    """Relative excess of the cost, and the largest error of an action (the optimal ones reach about 1)."""
    actions, cost = LQ.optimum()
    plan = solve(planner)
    state = state_of(LQ.start, 2)
    reached = GoalCost(goal=LQ.goal, action_weight=LQ.weight)(
        LQ.model.rollout(state, plan.actions).unsqueeze(1), plan.actions.unsqueeze(1)
    )[:, 0]
    assert (reached.double() >= cost * (1 - 1e-5)).all()
    assert (reached.double() <= cost * (1 + excess)).all()
    assert (plan.actions - actions).abs().max() < error


def test_a_problem_whose_optimum_lies_on_the_bound_is_solved_there() -> None:
    model = Linear(torch.eye(2), torch.eye(2))
    state, goal = state_of(torch.zeros(1, 2), 2), torch.tensor([[10.0, 0.0]])
    common: dict[str, Any] = {"bounds": box(2, size=1.0, max_norm=0.5), "horizon": 2}
    for planner in (
        CEM(iterations=20, **common),
        # Without an adapted spread the weighted mean of candidates on the rim stays inside it.
        MPPI(iterations=20, elites=30, adapt_spread=True, **common),
        GradientPlanner(iterations=60, **common),
    ):
        plan = planner.plan(model, state, GoalCost(goal=goal), seeds=[0], step=0)
        assert plan.actions[0, :, 0].min() > 0.495, planner


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "bounds", [box(2, size=0.3), box(1, size=0.4, block=2), box(2, size=5.0, max_norm=0.2)]
)
def test_no_action_leaves_the_bounds(name: str, bounds: ActionBounds) -> None:
    model = Recording(LQ.model)
    warm = Plan.proposal(torch.full((2, 3, 2), 7.0))
    plan = solve(planners(bounds, horizon=3)[name], model=model, warm=warm)
    for actions in (*model.futures, plan.actions, plan.mean):
        each = actions.unflatten(-1, (bounds.block, -1))
        assert (each.abs() <= bounds.high + 1e-6).all()
        if bounds.max_norm is not None:
            assert (each.norm(dim=-1) <= bounds.max_norm + 1e-6).all()
    assert plan.accounting is not None
    assert 0 < plan.accounting.clipped_share < 1


def test_clipping_is_counted_at_every_step_of_a_descent() -> None:
    def cost(latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return -actions.sum((-1, -2))

    # From zero by 0.1 a step (lr * spread^2) towards a bound of 0.35: the last two of six points are on it.
    planner = GradientPlanner(
        bounds=box(2, size=0.35), horizon=3, restarts=1, iterations=6, optimiser="sgd", lr=10, spread=0.1
    )
    plan = planner.plan(LQ.model, state_of(LQ.start, 2), cost, seeds=range(len(LQ.start)), step=0)
    assert plan.accounting is not None
    assert plan.accounting.clipped_share == pytest.approx(2 / 6)
    assert plan.cost.tolist() == pytest.approx([-0.35 * 6] * len(LQ.start))


@pytest.mark.parametrize("name", NAMES)
def test_the_books_agree_with_a_model_that_counts(name: str) -> None:
    model = Recording(LQ.model)
    plan = solve(planners(free(2), horizon=3)[name], model=model)
    assert plan.accounting is not None
    assert plan.accounting.predictor_steps * 2 == model.steps  # two environments
    assert plan.accounting.stopped_by == "iterations"
    trace = plan.accounting.cost_trace
    assert trace.shape == (plan.accounting.iterations, 2)
    assert (trace.diff(dim=0) <= 0).all()
    assert torch.equal(trace[-1], plan.cost)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", [3, 50, 200, 500])
def test_a_budget_of_predictor_steps_is_kept(name: str, limit: int) -> None:
    model = Recording(LQ.model)
    planner = planners(free(2), horizon=3, budget=Budget(predictor_steps=limit))[name]
    plan = solve(planner, model=model)
    assert model.steps <= limit * 2
    assert plan.accounting is not None
    assert plan.accounting.predictor_steps * 2 == model.steps
    whole = solve(planners(free(2), horizon=3)[name]).accounting
    assert whole is not None
    assert (plan.accounting.stopped_by == "predictor_steps") == (whole.predictor_steps > limit)


@pytest.mark.parametrize("name", ["cem", "adam"])
def test_a_budget_of_seconds_ends_the_search(name: str) -> None:
    class Slow(Linear):
        def rollout(self, state: LatentState, future: torch.Tensor) -> torch.Tensor:
            time.sleep(0.02)
            return super().rollout(state, future)

    model = Slow(LQ.model.a, LQ.model.b)
    common: dict[str, Any] = {
        "bounds": free(2),
        "horizon": 3,
        "iterations": 1000,
        "budget": Budget(seconds=0.2),
    }
    planner: Planner = CEM(**common) if name == "cem" else GradientPlanner(**common)
    plan = solve(planner, model=model)
    assert plan.accounting is not None
    assert plan.accounting.stopped_by == "seconds"
    assert 1 <= plan.accounting.iterations <= 10
    assert plan.cost.isfinite().all()


def test_one_iteration_is_predictive_sampling() -> None:
    sampling = solve(predictive_sampling(bounds=box(2), horizon=3, samples=64))
    budget = Budget(predictor_steps=64 * 3)
    for cem in (
        CEM(bounds=box(2), horizon=3, samples=64, elites=8, iterations=1),
        CEM(bounds=box(2), horizon=3, samples=64, elites=8, iterations=9, budget=budget),
    ):
        assert torch.equal(solve(cem).actions, sampling.actions)


@pytest.mark.parametrize("name", NAMES)
def test_the_best_candidate_is_what_a_recording_model_saw(name: str) -> None:
    """The plan's cost is the lowest of all imagined candidates, and its actions have that cost."""
    model = Recording(LQ.model)
    plan = solve(planners(free(2), horizon=3)[name], model=model)
    cost = GoalCost(goal=LQ.goal, action_weight=LQ.weight)
    lowest = torch.full((2,), torch.inf)
    for future in model.futures:
        candidates = future.unflatten(0, (2, -1))
        state = state_of(LQ.start, 2).repeat(candidates.shape[1])
        costs = cost(LQ.model.rollout(state, future).unflatten(0, (2, -1)), candidates)
        lowest = torch.minimum(lowest, costs.amin(1))
    assert torch.allclose(plan.cost, lowest, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_is_a_function_of_seed_and_step_whatever_runs_beside(name: str) -> None:
    lq = LinearQuadratic.make(batch=5, dtype=torch.float64)
    planner = planners(box(2, max_norm=0.7), horizon=4)[name]
    together = solve(planner, lq, seeds=[3, 1, 4, 1, 5], step=2)
    for i, seed in enumerate([3, 1, 4, 1, 5]):
        alone = planner.plan(
            lq.model,
            state_of(lq.start[i : i + 1], 2),
            GoalCost(goal=lq.goal[i : i + 1], action_weight=lq.weight),
            seeds=[seed],
            step=2,
        )
        for field in ("actions", "mean", "spread", "cost"):
            # Exact but for the last bits of a matrix product, which depend on its number of rows.
            a, b = getattr(alone, field)[0], getattr(together, field)[i]
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
    assert torch.equal(solve(planner, lq, step=2).actions, solve(planner, lq, step=2).actions)
    assert not torch.equal(solve(planner, lq, step=2).actions, solve(planner, lq, step=3).actions)


@pytest.mark.parametrize("name", NAMES)
def test_global_generators_are_untouched(name: str) -> None:
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    solve(planners(box(2), horizon=3)[name])
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numbers, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("chunk", [1, 7, 64, 100])
def test_chunks_change_nothing_but_memory(chunk: int) -> None:
    whole = CEM(bounds=box(2), horizon=3, samples=64, elites=8, iterations=3)
    parts = CEM(bounds=box(2), horizon=3, samples=64, elites=8, iterations=3, chunk=chunk)
    model = Recording(LQ.model)
    a, b = solve(whole), solve(parts, model=model)
    assert torch.allclose(a.actions, b.actions, rtol=1e-4, atol=1e-5)
    assert max(len(f) for f in model.futures) <= 2 * chunk
    assert a.accounting is not None
    assert b.accounting is not None
    assert a.accounting.predictor_steps == b.accounting.predictor_steps


def test_plans_can_take_part_in_autograd() -> None:
    """What a search made without gradients may feed a gradient planner, or a loss."""
    warm = solve(planners(box(2), horizon=3)["cem"])
    assert not warm.actions.is_inference()
    plan = solve(planners(box(2), horizon=3)["adam"], warm=warm.shifted(1))
    assert not plan.actions.requires_grad
    assert torch.is_grad_enabled()


def test_a_shift_drops_what_was_executed() -> None:
    plan = solve(ICEM(bounds=box(2), horizon=3, samples=64, elites=8, iterations=2))
    shifted = plan.shifted(2)
    assert torch.equal(shifted.mean[:, 0], plan.mean[:, 2])
    assert not shifted.mean[:, 1:].any()
    assert shifted.elites is not None
    assert plan.elites is not None
    assert torch.equal(shifted.elites[:, :, 0], plan.elites[:, :, 2])
    assert not plan.shifted(5).actions.any()
    with pytest.raises(ValueError, match="forwards"):
        plan.shifted(-1)


def test_a_warm_start_is_the_first_candidate() -> None:
    good = solve(CEM(bounds=free(2), horizon=4, iterations=20)).actions
    model = Recording(LQ.model)
    warm = Plan.proposal(good)
    plan = solve(predictive_sampling(bounds=free(2), horizon=4, samples=16), model=model, warm=warm)
    assert torch.equal(model.futures[0].unflatten(0, (2, -1))[:, 0], good)
    assert torch.allclose(plan.actions, good)


@pytest.mark.parametrize("name", NAMES)
def test_candidates_of_infinite_cost_are_passed_over(name: str) -> None:
    """A model that diverges for some actions does not spoil the others."""

    def spoiled(latents: torch.Tensor) -> torch.Tensor:
        cost = latents.square().mean(-1).sum(-1)
        return torch.where(latents[..., 0, 0] > 0.1, torch.nan, cost)

    model = Linear(torch.eye(2), torch.eye(2))
    plan = planners(box(2), horizon=3)[name].plan(
        model, state_of(torch.zeros(2, 2), 2), CostFunction(spoiled), seeds=[0, 1], step=0
    )
    assert plan.cost.isfinite().all()
    assert plan.actions.isfinite().all()
    assert plan.mean.isfinite().all()


@pytest.mark.parametrize("name", ["cem", "adam"])
def test_what_cannot_be_planned_is_named(name: str) -> None:
    planner = planners(box(2), horizon=3)[name]
    state, cost = state_of(LQ.start, 2), GoalCost(goal=LQ.goal)
    with pytest.raises(ValueError, match="seeds"):
        planner.plan(LQ.model, state, cost, seeds=[0], step=0)
    with pytest.raises(ValueError, match="warm start"):
        solve(planner, warm=Plan.proposal(torch.zeros(2, 4, 2)))
    with pytest.raises(ValueError, match="width"):
        planner.plan(LQ.model, state_of(LQ.start, 3), cost, seeds=[0, 1], step=0)
    with pytest.raises(ValueError, match="finite cost"):
        planner.plan(
            LQ.model, state, CostFunction(lambda z: z.sum((-2, -1)) * torch.nan), seeds=[0, 1], step=0
        )
    with pytest.raises(ValueError, match=r"\[B, K\]"):
        planner.plan(LQ.model, state, lambda latents, actions: latents.sum(-1), seeds=[0, 1], step=0)
    training = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="eval"):
        planner.plan(training, state, cost, seeds=[0, 1], step=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (CEM, {"horizon": 0}, "horizon"),
        (CEM, {"chunk": -1}, "chunk"),
        (CEM, {"elites": 400}, "elites"),
        (CEM, {"momentum": 1.5}, "momentum"),
        (CEM, {"min_spread": -1.0}, "min_spread"),
        (ICEM, {"keep": 2.0}, "keep"),
        (ICEM, {"decay": 0.5}, "decay"),
        (MPPI, {"temperature": 0.0}, "temperature"),
        (MPPI, {"elites": 0}, "elites"),
        (GradientPlanner, {"lr": 0.0}, "lr"),
        (GradientPlanner, {"optimiser": "lbfgs"}, "adam or sgd"),
    ],
)
def test_settings_that_make_no_sense_are_refused(build: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**{"bounds": box(2), "horizon": 3, **options})


def test_budgets_and_spreads_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Budget(predictor_steps=0)
    with pytest.raises(ValueError, match="positive"):
        Budget(seconds=0.0)
    with pytest.raises(ValueError, match="less than the horizon"):
        solve(CEM(bounds=box(2), horizon=4, budget=Budget(predictor_steps=3)))
    with pytest.raises(ValueError, match="spread"):
        solve(CEM(bounds=box(2), horizon=4, spread=(1.0, 0.0)))
    with pytest.raises(ValueError, match="spread"):
        solve(CEM(bounds=box(2), horizon=4, spread=(1.0, 1.0, 1.0)))
