"""Losses of AD-L-JEPA on BEV embeddings: EMA target with a variance hinge (the paper), or SIGReg (LeJEPA)."""

import torch
from torch import nn

from lidar.ad_l_jepa import Embeddings
from worldmodel.lejepa import LeJEPA
from worldmodel.masking.bev import random_subset
from worldmodel.objectives import Loss, cosine_distance, masked_mean
from worldmodel.regularizers import SIGReg, variance_hinge


def prediction_error(e: Embeddings) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of 1 - cos(prediction, target) over masked non-empty (M1) and masked empty (M0) cells (step 6)."""
    distance = cosine_distance(prediction=e.prediction, target=e.target)
    return masked_mean(distance, e.masks.masked_occupied), masked_mean(distance, e.masks.masked_empty)


class EMAVariance(nn.Module):
    """lambda_jepa (w M1 + (1 - w) M0) + lambda_reg (reg(context at C1) + reg(prediction at M1)): docs/ad_l_jepa.md, 6.

    Args:
        lambda_reg: 1 in the release's KITTI config, 10 in its Waymo config.
        occupied_weight: w, 0.75 in the paper.
    """

    def __init__(
        self, *, lambda_jepa: float = 1.0, lambda_reg: float = 1.0, occupied_weight: float = 0.75
    ) -> None:
        super().__init__()
        if lambda_jepa < 0 or lambda_reg < 0 or not 0 <= occupied_weight <= 1:
            raise ValueError("loss weights must not be negative and occupied_weight must lie in [0, 1]")
        self.lambda_jepa, self.lambda_reg, self.occupied_weight = lambda_jepa, lambda_reg, occupied_weight

    def forward(self, e: Embeddings, *, step: int) -> Loss:
        gamma = e.context.shape[1] ** -0.5
        m1, m0 = prediction_error(e)
        reg_context = variance_hinge(e.context, e.masks.visible_occupied, gamma=gamma)
        reg_prediction = variance_hinge(e.prediction, e.masks.masked_occupied, gamma=gamma)
        with torch.no_grad():
            reg_target = variance_hinge(e.target, e.masks.masked_occupied, gamma=gamma)
        w = self.occupied_weight
        terms = {
            "loss/jepa_m1": (self.lambda_jepa * w, m1),
            "loss/jepa_m0": (self.lambda_jepa * (1 - w), m0),
            "loss/variance_context": (self.lambda_reg, reg_context),
            "loss/variance_prediction": (self.lambda_reg, reg_prediction),
        }
        return Loss.weighted(terms, also={"loss/variance_target": reg_target})


class SIGRegObjective(nn.Module):
    """(1 - lambda) (w M1 + (1 - w) M0) + lambda SIGReg: no teacher, no stop-gradient, no variance hinge.

    Post-ReLU unit vectors cannot be Gaussian, so SIGReg acts on a projection (Linear, then BatchNorm without scale and
    shift) of context embeddings at C1 and target embeddings at M1. Cells of a scene are correlated and inflate the
    factor N without adding information, so a random subset of `samples` cells of the batch enters.

    Args:
        channels: C of the embeddings.
        sigreg: the statistic.
        norm: builds the BatchNorm1d of the projection (rank-synchronised in training).
        weight: lambda in [0, 1].
        samples: cells per test, over all ranks.
    """

    def __init__(
        self,
        *,
        channels: int,
        sigreg: SIGReg,
        norm: type[nn.BatchNorm1d] | type[nn.Module],
        weight: float = 0.05,
        samples: int = 256,
        occupied_weight: float = 0.75,
    ) -> None:
        super().__init__()
        if not 0 <= occupied_weight <= 1 or samples < 2:
            raise ValueError("occupied_weight must lie in [0, 1], samples must be at least 2")
        self.samples, self.occupied_weight = samples, occupied_weight
        self.lejepa = LeJEPA(sigreg=sigreg, weight=weight)
        self.projection = nn.Sequential(
            nn.Linear(channels, channels, bias=False), norm(channels, affine=False)
        )

    def forward(self, e: Embeddings, *, step: int) -> Loss:
        m1, m0 = prediction_error(e)
        w = self.occupied_weight
        prediction = Loss.weighted({"loss/jepa_m1": (w, m1), "loss/jepa_m0": (1 - w, m0)})
        sides = [(e.context, e.masks.visible_occupied), (e.target, e.masks.masked_occupied)]
        embeddings = [
            self.projection(z.permute(0, 2, 3, 1)[random_subset(e.masks.keys, cells, self.samples)])
            for z, cells in sides
        ]
        return self.lejepa(prediction=prediction, embeddings=embeddings, step=step)
