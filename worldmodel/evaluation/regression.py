"""R^2 of vector regressions, per component. One pooled R^2 over all components is not offered.

Pooled, the mean over components stands for the prediction to beat, and a constant scores 0.23 on the quaternions of
3DIEBench, where w has a mean of 0.53 and x, y, z of 0.
"""

import torch


def r2_components(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - sum of squared errors / sum of squares about the mean, of each component: [C] float64.

    scikit-learn's r2_score with multioutput="raw_values", except that a component that does not vary is NaN. The mean
    of the targets scores 0, any other constant less.

    Args:
        prediction, target: [N, C].

    Raises:
        ValueError: if the shapes differ, there are fewer than two rows, or a number is not finite.
    """
    if target.ndim != 2 or prediction.shape != target.shape or len(target) < 2:
        raise ValueError(
            f"expected predictions and targets [N, C] with N >= 2, got {tuple(prediction.shape)} and "
            f"{tuple(target.shape)}"
        )
    p, t = prediction.double(), target.double()
    if not bool(p.isfinite().all() and t.isfinite().all()):
        raise ValueError("predictions or targets hold NaN or infinite numbers")
    spread = (t - t.mean(0)).square().sum(0)
    score = 1 - (p - t).square().sum(0) / spread
    return torch.where(spread > 0, score, torch.nan)


def r2(prediction: torch.Tensor, target: torch.Tensor, *, min_variance: float = 1e-4) -> float:
    """Mean of `r2_components` over the components whose target varies by more than `min_variance`.

    Below it a component (x and y of rotations in the plane) has no signal, and rounding would decide its score.

    Raises:
        ValueError: as `r2_components`, or if no component varies.
    """
    score = r2_components(prediction, target)
    varies = target.double().var(0, correction=0) > min_variance
    if not bool(varies.any()):
        raise ValueError(
            f"no component of the target has a variance above {min_variance:g}: nothing to predict, or units too large"
        )
    return float(score[varies].mean())
