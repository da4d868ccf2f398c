"""Where the prediction target comes from: an exponential moving average of the encoder, or the encoder itself."""

import copy
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn


def linear_momentum(*, start: float, progress: float) -> float:
    """Momentum that rises linearly from `start` at progress 0 to 1 at progress 1 (docs/ad_l_jepa.md, step 7)."""
    return start + (1.0 - start) * progress


def cosine_momentum(*, start: float, progress: float) -> float:
    """Momentum that rises along half a cosine from `start` at progress 0 to 1 at progress 1 (arXiv 2006.07733)."""
    return 1.0 - (1.0 - start) * (math.cos(math.pi * progress) + 1.0) / 2.0


_MOMENTA: dict[str, Callable[..., float]] = {"linear": linear_momentum, "cosine": cosine_momentum}


class EMATarget(nn.Module):
    """A teacher whose parameters follow the context encoder: theta_bar <- m theta_bar + (1 - m) theta.

    In training the teacher normalises with the batch statistics of what it sees, so its BatchNorm buffers matter only
    to whoever uses it afterwards: its own (AD-L-JEPA, docs/ad_l_jepa.md, step 7) or the context encoder's.

    Args:
        encoder: copied; the copy receives no gradient.
        momentum: m at the first update, in [0, 1]; rises to 1 over the run.
        schedule: how it rises.
        copy_buffers: take over the context encoder's buffers at every update.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        momentum: float,
        schedule: Literal["linear", "cosine"] = "linear",
        copy_buffers: bool = False,
    ) -> None:
        super().__init__()
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"EMA momentum must lie in [0, 1], got {momentum}")
        if schedule not in _MOMENTA:
            raise ValueError(f"the EMA schedule is {' or '.join(_MOMENTA)}, got {schedule!r}")
        self.momentum, self.schedule, self.copy_buffers = momentum, schedule, copy_buffers
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)

    @torch.no_grad()
    def update(self, encoder: nn.Module, *, progress: float) -> float:
        """Move the teacher after an optimiser step; progress is (steps done before it) / (steps in all)."""
        momentum = _MOMENTA[self.schedule](start=self.momentum, progress=progress)
        own = [p.data for p in self.encoder.parameters()]
        other = [p.data for p in encoder.parameters()]
        torch._foreach_lerp_(own, other, 1.0 - momentum)
        if self.copy_buffers:
            for mine, its in zip(self.encoder.buffers(), encoder.buffers(), strict=True):
                mine.copy_(its)
        return momentum

    def forward(self, encoder: nn.Module, inputs: object) -> torch.Tensor:
        """Features of the teacher, without gradient; `encoder` is not used."""
        with torch.no_grad():
            return self.encoder(inputs)


class SharedTarget(nn.Module):
    """The context encoder is its own target and the gradient flows through both (LeJEPA): no teacher, no EMA."""

    def update(self, encoder: nn.Module, *, progress: float) -> None:
        """Nothing to update."""

    def forward(self, encoder: nn.Module, inputs: object) -> torch.Tensor:
        """Features of the context encoder, with gradient."""
        return encoder(inputs)
