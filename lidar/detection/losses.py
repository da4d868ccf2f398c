"""Losses of detection heads, element by element and in fp32; the heads choose what they are divided by."""

import torch
import torch.nn.functional as F

from worldmodel.distributed import at_least_fp32

HEADING = 6  # column of a box and of its residual code


def sigmoid_focal(
    logits: torch.Tensor, target: torch.Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> torch.Tensor:
    """Focal loss (Lin et al. 2017, eq. 5) of logits against targets 0 or 1, the same shape [...]."""
    logits = at_least_fp32(logits)
    target = target.to(logits.dtype)
    p = logits.sigmoid()
    wrong = torch.where(target > 0.5, 1 - p, p)
    weight = torch.where(target > 0.5, alpha, 1 - alpha) * wrong**gamma
    return weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def residual_smooth_l1(
    prediction: torch.Tensor, target: torch.Tensor, *, beta: float = 1 / 9
) -> torch.Tensor:
    """Smooth L1 [..., 7] of residual codes [..., 7], the heading by the sine of its error (SECOND, eq. 5).

    The pair of headings (p, t) is replaced by (sin p cos t, cos p sin t), whose difference is sin(p - t): a box
    turned by pi costs nothing, the direction classifier tells front from back.
    """
    prediction, target = at_least_fp32(prediction), at_least_fp32(target)
    p, t = prediction[..., HEADING], target[..., HEADING]
    error = prediction - target
    error = torch.cat([error[..., :HEADING], (p - t).sin().unsqueeze(-1), error[..., HEADING + 1 :]], dim=-1)
    return F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=beta)


def gaussian_focal(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Penalty-reduced focal loss [...] of heat-map logits against targets in 0..1 (CornerNet, eq. 1).

    With p = sigmoid(logits) kept within [1e-4, 1 - 1e-4]: -log(p) (1 - p)^2 where the target is exactly 1, elsewhere
    -log(1 - p) p^2 (1 - target)^4.
    """
    p = at_least_fp32(logits).sigmoid().clamp(1e-4, 1 - 1e-4)
    at_peak = -p.log() * (1 - p).square()
    elsewhere = -(1 - p).log() * p.square() * (1 - target) ** 4
    return torch.where(target == 1, at_peak, elsewhere)


def known_l1(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """|prediction - target| [...], 0 with a gradient of 0 where the target is NaN: not known."""
    prediction, target = at_least_fp32(prediction), at_least_fp32(target)
    known = ~target.isnan()
    # where() before the subtraction: the gradient of a NaN, masked afterwards, is still NaN.
    return (prediction - torch.where(known, target, prediction.detach())).abs() * known
