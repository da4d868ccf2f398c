"""LeJEPA's total loss: a prediction term and SIGReg, without teacher, stop-gradient or schedule (arXiv 2511.08544).

Two uses. Predictive (AD-L-JEPA, seq-JEPA, ACT-JEPA): the model brings its own prediction loss and the embeddings to
regularise. Multi-view: every view of a sample predicts the centre of its global views.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from worldmodel.distributed import at_least_fp32, mean_over_ranks
from worldmodel.objectives import Loss
from worldmodel.regularizers import SIGReg


class LeJEPA(nn.Module):
    """(1 - lambda) prediction + lambda SIGReg, the paper's weighting; `additive_weight` converts to others.

    SIGReg grows with the samples per test while the embeddings are not Gaussian, and a prediction loss is a mean: what
    a lambda does depends on the batch size.

    Args:
        sigreg: the statistic.
        weight: lambda in [0, 1]; 0.05 in the paper, stable from 0.01 to 0.1 on images.
    """

    def __init__(self, *, sigreg: SIGReg, weight: float = 0.05) -> None:
        super().__init__()
        if not 0 <= weight <= 1:
            raise ValueError(f"lambda (weight) must lie in [0, 1], got {weight}")
        if sigreg.reduction == "none":
            raise ValueError("LeJEPA needs a scalar: give SIGReg reduction='mean' or 'sum'")
        if sigreg.sample_axis != -2:
            raise ValueError(
                f"LeJEPA takes embeddings [..., N, K], SIGReg has sample_axis {sigreg.sample_axis}"
            )
        self.sigreg, self.weight = sigreg, weight

    def forward(self, *, prediction: Loss, embeddings: Sequence[torch.Tensor], step: int) -> Loss:
        """Total loss of a predictive model.

        Args:
            prediction: with its own named parts.
            embeddings: each [..., N, K]; leading axes and list entries are independent tests, each entry with
                directions of its own. Put a normalisation over the batch before them, never a LayerNorm: it fixes the
                norm of each sample.
            step: optimiser step, which the directions are drawn from.

        Returns:
            Parts of `prediction`, and `loss/sigreg_over_floor`: 1 for Gaussian embeddings, on any number of samples.
        """
        if not embeddings:
            raise ValueError("LeJEPA needs embeddings to regularise")
        measured = [
            self.sigreg.distance(z, step=len(embeddings) * step + i) for i, z in enumerate(embeddings)
        ]
        statistic = torch.stack([self.sigreg.reduce(value, count) for value, count in measured]).mean()
        over_floor = (
            torch.stack([(value * count).mean() for value, count in measured]).mean() / self.sigreg.floor
        )
        total = (1 - self.weight) * prediction.total + self.weight * statistic
        return Loss(total, prediction.parts | {"loss/sigreg_over_floor": over_floor.detach()})

    def multi_view(
        self,
        views: torch.Tensor,
        *,
        global_views: int,
        step: int,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> Loss:
        """Total loss of views [V, B, K] of B samples, one test per view; see `multi_view_prediction`."""
        prediction = multi_view_prediction(views, global_views=global_views, reduction=reduction)
        return self(prediction=prediction, embeddings=[views], step=step)


def multi_view_prediction(
    views: torch.Tensor, *, global_views: int, reduction: Literal["mean", "sum"] = "mean"
) -> Loss:
    """Squared distance of every view to the centre of the global views, meaned over views and samples of all ranks.

    Args:
        views: [V, B, K], the global ones first. B may differ between ranks.
        global_views: how many; V for convolutional networks, where all views are global.
        reduction: over K: "mean" as in released code, or "sum" as the equation is printed, which makes the term K
            times stronger against SIGReg.
    """
    if views.ndim != 3 or not 1 <= global_views <= len(views):
        raise ValueError(
            f"expected views [V, B, K] and 1 to V global ones, got {tuple(views.shape)} and {global_views}"
        )
    if reduction not in ("mean", "sum"):
        raise ValueError(f"the reduction over features is mean or sum, got {reduction!r}")
    z = at_least_fp32(views)
    square = (z - z[:global_views].mean(0)).square()
    per_view = square.mean(-1) if reduction == "mean" else square.sum(-1)
    return Loss.weighted({"loss/prediction": (1.0, mean_over_ranks(per_view.sum(), per_view.numel()))})


def additive_weight(weight: float) -> float:
    """lambda' of prediction + lambda' SIGReg with the optimum of (1 - lambda) prediction + lambda SIGReg."""
    return weight / (1 - weight)


def convex_weight(weight: float) -> float:
    """lambda of (1 - lambda) prediction + lambda SIGReg with the optimum of prediction + lambda' SIGReg."""
    return weight / (1 + weight)
