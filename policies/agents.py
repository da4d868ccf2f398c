"""Planners, and what they are held against, as agents of the closed-loop evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from envs.goals import GoalEnv, Problem
from policies.rollouts import AgentError, Decision, Situation
from policies.simulator_model import SimulatorModel, TrueDistance
from worldmodel.planning import (
    CEM,
    ICEM,
    MPPI,
    ActionBounds,
    Budget,
    Cost,
    GoalCost,
    GradientPlanner,
    InverseDynamics,
    InverseDynamicsAgent,
    Planner,
    PlanningAgent,
    predictive_sampling,
)
from worldmodel.protocols import WorldModel

PLANNERS: dict[str, Callable[..., Planner]] = {
    "cem": CEM,
    "icem": ICEM,
    "mppi": MPPI,
    "gradient": GradientPlanner,
    "predictive_sampling": predictive_sampling,
}


@dataclass(frozen=True, kw_only=True)
class PlanningSettings:
    """How to plan; the same for a learned model and for the simulator, so that their difference is the model's error.

    Attributes:
        planner: name and options, as {"name": "cem", "horizon": 12, "samples": 100, ...}; "max_predictor_steps" and
            "max_seconds" bound a decision.
        execute: actions of the model executed before planning again.
        distance, reduce, action_weight: of `GoalCost`.
        warm_start: begin with what is left of the plan before.
        max_norm: bound of an action's norm below that of the environment, for a learned model: it knows steps of the
            sizes that it has seen, and a search finds what it gets wrong about others. None: the environment's.
        seed: with the seed of the problem and the number of the decision, of every random number.
    """

    planner: Mapping[str, Any]
    execute: int = 1
    distance: Literal["l2", "l1", "cosine"] = "l2"
    reduce: Literal["sum", "last", "min"] = "sum"
    action_weight: float = 0.0
    warm_start: bool = True
    max_norm: float | None = None
    seed: int = 0

    def json(self) -> dict[str, Any]:
        return {**vars(self), "planner": dict(self.planner)}

    def build(self, bounds: ActionBounds) -> Planner:
        """The planner.

        Raises:
            ValueError: naming what is unknown.
        """
        options = dict(self.planner)
        name = options.pop("name", None)
        if name not in PLANNERS:
            raise ValueError(f"the planner is one of {', '.join(PLANNERS)}, got {name!r}")
        budget = Budget(
            predictor_steps=options.pop("max_predictor_steps", None), seconds=options.pop("max_seconds", None)
        )
        try:
            return PLANNERS[name](bounds=bounds, budget=budget, **options)
        except TypeError as error:
            raise ValueError(f"planner {name}: {error}") from error

    def within(self, bounds: ActionBounds) -> ActionBounds:
        """The environment's bounds, narrowed to `max_norm`."""
        if self.max_norm is None:
            return bounds
        return replace(bounds, max_norm=min(self.max_norm, bounds.max_norm or self.max_norm))

    def goal_options(self) -> dict[str, Any]:
        return {"distance": self.distance, "reduce": self.reduce, "action_weight": self.action_weight}

    def problem_seeds(self, problems: Sequence[Problem]) -> list[int]:
        return [self.seed << 32 | problem.seed for problem in problems]


class _Controller:
    """A `PlanningAgent` asked for blocks of environment actions, while episodes come to an end one by one."""

    def __init__(self, agent: PlanningAgent, rows: np.ndarray, *, block: int) -> None:
        self.agent, self.rows, self.block = agent, rows, block

    def drop(self, rows: np.ndarray) -> np.ndarray | None:
        """Go on with these of the rows only; their index among those before, None if they are the same."""
        if np.array_equal(rows, self.rows):
            return None
        index = np.searchsorted(self.rows, rows)
        self.agent.keep(torch.from_numpy(index))
        self.rows = rows
        return index

    def decide(self, observations: torch.Tensor) -> Decision:
        before = len(self.agent.accounting)
        actions = self.agent.act(observations)
        new = self.agent.accounting[before:]
        return Decision(
            actions=actions.cpu().numpy().reshape(len(actions), self.block, -1),
            planned=bool(new),
            predictor_steps=float(sum(a.predictor_steps for a in new)),
            clipped=new[-1].clipped_share if new else None,
            costs=new[-1].cost_trace.cpu().numpy() if new else None,
        )


class LatentPlanner:
    """Plans in the latent space of a world model, towards the latent of the goal observation.

    Args:
        model: in evaluation mode.
        block: environment actions per action of the model.
        window: observed latents that the model is shown.
        planning: how.
        device: of the model.
        settings: of the model, stored with the result.

    Raises:
        AgentError: in `start`, if the model's actions are not those of the environment.
    """

    inputs = "observation and goal observation"

    def __init__(
        self,
        *,
        model: WorldModel,
        block: int,
        planning: PlanningSettings,
        window: int = 1,
        device: torch.device | str = "cpu",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.block, self.window, self.planning = model, block, window, planning
        self.device = device
        self.settings = {"planning": planning.json(), "block": block, "window": window, **(settings or {})}

    def start(self, env: GoalEnv, problems: Sequence[Problem]) -> None:
        check_actions(self.model, env, block=self.block)
        bounds = self.planning.within(ActionBounds.from_spec(env.spec_action, self.block))
        self.seeds = self.planning.problem_seeds(problems)
        self.agent = PlanningAgent(
            model=self.model,
            planner=self.planning.build(bounds),
            action_dim=bounds.dim,
            window=self.window,
            execute=self.planning.execute,
            warm_start=self.planning.warm_start,
        )
        self.controller: _Controller | None = None

    def decide(self, situation: Situation) -> Decision:
        if self.controller is None:
            goals = to_tensor(situation.goal_observations, self.device)
            cost = GoalCost.from_observations(self.model, goals, **self.planning.goal_options())
            self.agent.reset(cost, [self.seeds[row] for row in situation.rows])
            self.controller = _Controller(self.agent, situation.rows, block=self.block)
        self.controller.drop(situation.rows)
        return self.controller.decide(to_tensor(situation.observations, self.device))


class OraclePlanner:
    """Plans in the true simulator: the same planner with a perfect model, an upper bound of what it can do with one.

    Args:
        block: environment actions per action of the planner.
        planning: how.
        cost: "state" is the distance of `planning` between states and the goal state; "distance" is the environment's
            own distance, which knows of walls.
        simulator: makes the model; another one may simulate the problems at once.
    """

    def __init__(
        self,
        *,
        block: int,
        planning: PlanningSettings,
        cost: Literal["state", "distance"] = "state",
        simulator: type[SimulatorModel] = SimulatorModel,
    ) -> None:
        if cost not in ("state", "distance"):
            raise ValueError(f'the cost of the oracle is "state" or "distance", got {cost!r}')
        self.block, self.planning, self.cost, self.simulator = block, planning, cost, simulator
        self.inputs = f"true state and simulator, {'goal state' if cost == 'state' else 'true distance'}"
        self.settings = {"planning": planning.json(), "block": block, "cost": cost}

    def start(self, env: GoalEnv, problems: Sequence[Problem]) -> None:
        bounds = ActionBounds.from_spec(env.spec_action, self.block)
        self.model = self.simulator(env, problems, block=self.block)
        self.agent = PlanningAgent(
            model=self.model,
            planner=self.planning.build(bounds),
            action_dim=bounds.dim,
            execute=self.planning.execute,
            warm_start=self.planning.warm_start,
        )
        goals = torch.from_numpy(np.stack([p.goal for p in problems])).float()
        cost: Cost = (
            GoalCost(goal=goals, **self.planning.goal_options())
            if self.cost == "state"
            else TrueDistance(env, problems, reduce=self.planning.reduce)
        )
        self.agent.reset(cost, self.planning.problem_seeds(problems))
        self.controller = _Controller(self.agent, np.arange(len(problems)), block=self.block)

    def decide(self, situation: Situation) -> Decision:
        index = self.controller.drop(situation.rows)
        if index is not None:
            self.model.keep(index)
        return self.controller.decide(torch.from_numpy(situation.states).float())


class InverseDynamicsPolicy:
    """Acts by a network from latent and goal latent, without a search.

    Args:
        model: in evaluation mode.
        head: trained.
        block: environment actions per action of the model.
        device: of both.
        settings: of the model, stored with the result.
    """

    inputs = "observation and goal observation"

    def __init__(
        self,
        *,
        model: WorldModel,
        head: InverseDynamics,
        block: int,
        device: torch.device | str = "cpu",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.head, self.block, self.device = model, head, block, device
        self.settings = {"block": block, **(settings or {})}

    def start(self, env: GoalEnv, problems: Sequence[Problem]) -> None:
        bounds = ActionBounds.from_spec(env.spec_action, self.block)
        self.agent = InverseDynamicsAgent(model=self.model, head=self.head, bounds=bounds)

    def decide(self, situation: Situation) -> Decision:
        goals = to_tensor(situation.goal_observations, self.device)
        with torch.no_grad():
            self.agent.reset(self.model.encode(goals.unsqueeze(1))[:, 0])
        actions = self.agent.act(to_tensor(situation.observations, self.device))
        return Decision(actions=actions.cpu().numpy().reshape(len(actions), self.block, -1))


def to_tensor(observations: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """Observations as a model takes them: uint8 stays uint8, what else there is becomes float32."""
    tensor = torch.from_numpy(np.ascontiguousarray(observations))
    return tensor.to(device) if tensor.dtype == torch.uint8 else tensor.to(device, torch.float32)


def check_actions(model: WorldModel, env: GoalEnv, *, block: int) -> None:
    """Raise AgentError if a model that says how wide its actions are was trained with others than the environment's."""
    scale = getattr(model, "action_scale", None)
    if isinstance(model, nn.Module) and isinstance(scale, torch.Tensor) and scale.ndim == 1:
        spec = env.spec_action
        if len(scale) != block * spec.dim:
            raise AgentError(
                f"the model takes actions of {len(scale)} numbers, blocks of {block} actions of this environment "
                f"({', '.join(spec.names)}) have {block * spec.dim}: the run was trained in another environment or "
                f"with another block length"
            )
