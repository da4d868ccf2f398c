"""Named losses: what a training step returns, and prediction errors averaged over masked positions of all ranks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F

from worldmodel.distributed import at_least_fp32, mean_over_ranks


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise and the numbers it was made from.

    Attributes:
        total: scalar with gradient, the same on every rank.
        parts: unweighted parts and diagnostics by name; detached scalars.
    """

    total: torch.Tensor
    parts: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def weighted(
        cls,
        terms: Mapping[str, tuple[float, torch.Tensor]],
        *,
        also: Mapping[str, torch.Tensor] | None = None,
    ) -> "Loss":
        """Sum of weight times term; the parts are the unweighted terms, detached, and the diagnostics in `also`.

        Raises:
            ValueError: if there is no term, or a name stands in both.
        """
        diagnostics = dict(also or {})
        if not terms or terms.keys() & diagnostics.keys():
            raise ValueError(f"a loss needs terms, and each name once: {[*terms]} and {[*diagnostics]}")
        total = torch.stack([weight * value for weight, value in terms.values()]).sum()
        parts = {name: value.detach() for name, (_, value) in terms.items()}
        return cls(total, parts | {name: value.detach() for name, value in diagnostics.items()})


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `values` where `mask` is true, in fp32, pooled over the samples of all ranks; 0 where none is.

    Args:
        values: [...] float.
        mask: [...] bool, same shape.
    """
    if mask.shape != values.shape:
        raise ValueError(
            f"mask {tuple(mask.shape)} and values {tuple(values.shape)} must have the same shape"
        )
    values = at_least_fp32(values)
    # where() rather than a product: a NaN outside the mask must not reach the sum.
    return mean_over_ranks(torch.where(mask, values, values.new_zeros(())).sum(), mask.sum())


Distance = Literal["cosine", "mse", "l1", "smooth_l1"]


def cosine_distance(*, prediction: torch.Tensor, target: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """1 - cos of two L2-normalised tensors along `dim`, in fp32 (AD-L-JEPA, docs/ad_l_jepa.md, step 6).

    Args:
        prediction, target: [..., D, ...], already normalised along `dim`.
    """
    return 1.0 - (at_least_fp32(prediction) * at_least_fp32(target)).sum(dim)


def feature_distance(
    *, prediction: torch.Tensor, target: torch.Tensor, kind: Distance, dim: int = -1, beta: float = 1.0
) -> torch.Tensor:
    """Distance of two tensors along `dim`, in fp32: shape [...] without it.

    cosine is 1 - cos of the normalised vectors; mse, l1 and smooth_l1 (Huber, over beta) are means over the features,
    so that a weight means the same at every width.

    Args:
        prediction, target: [..., D, ...], the same shape.
        beta: where smooth_l1 turns from quadratic to linear.

    Raises:
        ValueError: if the shapes differ: broadcasting a loss hides a bug.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must have the same shape"
        )
    p, t = at_least_fp32(prediction), at_least_fp32(target)
    if kind == "cosine":
        return cosine_distance(prediction=unit(p, dim), target=unit(t, dim), dim=dim)
    elementwise: dict[str, Callable[[], torch.Tensor]] = {
        "mse": lambda: F.mse_loss(p, t, reduction="none"),
        "l1": lambda: F.l1_loss(p, t, reduction="none"),
        "smooth_l1": lambda: F.smooth_l1_loss(p, t, reduction="none", beta=beta),
    }
    if kind not in elementwise:
        raise ValueError(f"unknown distance {kind!r}: use cosine, {', '.join(elementwise)}")
    return elementwise[kind]().mean(dim)


@dataclass(frozen=True, kw_only=True)
class PredictionError:
    """Objective: the mean distance of prediction and target over masked positions of all ranks, as a named loss.

    The target keeps its gradient if it has one: stop-gradient is the target provider's business.

    Args:
        kind: cosine, mse, l1 or smooth_l1.
        name: of the part.
        dim: axis of the features.
        normalize_target: layer-normalise the target's features (no affine), as I-JEPA does before smooth_l1.
        beta: of smooth_l1.
    """

    kind: Distance = "smooth_l1"
    name: str = "loss/prediction"
    dim: int = -1
    normalize_target: bool = False
    beta: float = 1.0

    def __call__(
        self, *, prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None
    ) -> Loss:
        """Loss of prediction and target [..., D, ...]; mask [...] bool names the positions that count, all without."""
        if self.normalize_target:
            last = at_least_fp32(target).movedim(self.dim, -1)
            target = F.layer_norm(last, last.shape[-1:]).movedim(-1, self.dim)
        distance = feature_distance(
            prediction=prediction, target=target, kind=self.kind, dim=self.dim, beta=self.beta
        )
        if mask is None:
            mask = torch.ones_like(distance, dtype=torch.bool)
        return Loss.weighted({self.name: (1.0, masked_mean(distance, mask))})


def unit(features: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """L2-normalise along `dim` in fp32; a zero vector stays zero and has a finite gradient."""
    return F.normalize(at_least_fp32(features), dim=dim, eps=1e-6)
