"""Action bounds and costs."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worldmodel.planning.toys import box, free
from worldmodel.planning import ActionBounds, CostFunction, CostSum, GoalCost, SubGoalCost
from worldmodel.planning.bounds import changed_share
from worldmodel.planning.costs import cost_rows

Z = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
U = torch.randn(2, 5, 4, 2, generator=torch.Generator().manual_seed(1))
GOAL = torch.randn(2, 3, generator=torch.Generator().manual_seed(2))


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 3),
    st.sampled_from([None, 0.1, 1.0, 3.0]),
    st.sampled_from([0.5, 2.0, torch.inf]),
)
def test_a_projection_lies_in_the_bounds_and_stays(
    seed: int, block: int, max_norm: float | None, size: float
) -> None:
    bounds = box(2, size=size, max_norm=max_norm, block=block)
    actions = torch.randn(7, 2 * block, generator=torch.Generator().manual_seed(seed)) * 3
    once = bounds.project(actions)
    each = once.unflatten(-1, (block, 2))
    assert (each.abs() <= size).all()
    assert max_norm is None or (each.norm(dim=-1) <= max_norm).all()
    assert torch.equal(bounds.project(once), once)
    assert changed_share(actions, once) == pytest.approx(float((actions != once).float().mean()))
    assert changed_share(once, bounds.project(once)) == 0


def test_directions_survive_a_bound_of_the_norm() -> None:
    bounds = ActionBounds(low=torch.full((2,), -9.0), high=torch.full((2,), 9.0), max_norm=1.0)
    assert torch.allclose(bounds.project(torch.tensor([3.0, 4.0])), torch.tensor([0.6, 0.8]), atol=1e-5)


def test_bounds_of_a_specification() -> None:
    spec = SimpleNamespace(
        low=np.array([-1, 0], np.float32), high=np.array([1, 2], np.float32), max_norm=None
    )
    bounds = ActionBounds.from_spec(spec, block=2)
    assert bounds.dim == 4
    assert torch.equal(
        bounds.project(torch.tensor([5.0, -5.0, 0.5, 5.0])), torch.tensor([1.0, 0.0, 0.5, 2.0])
    )
    assert torch.equal(bounds.default_spread(), torch.tensor([1.0, 1.0]))


def test_the_default_spread_is_half_the_box_or_the_norm_or_1() -> None:
    assert torch.equal(box(2, size=3.0).default_spread(), torch.full((2,), 3.0))
    assert torch.equal(box(2, size=3.0, max_norm=0.5).default_spread(), torch.full((2,), 0.5))
    assert torch.equal(free(2).default_spread(), torch.ones(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": [1.0], "high": [0.0]}, "low <= high"),
        ({"low": [float("nan")], "high": [0.0]}, "low <= high"),
        ({"low": [0.0], "high": [1.0, 2.0]}, "low <= high"),
        ({"low": [-1.0], "high": [1.0], "max_norm": 0.0}, "max_norm"),
        ({"low": [0.5], "high": [1.0], "max_norm": 1.0}, "hold zero"),
        ({"low": [0.5], "high": [1.0], "block": 0}, "block"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionBounds(**options)


def test_actions_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="block 2 x 2"):
        box(2, block=2).project(torch.zeros(3, 2))


@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
def test_goal_costs_are_the_distance_reduced(distance: str) -> None:
    goal = GOAL[:, None, None].expand_as(Z)
    each = {
        "l2": (Z - goal).square().mean(-1),
        "l1": (Z - goal).abs().mean(-1),
        "cosine": 1 - torch.nn.functional.cosine_similarity(Z, goal, dim=-1),
    }[distance]
    for reduce, expected in {"sum": each.sum(-1), "last": each[..., -1], "min": each.amin(-1)}.items():
        cost = GoalCost(goal=GOAL, distance=distance, reduce=reduce, action_weight=0.5)  # type: ignore[arg-type]
        assert torch.allclose(cost(Z, U), expected + 0.5 * U.square().mean(-1).sum(-1), atol=1e-6)


def test_a_goal_state_is_compared_with_what_a_readout_reads() -> None:
    readout = torch.nn.Linear(3, 2)
    state = torch.randn(2, 2, generator=torch.Generator().manual_seed(3))
    cost = GoalCost(goal=state, readout=readout, reduce="last")(Z, U)
    assert torch.allclose(cost, (readout(Z[:, :, -1]) - state[:, None]).square().mean(-1))


def test_a_goal_image_is_encoded() -> None:
    class Model:
        def encode(self, observations: torch.Tensor) -> torch.Tensor:
            return observations.flatten(2) * 2

        def rollout(self, state: object, future: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    images = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(4))
    cost = GoalCost.from_observations(Model(), images, reduce="last")
    assert torch.equal(cost.goal, images.flatten(1) * 2)
    assert torch.allclose(cost(Z, U), GoalCost(goal=images.flatten(1) * 2, reduce="last")(Z, U))


def test_spatial_latents_are_compared_number_by_number() -> None:
    maps, goal = Z.unflatten(-1, (3, 1)), GOAL.unflatten(-1, (3, 1))
    assert torch.allclose(GoalCost(goal=goal)(maps, U), GoalCost(goal=GOAL)(Z, U))


def test_sub_goals_cost_the_cheapest_assignment_of_steps_in_order() -> None:
    goals = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(5))
    cost = SubGoalCost(goals=goals)(Z, U)
    ways = [w for w in itertools.product(range(3), repeat=4) if set(w) == {0, 1, 2} and list(w) == sorted(w)]
    assert len(ways) == 3
    for b in range(2):
        for k in range(5):
            d = (Z[b, k, :, None] - goals[b, None]).square().mean(-1)  # [H, G]
            every = [sum(d[t, g] for t, g in enumerate(way)) for way in ways]
            assert torch.allclose(cost[b, k], torch.stack(every).min(), atol=1e-6)
    with pytest.raises(ValueError, match="horizon"):
        SubGoalCost(goals=goals)(Z[:, :, :2], U[:, :, :2])


def test_sub_goals_that_were_passed_cost_nothing_and_the_last_one_stays() -> None:
    goals = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(5))
    at = torch.stack([goals[0, 0], goals[1, 0] + 1])  # the first environment is at its first goal
    one = SubGoalCost(goals=goals).advance(at, tolerance=1e-3)
    assert one.reached is not None
    assert one.reached.tolist() == [1, 0]
    assert torch.allclose(one(Z, U)[0], SubGoalCost(goals=goals[:, 1:])(Z, U)[0])
    assert torch.allclose(one(Z, U)[1], SubGoalCost(goals=goals)(Z, U)[1])
    last = one.advance(goals[:, 1], tolerance=1e-3)
    assert last.reached is not None
    assert last.reached.tolist() == [1, 0]


def test_costs_add_up_and_functions_are_costs() -> None:
    speed = CostFunction(lambda z: z.diff(dim=2).square().sum((2, 3)))
    total = CostSum([(1.0, GoalCost(goal=GOAL)), (0.1, speed)])
    assert torch.allclose(total(Z, U), GoalCost(goal=GOAL)(Z, U) + 0.1 * speed(Z, U))
    per_step = CostFunction(lambda z: z.square().sum(-1))
    assert torch.allclose(per_step(Z, U), Z.square().sum((2, 3)))


def test_a_cost_can_go_on_with_some_environments() -> None:
    index = torch.tensor([1])
    costs = (
        GoalCost(goal=GOAL),
        SubGoalCost(goals=Z[:, 0], reached=torch.tensor([0, 1])),
        CostSum([(2.0, GoalCost(goal=GOAL)), (1.0, CostFunction(lambda z: z.sum((2, 3))))]),
    )
    for cost in costs:
        assert torch.allclose(cost_rows(cost, index)(Z[1:], U[1:]), cost(Z, U)[1:])
    with pytest.raises(TypeError, match="rows"):
        cost_rows(lambda z, a: z, index)


def test_costs_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="distance"):
        GoalCost(goal=GOAL, distance="l3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduction"):
        GoalCost(goal=GOAL, reduce="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        GoalCost(goal=GOAL * torch.nan)
    with pytest.raises(ValueError, match="go with latents"):
        GoalCost(goal=GOAL[:1])(Z, U)
    with pytest.raises(ValueError, match="go with latents"):
        GoalCost(goal=GOAL[:, :2])(Z, U)
    with pytest.raises(ValueError, match="sub-goals"):
        SubGoalCost(goals=GOAL)
    with pytest.raises(ValueError, match="distance"):
        SubGoalCost(goals=Z[:, 0], distance="l3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one"):
        CostSum([])
    with pytest.raises(ValueError, match="must be"):
        CostFunction(lambda z: z.sum())(Z, U)
