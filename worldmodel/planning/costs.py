"""What imagined trajectories are judged by: costs of latents [B, K, H, ...] and actions [B, K, H, A], lower is better.

A goal is an image (`GoalCost.from_observations`), a state (`GoalCost` with a readout), or any cost; a list of sub-goals
is a `SubGoalCost`. Costs of several kinds are added with `CostSum`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch

from worldmodel.distributed import at_least_fp32
from worldmodel.objectives import feature_distance
from worldmodel.protocols import WorldModel

Readout = Callable[[torch.Tensor], torch.Tensor]
GoalDistance = Literal["l2", "l1", "cosine"]
Reduction = Literal["sum", "last", "min"]
_DISTANCES = ("l2", "l1", "cosine")


class Cost(Protocol):
    """Latents [B, K, H, ...] and the actions [B, K, H, A] that led to them, to one cost per candidate [B, K].

    Any such function will do; it must not keep the latents, whose memory serves the next candidates. The costs of this
    module can also go on with some of their environments: `rows`.
    """

    def __call__(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor: ...


def goal_distance(latents: torch.Tensor, goal: torch.Tensor, distance: GoalDistance) -> torch.Tensor:
    """Distance [B, ...] of latents [B, ..., D] to the goal [B, D] of their row.

    l2 is the mean squared difference over the features and l1 the mean absolute one, so that a weight means the same at
    every width; cosine is 1 - cos.
    """
    if distance not in _DISTANCES:
        raise ValueError(f"the distance is {', '.join(_DISTANCES)}, got {distance!r}")
    goal = goal.reshape(len(goal), *[1] * (latents.ndim - 2), -1)
    if distance == "cosine":
        return feature_distance(prediction=latents, target=goal.expand_as(latents), kind="cosine")
    difference = at_least_fp32(latents) - goal
    return (difference.square() if distance == "l2" else difference.abs()).mean(-1)


def over_horizon(values: torch.Tensor, reduce: Reduction) -> torch.Tensor:
    """Values [..., H] to [...]."""
    if reduce == "sum":
        return values.sum(-1)
    if reduce == "min":
        return values.amin(-1)
    return values[..., -1]


@dataclass(frozen=True, kw_only=True, eq=False)
class GoalCost:
    """Distance to a goal.

    Attributes:
        goal: [B, ...], a latent, or a state if there is a readout.
        distance: l2 (mean squared difference), l1 (mean absolute difference) or cosine.
        reduce: "sum" over the horizon suits long plans, "last" short plans of action blocks; "min" asks to pass by.
        action_weight: of the mean squared action, summed over the horizon.
        readout: latents [N, ...] to states [N, S].
    """

    goal: torch.Tensor
    distance: GoalDistance = "l2"
    reduce: Reduction = "sum"
    action_weight: float = 0.0
    readout: Readout | None = None

    def __post_init__(self) -> None:
        if self.distance not in _DISTANCES or self.reduce not in ("sum", "last", "min"):
            raise ValueError(
                f"the distance is {', '.join(_DISTANCES)} and the reduction sum, last or min, got {self.distance!r} "
                f"and {self.reduce!r}"
            )
        if self.goal.ndim < 2 or not bool(self.goal.isfinite().all()):
            raise ValueError(f"goals are finite numbers [B, ...], got {tuple(self.goal.shape)}")

    @classmethod
    def from_observations(cls, model: WorldModel, observations: torch.Tensor, **options: Any) -> "GoalCost":
        """Distance to the latents of goal images (or other observations) [B, ...].

        Where the model has a `goal_code`, latents [N, D] to codes [N, C], distances are those of the codes.
        """
        code = getattr(model, "goal_code", None)
        with torch.no_grad():
            goal = model.encode(observations.unsqueeze(1))[:, 0]
            return cls(goal=goal if code is None else code(goal), readout=code, **options)

    def __call__(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        last = self.reduce == "last"
        if last:
            latents = latents[:, :, -1]
        axes = 2 if last else 3
        if self.readout is not None:
            latents = self.readout(latents.flatten(0, axes - 1)).unflatten(0, latents.shape[:axes])
        if latents.ndim > axes + 1:
            latents = latents.flatten(axes)
        goal = self.goal if self.goal.ndim == 2 else self.goal.flatten(1)
        if len(goal) != len(latents) or goal.shape[-1] != latents.shape[-1]:
            raise ValueError(
                f"goals [B, D] go with latents or states [B, K, H, D], got {tuple(goal.shape)} and "
                f"{tuple(latents.shape)}"
            )
        distance = goal_distance(latents, goal, self.distance)
        cost = distance if last else over_horizon(distance, self.reduce)
        if self.action_weight:
            cost = cost + self.action_weight * actions.square().mean(-1).sum(-1)
        return cost

    def rows(self, index: torch.Tensor) -> "GoalCost":
        """The cost of some of the environments."""
        return replace(self, goal=self.goal[index])


@dataclass(frozen=True, kw_only=True, eq=False)
class SubGoalCost:
    """Cost of passing several goals in their order.

    Every imagined step is assigned to a goal, in order, at least one to each goal ahead; the cost is the lowest sum of
    the distances to the assigned goals, by dynamic programming: D(t, g) = d(z_t, goal_g) + min(D(t-1, g), D(t-1, g-1)).
    Steps that are late cost as much as steps that are far, so that replanning does not put the goals off.

    Attributes:
        goals: [B, G, ...] latents, or states if there is a readout.
        reached: [B], how many of them each environment has passed (`advance`); none by default.
        distance, readout: as in `GoalCost`.
    """

    goals: torch.Tensor
    reached: torch.Tensor | None = None
    distance: GoalDistance = "l2"
    readout: Readout | None = None

    def __post_init__(self) -> None:
        if self.goals.ndim < 3 or not bool(self.goals.isfinite().all()):
            raise ValueError(f"sub-goals are finite numbers [B, G, ...], got {tuple(self.goals.shape)}")
        if self.distance not in _DISTANCES:
            raise ValueError(f"the distance is {', '.join(_DISTANCES)}, got {self.distance!r}")

    def __call__(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        distances = torch.stack(self._distances(latents), dim=-1)  # [B, K, H, G]
        horizon, count = distances.shape[2:]
        passed = self._passed()
        if horizon < count - int(passed.min()):
            raise ValueError(
                f"{count - int(passed.min())} sub-goals ahead need a horizon of as many steps, got {horizon}"
            )
        first = torch.arange(count, device=passed.device) == passed.unsqueeze(1)
        never = distances.new_tensor(torch.inf)
        total = torch.where(first[:, None], distances[:, :, 0], never)
        for distance in distances.unbind(2)[1:]:
            advanced = torch.nn.functional.pad(total[..., :-1], (1, 0), value=torch.inf)
            total = distance + torch.minimum(total, advanced)
        return total[..., -1]

    def rows(self, index: torch.Tensor) -> "SubGoalCost":
        """The cost of some of the environments."""
        reached = None if self.reached is None else self.reached[index]
        return replace(self, goals=self.goals[index], reached=reached)

    def advance(self, latents: torch.Tensor, *, tolerance: float) -> "SubGoalCost":
        """With the next goal counted as passed where the latent [B, ...] is within `tolerance`; the last one stays."""
        last = self.goals.shape[1] - 1
        here = torch.stack(self._distances(latents[:, None, None]), dim=1)[..., 0, 0]
        passed = self._passed()
        near = here.gather(1, passed.unsqueeze(1))[:, 0] <= tolerance
        return replace(self, reached=(passed + near.long()).clamp(max=last))

    def _passed(self) -> torch.Tensor:
        return self.goals.new_zeros(len(self.goals)).long() if self.reached is None else self.reached

    def _distances(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """G distances [B, K, H] of latents [B, K, H, ...]."""
        if self.readout is not None:
            latents = self.readout(latents.flatten(0, 2)).unflatten(0, latents.shape[:3])
        flat = latents.flatten(3)
        return [
            goal_distance(flat, goal.reshape(len(goal), -1), self.distance) for goal in self.goals.unbind(1)
        ]


@dataclass(frozen=True, eq=False)
class CostSum:
    """Weighted sum of costs: pairs of weight and cost, such as image goal + alpha * goal of the proprioception."""

    terms: Sequence[tuple[float, Cost]]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("a sum of costs needs at least one")

    def __call__(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return torch.stack([weight * cost(latents, actions) for weight, cost in self.terms]).sum(0)

    def rows(self, index: torch.Tensor) -> "CostSum":
        """The cost of some of the environments."""
        return CostSum([(weight, cost_rows(cost, index)) for weight, cost in self.terms])


def cost_rows(cost: Cost, index: torch.Tensor) -> Cost:
    """The cost of some of its environments.

    Raises:
        TypeError: if it has no `rows(index)`.
    """
    rows = getattr(cost, "rows", None)
    if rows is None:
        raise TypeError(
            f"{type(cost).__name__} cannot go on with some environments only: give it rows(index)"
        )
    return rows(index)


@dataclass(frozen=True, eq=False)
class CostFunction:
    """A plain function of the latents [B, K, H, ...] alone, to costs [B, K] or, summed here, [B, K, H].

    The same for every environment.
    """

    function: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        values = self.function(latents)
        if values.shape == latents.shape[:3]:
            values = values.sum(-1)
        if values.shape != latents.shape[:2]:
            raise ValueError(
                f"a cost of latents {tuple(latents.shape)} must be {tuple(latents.shape[:2])} or with the horizon "
                f"{tuple(latents.shape[:3])}, got {tuple(values.shape)}"
            )
        return values

    def rows(self, index: torch.Tensor) -> "CostFunction":
        """Itself: it knows no environment from another."""
        return self
