"""Where the prediction target comes from: an exponential moving average of the encoder, or the encoder itself."""

import copy

import torch
from torch import nn


def linear_momentum(*, start: float, progress: float) -> float:
    """Momentum that rises linearly from `start` at progress 0 to 1 at progress 1 (docs/ad_l_jepa.md, step 7)."""
    return start + (1.0 - start) * progress


class EMATarget(nn.Module):
    """A teacher whose parameters follow the context encoder: theta_bar <- m theta_bar + (1 - m) theta.

    Parameters only: the teacher's BatchNorm statistics are its own and it stays in train mode, so it normalises with
    the statistics of what it sees (docs/ad_l_jepa.md, step 7).

    Args:
        encoder: copied; the copy receives no gradient.
        momentum: m at the first update, in [0, 1]; rises linearly to 1 over the run.
    """

    def __init__(self, encoder: nn.Module, *, momentum: float) -> None:
        super().__init__()
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"EMA momentum must lie in [0, 1], got {momentum}")
        self.momentum = momentum
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)

    @torch.no_grad()
    def update(self, encoder: nn.Module, *, progress: float) -> float:
        """Move the teacher after an optimiser step; progress is (steps done before it) / (steps in all)."""
        momentum = linear_momentum(start=self.momentum, progress=progress)
        own = [p.data for p in self.encoder.parameters()]
        other = [p.data for p in encoder.parameters()]
        torch._foreach_lerp_(own, other, 1.0 - momentum)
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
