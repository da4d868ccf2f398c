"""Path integration: is the way from the first view to the last in the aggregate? And what of it is not the model's?

A head on (aggregate of x_1..x_M with a_1..a_{M-1}, a_M) regresses the direct transformation from x_1 to x_{M+1}
(arXiv 2505.03176, B.9). The figure alone is no evidence of learning, since a transformer with random weights passes the
actions through: it is read beside its controls.
"""

from dataclasses import dataclass

import torch
from torch import nn

from worldmodel.evaluation.heads import HeadConfig, fit_regressor
from worldmodel.evaluation.regression import r2
from worldmodel.evaluation.sequences import SequenceFeatures, aggregated


@dataclass(frozen=True, kw_only=True)
class PathIntegration:
    """R^2 on held-out episodes; every head is trained on the input it is tested with. None was not measured.

    Attributes:
        full: from the aggregate and the last action.
        actions_zeroed: no action reaches the aggregator or the head.
        vision_zeroed: every z is 0; the actions are seen.
        last_action: from a_M alone, without a model.
        random_aggregator: as full, through untrained weights.
    """

    full: float
    actions_zeroed: float | None = None
    vision_zeroed: float | None = None
    last_action: float | None = None
    random_aggregator: float | None = None


def path_integration_inputs(
    model: nn.Module, features: SequenceFeatures, *, views: int, vision: bool = True, actions: bool = True
) -> torch.Tensor:
    """[aggregate of the first `views` views, action to the next one]: [N, K + A]; zeros in place of what is off.

    Raises:
        ValueError: if the episodes have no view after the first `views`.
    """
    if not 1 <= views < features.z.shape[1]:
        raise ValueError(
            f"path integration over {views} views needs episodes of {views + 1}, got {features.z.shape[1]}"
        )
    z = features.z[:, :views] * vision
    steps = features.actions[:, :views] * actions
    return torch.cat([aggregated(model, z, steps[:, :-1]), steps[:, -1]], dim=1)


def path_integration(
    model: nn.Module,
    *,
    train: SequenceFeatures,
    test: SequenceFeatures,
    targets: tuple[torch.Tensor, torch.Tensor],
    views: int,
    config: HeadConfig,
    seed: int,
    untrained: nn.Module | None = None,
    actions: bool = True,
    controls: bool = True,
) -> PathIntegration:
    """Path integration over `views` views and its controls.

    Args:
        model: aggregates; left bit-identical.
        train, test: features with at least views + 1 views.
        targets: of train and test, [N, C]: the transformation from the first view to view number views + 1.
        untrained: the same model with its first weights, for the control.
        actions: False for a model that takes none: then the head gets none either.
        controls: False for the full figure alone.
    """

    def score(inputs: tuple[torch.Tensor, torch.Tensor]) -> float:
        head = fit_regressor(inputs[0], targets[0], config=config, seed=seed)
        return r2(head(inputs[1]), targets[1])

    def through(which: nn.Module, *, vision: bool, acts: bool) -> float:
        parts = (
            path_integration_inputs(which, f, views=views, vision=vision, actions=acts) for f in (train, test)
        )
        return score((next(parts), next(parts)))

    full = through(model, vision=True, acts=actions)
    if not controls:
        return PathIntegration(full=full)
    return PathIntegration(
        full=full,
        actions_zeroed=through(model, vision=True, acts=False),
        vision_zeroed=through(model, vision=False, acts=actions),
        last_action=score((train.actions[:, views - 1], test.actions[:, views - 1])),
        random_aggregator=None if untrained is None else through(untrained, vision=True, acts=actions),
    )
