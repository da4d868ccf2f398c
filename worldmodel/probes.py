"""Frozen-feature evaluation: a linear softmax probe and average precision."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """A fitted softmax classifier on standardised features: logits = ((x - mean) / std) weight + bias."""

    mean: torch.Tensor
    std: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Class probabilities [N, K] of features [N, D]."""
        x = (features.double() - self.mean) / self.std
        return torch.softmax(x @ self.weight + self.bias, dim=1)


def fit_linear_probe(
    features: torch.Tensor, labels: torch.Tensor, *, num_classes: int, l2: float = 1e-3, iterations: int = 100
) -> LinearProbe:
    """Fit by L-BFGS in float64: mean cross-entropy + l2 / 2 |weight|^2. Convex, so the result has no seed.

    The search runs in the principal axes of the features, each scaled by its curvature. Features of a collapsed encoder
    are nearly collinear, and without this the search stops far from the optimum on just those.

    Args:
        features: [N, D]; standardised with their own mean and standard deviation.
        labels: [N] int64 in 0..num_classes-1; classes may be absent.
        l2: penalty, positive.
    """
    if l2 <= 0:
        raise ValueError(f"l2 must be positive, got {l2}: separable classes have no optimum without it")
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(features) == 0:
        raise ValueError(
            f"expected features [N, D] and labels [N], got {tuple(features.shape)}, {tuple(labels.shape)}"
        )
    x = features.double()
    mean, std = x.mean(0), x.std(0, correction=0).clamp_min(1e-8)
    x = (x - mean) / std
    energy, axes = torch.linalg.eigh(x.T @ x / len(x))
    scale = (energy.clamp_min(0) / num_classes + l2).rsqrt().unsqueeze(1)  # weight = axes @ (scale * u)
    x = x @ axes * scale.T
    u = torch.zeros(x.shape[1], num_classes, dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [u, bias],
        max_iter=iterations,
        tolerance_grad=1e-8,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = F.cross_entropy(x @ u + bias, labels) + 0.5 * l2 * (scale * u).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    weight = axes @ (scale * u.detach())
    return LinearProbe(mean=mean, std=std, weight=weight, bias=bias.detach())


def average_precision(scores: torch.Tensor, positives: torch.Tensor) -> float:
    """Area under the precision-recall steps, sum over n of (R_n - R_{n-1}) P_n; equal scores form one step.

    Args:
        scores: [N], higher is more positive.
        positives: [N] bool.

    Returns:
        A number in [0, 1]; NaN without positives. A constant score gives the share of positives.

    Raises:
        ValueError: if a score is NaN or the shapes differ.
    """
    if scores.ndim != 1 or positives.shape != scores.shape:
        raise ValueError(f"expected [N] and [N], got {tuple(scores.shape)} and {tuple(positives.shape)}")
    if bool(scores.isnan().any()):
        raise ValueError("scores hold NaN: they have no order")
    total = int(positives.sum())
    if total == 0:
        return float("nan")
    order = scores.argsort(descending=True, stable=True)
    ranked, hits = scores[order], positives[order].double().cumsum(0)
    step_end = torch.ones_like(ranked, dtype=torch.bool)
    step_end[:-1] = ranked[1:] != ranked[:-1]
    found = hits[step_end]
    retrieved = torch.arange(1, len(scores) + 1, dtype=torch.float64, device=scores.device)[step_end]
    recall = found / total
    gained = torch.diff(recall, prepend=recall.new_zeros(1))
    return float((gained * found / retrieved).sum())


def mean_average_precision(scores: torch.Tensor, labels: torch.Tensor, *, classes: tuple[int, ...]) -> float:
    """Mean of the one-against-rest average precisions of the named classes that occur in `labels`."""
    values = [average_precision(scores[:, c], labels == c) for c in classes if bool((labels == c).any())]
    return sum(values) / len(values) if values else float("nan")
