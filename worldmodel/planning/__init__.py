"""Planning in the latent space of a world model: the model's `rollout`, a cost, and a planner, nothing else.

| planner               | idea                                                              |
|-----------------------|-------------------------------------------------------------------|
| `CEM`                 | fit a Gaussian to the elites, again and again                     |
| `predictive_sampling` | the best of one draw: CEM of one iteration                        |
"""

from worldmodel.planning.bounds import ActionBounds
from worldmodel.planning.cem import CEM, predictive_sampling
from worldmodel.planning.costs import Cost, CostFunction, CostSum, GoalCost, SubGoalCost
from worldmodel.planning.plan import Budget, Plan, PlanAccounting, Planner

__all__ = [
    "CEM",
    "ActionBounds",
    "Budget",
    "Cost",
    "CostFunction",
    "CostSum",
    "GoalCost",
    "Plan",
    "PlanAccounting",
    "Planner",
    "SubGoalCost",
    "predictive_sampling",
]
