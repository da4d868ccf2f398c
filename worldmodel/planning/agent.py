"""Model-predictive control in latent space: observe, encode, plan, act, plan again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from worldmodel.batches import LatentState
from worldmodel.planning.costs import Cost, SubGoalCost, cost_rows
from worldmodel.planning.plan import Plan, PlanAccounting, Planner
from worldmodel.protocols import WorldModel

Proposal = Callable[[LatentState], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class AgentState:
    """All that an agent remembers of an episode; with it, `act` is a function.

    Attributes:
        cost: of the goal.
        seeds: one per environment.
        latent: observed latents and executed actions; None before the first observation.
        last_action: [B, A], executed after the newest latent; None before the first.
        plan: under way.
        executed: actions of the plan that were executed.
        decisions: number of plans made.
    """

    cost: Cost
    seeds: tuple[int, ...]
    latent: LatentState | None = None
    last_action: torch.Tensor | None = None
    plan: Plan | None = None
    executed: int = 0
    decisions: int = 0


class PlanningAgent:
    """Plans from what it sees, executes the first actions of the plan, and plans again.

    An action of a world model may be a block of environment actions; the agent acts once per block and expects the
    observation that follows it.

    Args:
        model: in evaluation mode.
        planner: its bounds define the width of an action.
        action_dim: width of an action of the model, block * A.
        window: observed latents that are remembered.
        execute: actions executed before planning again: 1 is receding-horizon control, the horizon is open loop.
        warm_start: begin each search with what is left of the plan before.
        proposal: state to a guess [B, H, action_dim] that each search begins with, in the place of a warm start
            (`InverseDynamics.propose`).
        tolerance: distance at which a goal of a `SubGoalCost` counts as passed.
    """

    def __init__(
        self,
        *,
        model: WorldModel,
        planner: Planner,
        action_dim: int,
        window: int = 1,
        execute: int = 1,
        warm_start: bool = True,
        proposal: Proposal | None = None,
        tolerance: float = 0.0,
    ) -> None:
        if not 1 <= execute <= planner.horizon or window < 1:
            raise ValueError(
                f"an agent executes 1 to {planner.horizon} actions (the horizon) of a plan and remembers at least 1 "
                f"latent, got execute={execute} and window={window}"
            )
        self.model, self.planner, self.action_dim = model, planner, action_dim
        self.window, self.execute, self.warm_start = window, execute, warm_start
        self.proposal, self.tolerance = proposal, tolerance
        self.state: AgentState | None = None
        self.accounting: list[PlanAccounting] = []

    def reset(self, cost: Cost, seeds: Sequence[int]) -> None:
        """Begin an episode in B environments.

        Args:
            cost: of the goals of the B environments: `GoalCost.from_observations` for goal images, `GoalCost` with a
                readout for goal states, or any other cost.
            seeds: one per environment.
        """
        self.state = AgentState(cost=cost, seeds=tuple(seeds))
        self.accounting = []

    def act(self, observations: torch.Tensor) -> torch.Tensor:
        """The next actions [B, action_dim] for the newest observations [B, ...].

        Raises:
            RuntimeError: before `reset`.
        """
        if self.state is None:
            raise RuntimeError("call reset(cost, seeds) before the first act(observations)")
        state = self._observed(self.state, observations)
        if state.plan is None or state.executed >= self.execute:
            state = self._planned(state)
        assert state.plan is not None
        action = state.plan.actions[:, state.executed]
        self.state = replace(state, last_action=action, executed=state.executed + 1)
        return action

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with some of the environments only, by their present index: the others are done.

        Raises:
            RuntimeError: before `reset`.
            TypeError: if the cost has no `rows(index)`.
        """
        if self.state is None:
            raise RuntimeError("call reset(cost, seeds) before keep(rows)")
        old, index = self.state, torch.as_tensor(rows).long()
        latent = old.latent
        if latent is not None:
            latent = LatentState(latents=latent.latents[index], actions=latent.actions[index])
        self.state = replace(
            old,
            cost=cost_rows(old.cost, index),
            seeds=tuple(old.seeds[i] for i in index.tolist()),
            latent=latent,
            last_action=None if old.last_action is None else old.last_action[index],
            plan=None if old.plan is None else old.plan.rows(index),
        )

    def _observed(self, state: AgentState, observations: torch.Tensor) -> AgentState:
        if len(observations) != len(state.seeds):
            raise ValueError(
                f"reset was given {len(state.seeds)} seeds, got {len(observations)} observations"
            )
        with torch.no_grad():
            latent = self.model.encode(observations.unsqueeze(1))[:, 0]
        if not bool(latent.isfinite().all()):
            raise ValueError("the latent of an observation is not finite: check the observations for NaN")
        if state.latent is None or state.last_action is None:
            empty = latent.new_zeros(len(latent), 0, self.action_dim)
            seen = LatentState(latents=latent.unsqueeze(1), actions=empty)
        else:
            seen = state.latent.append(latent, state.last_action, window=self.window)
        cost = state.cost
        if isinstance(cost, SubGoalCost):
            cost = cost.advance(latent, tolerance=self.tolerance)
        return replace(state, latent=seen, cost=cost)

    def _planned(self, state: AgentState) -> AgentState:
        assert state.latent is not None
        warm = None
        if self.proposal is not None:
            warm = Plan.proposal(self.proposal(state.latent))
        elif self.warm_start and state.plan is not None:
            warm = state.plan.shifted(state.executed)
        plan = self.planner.plan(
            self.model, state.latent, state.cost, seeds=state.seeds, step=state.decisions, warm=warm
        )
        if plan.accounting is not None:
            self.accounting.append(plan.accounting)
        return replace(state, plan=plan, executed=0, decisions=state.decisions + 1)
