"""Planning in the latent space of a world model: the model's `rollout`, a cost, and a planner, nothing else.

| planner               | idea                                                                                |
|-----------------------|-------------------------------------------------------------------------------------|
| `CEM`                 | fit a Gaussian to the best candidates, again and again                              |
| `ICEM`                | CEM with coloured noise, kept elites and shrinking populations                      |
| `MPPI`                | move the mean by weights softmax(-cost / temperature)                               |
| `predictive_sampling` | the best of one draw: CEM of one iteration                                          |
| `GradientPlanner`     | Adam or descent through the rollout, from several starting points                   |

`PlanningAgent` plans again and again while it acts; `InverseDynamicsAgent` is the cheap alternative without a search.
"""

from worldmodel.planning.agent import AgentState, PlanningAgent
from worldmodel.planning.bounds import ActionBounds
from worldmodel.planning.cem import CEM, predictive_sampling
from worldmodel.planning.costs import Cost, CostFunction, CostSum, GoalCost, SubGoalCost, goal_distance
from worldmodel.planning.diagnostics import cost_correlation, decision_summary, error_by_horizon
from worldmodel.planning.gradient import GradientPlanner
from worldmodel.planning.icem import ICEM
from worldmodel.planning.inverse_dynamics import InverseDynamics, InverseDynamicsAgent, InverseDynamicsTask
from worldmodel.planning.mppi import MPPI, mppi_weights
from worldmodel.planning.plan import Budget, Plan, PlanAccounting, Planner
from worldmodel.planning.sampling import Fit, SamplingPlanner

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "ActionBounds",
    "AgentState",
    "Budget",
    "Cost",
    "CostFunction",
    "CostSum",
    "Fit",
    "GoalCost",
    "GradientPlanner",
    "InverseDynamics",
    "InverseDynamicsAgent",
    "InverseDynamicsTask",
    "Plan",
    "PlanAccounting",
    "Planner",
    "PlanningAgent",
    "SamplingPlanner",
    "SubGoalCost",
    "cost_correlation",
    "decision_summary",
    "error_by_horizon",
    "goal_distance",
    "mppi_weights",
    "predictive_sampling",
]
