"""Agents, their proposals, diagnostics, and planning with real models."""

import pytest
import torch

from tests.worldmodel.planning.toys import Linear, Recording, box, state_of
from worldmodel.batches import EpisodeBatch, LatentState
from worldmodel.nn.mlp import MLPEncoder
from worldmodel.planning import (
    CEM,
    ICEM,
    ActionBounds,
    CostFunction,
    GoalCost,
    GradientPlanner,
    InverseDynamics,
    InverseDynamicsAgent,
    InverseDynamicsTask,
    Plan,
    PlanAccounting,
    PlanningAgent,
    SubGoalCost,
    cost_correlation,
    decision_summary,
    error_by_horizon,
)
from worldmodel.protocols import Task, WorldModel
from worldmodel.seq_jepa import SeqWorldModel

POINT = Linear(torch.eye(2), torch.eye(2))  # an action is a displacement
GOALS = torch.tensor([[1.0, 1.0], [-0.5, 2.0]])


def agent(**options: object) -> PlanningAgent:
    planner = CEM(bounds=box(2, max_norm=0.5), horizon=4, samples=100, elites=10, iterations=6)
    settings: dict = {"model": POINT, "planner": planner, "action_dim": 2} | options
    return PlanningAgent(**settings)


@pytest.mark.parametrize(
    "options", [{}, {"execute": 3}, {"warm_start": False}, {"window": 3}, {"execute": 4}]
)
def test_an_agent_reaches_its_goals(options: dict) -> None:
    driver = agent(**options)
    driver.reset(GoalCost(goal=GOALS), seeds=[0, 1])
    at = torch.zeros(2, 2)
    for _ in range(9):
        at = at + driver.act(at)
    assert (at - GOALS).norm(dim=1).max() < 0.1
    execute = options.get("execute", 1)
    assert len(driver.accounting) == -(-9 // execute)
    assert driver.state is not None
    assert driver.state.latent is not None
    assert driver.state.latent.latents.shape[1] == options.get("window", 1)


def test_an_agent_starts_with_what_is_left_of_its_plan() -> None:
    model = Recording(POINT)
    driver = agent(model=model)
    driver.reset(GoalCost(goal=GOALS), seeds=[0, 1])
    driver.act(torch.zeros(2, 2))
    assert driver.state is not None
    assert driver.state.plan is not None
    left, calls = driver.state.plan.shifted(1).mean, len(model.futures)
    driver.act(torch.zeros(2, 2))
    assert torch.equal(model.futures[calls].unflatten(0, (2, -1))[:, 0], left)


def test_an_agent_goes_on_with_some_environments_as_if_alone() -> None:
    both, alone = agent(window=2), agent(window=2)
    both.reset(GoalCost(goal=GOALS), seeds=[0, 1])
    alone.reset(GoalCost(goal=GOALS[1:]), seeds=[1])
    at = torch.zeros(2, 2)
    assert torch.allclose(both.act(at)[1:], alone.act(at[1:]), atol=1e-5)
    both.keep(torch.tensor([1]))
    for _ in range(2):
        assert torch.allclose(both.act(at[1:]), alone.act(at[1:]), atol=1e-4)


def test_sub_goals_are_passed_one_after_another() -> None:
    corner = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    driver = agent(tolerance=0.02)
    driver.reset(SubGoalCost(goals=corner), seeds=[0])
    at, path = torch.zeros(1, 2), []
    for _ in range(10):
        at = at + driver.act(at)
        path.append(at)
    gaps = (torch.cat(path) - corner[0, 0]).norm(dim=1)
    assert gaps.min() < 0.2
    assert (at - corner[:, 1]).norm() < 0.2
    assert driver.state is not None
    assert isinstance(driver.state.cost, SubGoalCost)
    assert driver.state.cost.reached is not None
    assert driver.state.cost.reached.tolist() == [1]


def test_agents_name_what_is_missing() -> None:
    driver = agent()
    with pytest.raises(RuntimeError, match="reset"):
        driver.act(torch.zeros(2, 2))
    with pytest.raises(RuntimeError, match="reset"):
        driver.keep(torch.tensor([0]))
    driver.reset(GoalCost(goal=GOALS), seeds=[0, 1])
    with pytest.raises(ValueError, match="2 seeds"):
        driver.act(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="NaN"):
        driver.act(torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match="execute"):
        agent(execute=5)
    head = InverseDynamics(latent_dim=2, action_dim=2)
    cheap = InverseDynamicsAgent(model=POINT, head=head, bounds=box(2))
    with pytest.raises(RuntimeError, match="reset"):
        cheap.act(torch.zeros(2, 2))
    cheap.reset(GOALS)
    with pytest.raises(ValueError, match="2 goals"):
        cheap.act(torch.zeros(3, 2))


class Rooms:
    """A point in two unit rooms side by side, with a door at 0.4 < y < 0.6; latents are positions."""

    def encode(self, observations: torch.Tensor) -> torch.Tensor:
        return observations

    def rollout(self, state: LatentState, future: torch.Tensor) -> torch.Tensor:
        at, imagined = state.latents[:, -1], []
        for move in future.unbind(1):
            to = (at + move).clamp(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 1.0]))
            share = at[:, 0] / (at[:, 0] - to[:, 0]).where(at[:, 0] != to[:, 0], torch.ones(()))
            height = at[:, 1] + share * (to[:, 1] - at[:, 1])
            blocked = (at[:, 0] * to[:, 0] <= 0) & ((height - 0.5).abs() > 0.1)
            at = torch.where(blocked.unsqueeze(1), at, to)
            imagined.append(at)
        return torch.stack(imagined, dim=1)


def test_with_perfect_dynamics_the_other_room_is_reached() -> None:
    """24 start and goal pairs in different rooms; a straight line is blocked for most of them. At least 22 succeed.

    The bar bounds the error of the planner apart from that of a model. Looking one step ahead is not enough.
    """
    g = torch.Generator().manual_seed(0)
    start, goal = torch.rand(2, 24, 2, generator=g) * torch.tensor([0.9, 1.0]) + torch.tensor([0.05, 0.0])
    start = start * torch.tensor([-1.0, 1.0])
    rooms, solved = Rooms(), {}
    for horizon in (1, 16):
        planner = ICEM(
            bounds=box(2, size=0.2, max_norm=0.2), horizon=horizon, samples=160, elites=16, iterations=4
        )
        driver = PlanningAgent(model=rooms, planner=planner, action_dim=2)
        driver.reset(GoalCost(goal=goal, reduce="sum"), seeds=range(24))
        at = start
        for _ in range(24):
            at = rooms.rollout(state_of(at, 2), driver.act(at).unsqueeze(1))[:, 0]
        solved[horizon] = int(((at - goal).norm(dim=1) < 0.1).sum())
    assert solved[16] >= 22
    assert solved[1] <= 20


def seq_world_model() -> SeqWorldModel:
    torch.manual_seed(0)
    return SeqWorldModel(
        encoder=MLPEncoder(6, [32, 16]), embed_dim=16, action_dim=4, action_embed=8, hidden=32, window=3, dropout=0.0,
        layers=1, heads=2,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("planner", [CEM, ICEM, GradientPlanner])
def test_seq_jepa_can_be_planned_with(planner: type) -> None:
    model = seq_world_model()
    assert isinstance(model, WorldModel)
    bounds = ActionBounds(low=-torch.ones(2), high=torch.ones(2), block=2)
    options = {"samples": 60, "elites": 6} if planner is not GradientPlanner else {"lr": 0.3}
    search = planner(bounds=bounds, horizon=3, iterations=12, **options)
    images = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    driver = PlanningAgent(model=model, planner=search, action_dim=4, window=3)
    driver.reset(GoalCost.from_observations(model, images, distance="cosine"), seeds=[0, 1])
    for t in range(4):
        action = driver.act(images.flip(0) + t)
    assert action.shape == (2, 4)
    trace = driver.accounting[0].cost_trace
    assert (trace[-1] < trace[0]).all()
    assert all(p.grad is None for p in model.parameters())


def walks(count: int, steps: int, seed: int) -> EpisodeBatch:
    """A point that goes straight at a speed of 0.1 to 0.5 in the plane."""
    g = torch.Generator().manual_seed(seed)
    angle, speed = torch.rand(count, generator=g) * 2 * torch.pi, 0.1 + 0.4 * torch.rand(count, generator=g)
    move = speed.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], dim=1)
    actions = move.unsqueeze(1).expand(-1, steps - 1, -1)
    start = torch.randn(count, 2, generator=g)
    path = torch.cat([start.unsqueeze(1), start.unsqueeze(1) + actions.cumsum(1)], dim=1)
    seeds = range(1000 * seed, 1000 * seed + count)
    return EpisodeBatch(observations=path, actions=actions.contiguous(), seeds=tuple(seeds))


class Identity(torch.nn.Module):
    """The point as a module."""

    def encode(self, observations: torch.Tensor) -> torch.Tensor:
        return observations

    def rollout(self, state: LatentState, future: torch.Tensor) -> torch.Tensor:
        return POINT.rollout(state, future)


def test_inverse_dynamics_finds_the_way_and_proposes_plans() -> None:
    """Straight walks with goals one step ahead: the action is goal - position, which the head must learn."""
    torch.manual_seed(0)
    head = InverseDynamics(latent_dim=2, action_dim=2, hidden=64)
    task = InverseDynamicsTask(
        model=Identity(), head=head, max_distance=1, action_scale=torch.full((2,), 0.2)
    )
    assert isinstance(task, Task)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in head.parameters()]
    for step in range(150):  # Adam; torch.optim would import the compiler
        loss = task.training_step(walks(64, 5, seed=step), step)
        with torch.no_grad():
            for p, (m, v), g in zip(
                head.parameters(), moments, torch.autograd.grad(loss.total, [*head.parameters()]), strict=True
            ):
                m.lerp_(g, 0.1)
                v.lerp_(g.square(), 0.01)
                p -= 5e-3 * m / (1 - 0.9 ** (step + 1)) / ((v / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8)
    figures = task.monitors([walks(64, 5, seed=1000)])
    assert figures["action_error"] < 0.1 * figures["action_error_mean"]
    bounds = box(2, max_norm=0.5)
    cheap = InverseDynamicsAgent(model=Identity(), head=head, bounds=bounds)
    at, goal = torch.zeros(1, 2), torch.tensor([[0.3, -0.2]])
    cheap.reset(goal)
    assert (cheap.act(at) - goal).norm() < 0.15
    guess = head.propose(Identity(), state_of(at, 2), goal, horizon=4, bounds=bounds)
    assert guess.shape == (1, 4, 2)
    driver = agent(proposal=lambda state: head.propose(POINT, state, goal, horizon=4, bounds=bounds))
    driver.reset(GoalCost(goal=goal), seeds=[0])
    driver.act(at)
    proposed = GoalCost(goal=goal)(POINT.rollout(state_of(at, 2), guess)[:, None], guess[:, None])[0, 0]
    assert driver.accounting[0].cost_trace[0, 0] <= proposed + 1e-6


def test_the_goals_of_inverse_dynamics_are_uniform_and_within_the_stretch() -> None:
    """The head sees (z_t, z_t+k); with positions as latents k can be read from them."""

    class Reading(InverseDynamics):
        def forward(self, latent: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
            pairs.append(torch.cat([latent, goal], dim=1))
            return super().forward(latent, goal)

    pairs: list[torch.Tensor] = []
    line = torch.arange(7.0).view(1, 7, 1).expand(2000, 7, 1)
    actions = torch.arange(6.0).view(1, 6, 1).expand(2000, 6, 1)
    batch = EpisodeBatch(observations=line, actions=actions, seeds=tuple(range(2000)))
    task = InverseDynamicsTask(model=Identity(), head=Reading(latent_dim=1, action_dim=1), max_distance=4)
    task.training_step(batch, 0)
    start, end = pairs[0].unbind(1)
    counts = torch.bincount((end - start).long(), minlength=5)
    assert counts[0] == 0
    assert len(counts) == 5
    assert torch.allclose(counts[1:] / 8000, torch.full((4,), 0.25), atol=0.02)
    assert end.max() == 6
    assert start.min() == 0
    task.training_step(batch, 0)
    assert torch.equal(pairs[0], pairs[1])
    task.training_step(batch, 1)
    assert not torch.equal(pairs[0], pairs[2])


def test_the_world_model_stays_frozen_under_inverse_dynamics() -> None:
    model = seq_world_model()
    task = InverseDynamicsTask(
        model=model, head=InverseDynamics(latent_dim=16, action_dim=4), max_distance=2
    ).train()
    assert not model.training
    assert {n.partition(".")[0] for n, p in task.named_parameters() if p.requires_grad} == {"head"}
    with pytest.raises(ValueError, match="stretches of 3"):
        task.training_step(walks(2, 2, seed=0), 0)
    with pytest.raises(ValueError, match="max_distance"):
        InverseDynamicsTask(model=model, head=task.head, max_distance=0)


def test_cost_correlation_is_spearman() -> None:
    distance = torch.tensor([[3.0, 1.0, 2.0, 5.0], [1.0, 2.0, 3.0, 4.0]])
    values = cost_correlation(torch.stack([distance[0] ** 3, -distance[1]]), distance)
    assert values.tolist() == [1.0, -1.0]
    with pytest.raises(ValueError, match="3 or more"):
        cost_correlation(distance[:, :2], distance[:, :2])


def test_errors_by_horizon_are_0_for_true_dynamics_and_1_for_a_copy() -> None:
    batches = [walks(8, 6, seed=0), walks(8, 6, seed=1)]
    still = Linear(torch.eye(2), torch.zeros(2, 2))
    for context in (1, 2):
        assert all(s.ratio < 1e-9 for s in error_by_horizon(POINT, batches, context=context, horizon=4))
        copied = error_by_horizon(still, batches, context=context, horizon=4)
        assert [s.ratio for s in copied] == pytest.approx([1.0] * 4)
        assert copied[3].error == pytest.approx(16 * copied[0].error, rel=1e-4)  # straight walks
    with pytest.raises(ValueError, match="stretches of 7"):
        error_by_horizon(POINT, batches, context=3, horizon=4)


def test_decisions_are_summed_up() -> None:
    def one(steps: int, first: float) -> PlanAccounting:
        trace = torch.tensor([[first, first], [1.0, 0.0]])
        return PlanAccounting(
            predictor_steps=steps, seconds=0.1, clipped_share=0.5, cost_trace=trace, stopped_by="iterations"
        )

    summary = decision_summary([one(10, 4.0), one(30, 6.0)])
    assert summary == pytest.approx(
        {"predictor_steps": 20, "seconds": 0.1, "clipped_share": 0.5, "cost_first": 5.0, "cost_last": 0.5}
    )
    with pytest.raises(ValueError, match="no decision"):
        decision_summary([])


def test_a_proposal_of_another_shape_is_refused() -> None:
    driver = agent(proposal=lambda state: torch.zeros(1, 3, 2))
    driver.reset(CostFunction(lambda z: z.sum(-1)), seeds=[0])
    with pytest.raises(ValueError, match="warm start"):
        driver.act(torch.zeros(1, 2))
    assert Plan.proposal(torch.zeros(1, 3, 2)).accounting is None
