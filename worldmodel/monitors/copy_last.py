"""The chance level of a world model: its prediction error against that of copying the last latent."""

import math
from dataclasses import dataclass

import torch

from worldmodel.monitors.moments import as_float64, summed


@dataclass(frozen=True, kw_only=True)
class CopyLastSummary:
    """Mean squared errors over the positions of all ranks.

    Attributes:
        count: positions.
        error: mean |prediction - target|^2.
        copy_error: mean |last - target|^2, the error of predicting that nothing changes.
        ratio: error / copy_error. 1 is chance; equal errors are 1 also where both are 0 (targets that never change),
            and an error against a perfect copy is infinite. NaN if a latent was not finite.
    """

    count: int
    error: float
    copy_error: float
    ratio: float


class CopyLast:
    """Streaming ratio of the prediction error to that of copying the last latent, exact over batches and ranks."""

    def __init__(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64)

    @torch.no_grad()
    def update(
        self,
        *,
        prediction: torch.Tensor,
        target: torch.Tensor,
        last: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> None:
        """Add predictions.

        Args:
            prediction, target: [..., D] latents.
            last: the last latent that the predictor saw, broadcastable to them: [B, 1, D] for a horizon [B, H, D].
            mask: [...] bool, positions that count; the others may hold anything. None: all.
        """
        if prediction.shape != target.shape or prediction.ndim < 2:
            raise ValueError(
                f"prediction and target must share a shape [..., D], got {tuple(prediction.shape)} and "
                f"{tuple(target.shape)}"
            )
        try:
            last = last.expand_as(target)
        except RuntimeError:
            raise ValueError(
                f"last {tuple(last.shape)} cannot be broadcast to the targets {tuple(target.shape)}"
            ) from None
        if mask is None:
            mask = torch.ones(target.shape[:-1], dtype=torch.bool, device=target.device)
        if mask.dtype != torch.bool or mask.shape != target.shape[:-1]:
            raise ValueError(
                f"expected a bool mask of shape {tuple(target.shape[:-1])}, got {mask.dtype} {tuple(mask.shape)}"
            )
        goal = as_float64(target[mask])
        errors = [(as_float64(guess[mask]) - goal).square().sum() for guess in (prediction, last)]
        self._sums = self._sums.to(goal.device) + torch.stack([*errors, goal.new_tensor(float(len(goal)))])

    def compute(self) -> CopyLastSummary:
        """The ratio over everything seen on all ranks; every rank must call.

        Raises:
            ValueError: if no position was seen.
        """
        error, copy_error, count = summed([self._sums])[0].tolist()
        if count < 1:
            raise ValueError("the copy-last baseline was never updated with a position that counts")
        if not math.isfinite(error + copy_error):
            ratio = math.nan
        elif error == copy_error:
            ratio = 1.0
        else:
            ratio = error / copy_error if copy_error > 0 else math.inf
        return CopyLastSummary(
            count=int(count), error=error / count, copy_error=copy_error / count, ratio=ratio
        )
