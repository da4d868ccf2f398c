"""What to log beside a success rate: does the latent cost rank states as the true distance does, and how far can the
model be trusted to imagine."""

from collections.abc import Sequence

import torch

from worldmodel.batches import EpisodeBatch, LatentState
from worldmodel.monitors import CopyLast, CopyLastSummary
from worldmodel.planning.plan import PlanAccounting
from worldmodel.protocols import WorldModel
from worldmodel.rank_correlation import spearman


def cost_correlation(costs: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    """Spearman's correlation of latent costs and true distances to the goal [..., N] along the last axis, float64.

    1 where the cost ranks states as the distance does; NaN where one side is constant.
    """
    if costs.shape != distances.shape or costs.shape[-1] < 3:
        raise ValueError(
            f"costs and distances share a shape [..., N] with N of 3 or more, got {tuple(costs.shape)} and "
            f"{tuple(distances.shape)}"
        )
    a, b = (v.detach().cpu().double().numpy() for v in (costs, distances))
    return torch.as_tensor(spearman(a, b))


@torch.no_grad()
def error_by_horizon(
    model: WorldModel, batches: Sequence[EpisodeBatch], *, context: int, horizon: int
) -> list[CopyLastSummary]:
    """Error of the latents imagined 1..horizon steps ahead beside that of copying the last observed latent.

    A ratio of 1 or more at a horizon says that planning so far ahead is planning in a copy of the present.

    Args:
        context: observations the model is shown first.

    Raises:
        ValueError: if the stretches are shorter than context + horizon.
    """
    meters = [CopyLast() for _ in range(horizon)]
    for batch in batches:
        if batch.observations.shape[1] < context + horizon:
            raise ValueError(
                f"{context} observations and {horizon} steps ahead need stretches of {context + horizon}, got "
                f"{batch.observations.shape[1]}"
            )
        latents = model.encode(batch.observations[:, : context + horizon])
        state = LatentState(latents=latents[:, :context], actions=batch.actions[:, : context - 1])
        imagined = model.rollout(state, batch.actions[:, context - 1 : context + horizon - 1])
        last = latents[:, context - 1].flatten(1)
        for h, meter in enumerate(meters):
            target = latents[:, context + h].flatten(1)
            meter.update(prediction=imagined[:, h].flatten(1), target=target, last=last)
    return [meter.compute() for meter in meters]


def decision_summary(accounting: Sequence[PlanAccounting]) -> dict[str, float]:
    """Means over decisions: predictor steps per environment, seconds, share of clipped actions, cost before and after.

    Before is the lowest cost after the first iteration, after that of the last one.
    """
    if not accounting:
        raise ValueError("no decision was made: there is nothing to account for")
    columns = {
        "predictor_steps": [float(a.predictor_steps) for a in accounting],
        "seconds": [a.seconds for a in accounting],
        "clipped_share": [a.clipped_share for a in accounting],
        "cost_first": [float(a.cost_trace[0].mean()) for a in accounting],
        "cost_last": [float(a.cost_trace[-1].mean()) for a in accounting],
    }
    return {name: sum(values) / len(values) for name, values in columns.items()}
