"""Schedules as pure functions of the step: a resumed run continues them without any state."""

import math
from dataclasses import dataclass
from typing import Protocol


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


class Schedule(Protocol):
    """Learning rate and beta1 of Adam by step."""

    @property
    def max_lr(self) -> float: ...

    def at(self, step: int, total: int) -> tuple[float, float]:
        """(learning rate, beta1) of the optimiser step number `step`, counted from 0, of `total`."""
        ...


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Linear warm-up over `warmup` steps from `start_lr` to max_lr, then cosine to `end_lr`; beta1 is constant.

    seq-JEPA (arXiv 2505.03176, A.2) takes 1e-5 for both ends and warms up for 20 of 1000 epochs.
    """

    max_lr: float
    warmup: int = 100
    start_lr: float = 0.0
    end_lr: float = 0.0
    beta1: float = 0.9

    def __post_init__(self) -> None:
        if not (self.max_lr > 0 and self.warmup >= 0 and min(self.start_lr, self.end_lr) >= 0):
            raise ValueError(f"max_lr must be positive and warmup, start_lr and end_lr not negative: {self}")

    def at(self, step: int, total: int) -> tuple[float, float]:
        """(learning rate, beta1) of the optimiser step number `step`, counted from 0, of `total`."""
        if step < self.warmup:
            return self.start_lr + (self.max_lr - self.start_lr) * (step + 1) / self.warmup, self.beta1
        share = (step - self.warmup) / max(1, total - self.warmup)
        return _cosine(self.max_lr, self.end_lr, share), self.beta1


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """One-cycle learning rate with the opposite cycle of Adam's beta1 (AD-L-JEPA's recipe, docs/ad_l_jepa.md).

    Cosine from max_lr / start_div to max_lr over the first `warmup` of the run, then cosine to
    max_lr / start_div / final_div; beta1 runs high, low, high on the same phases.
    """

    max_lr: float
    start_div: float = 10.0
    final_div: float = 1e4
    warmup: float = 0.4
    beta1_high: float = 0.95
    beta1_low: float = 0.85

    def __post_init__(self) -> None:
        if not (self.max_lr > 0 and self.start_div > 0 and self.final_div > 0 and 0 < self.warmup < 1):
            raise ValueError(f"max_lr, start_div, final_div must be positive and warmup in (0, 1): {self}")

    def at(self, step: int, total: int) -> tuple[float, float]:
        """(learning rate, beta1) of the optimiser step number `step`, counted from 0, of `total`."""
        progress = step / total
        low = self.max_lr / self.start_div
        if progress < self.warmup:
            share = progress / self.warmup
            return _cosine(low, self.max_lr, share), _cosine(self.beta1_high, self.beta1_low, share)
        share = (progress - self.warmup) / (1 - self.warmup)
        return (
            _cosine(self.max_lr, low / self.final_div, share),
            _cosine(self.beta1_low, self.beta1_high, share),
        )
