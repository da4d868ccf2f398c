"""The space of allowed actions, and the projection into it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class ActionBounds:
    """Bounds of one environment action, which hold for each of the `block` actions a world model takes at once.

    Attributes:
        low, high: box [A], float32; infinite where there is none.
        max_norm: bound of the Euclidean norm of an environment action, or None. The box must then hold zero, so that
            shortening an action keeps it in the box.
        block: environment actions joined to one action of the world model.

    Raises:
        ValueError: if the bounds contradict each other or one is NaN.
    """

    low: torch.Tensor
    high: torch.Tensor
    max_norm: float | None = None
    block: int = 1

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float32))
        low, high = self.low, self.high
        if low.ndim != 1 or low.shape != high.shape or not len(low) or not bool((low <= high).all()):
            raise ValueError(f"bounds are two vectors [A] with low <= high, got {low} and {high}")
        if self.max_norm is not None and not self.max_norm > 0:
            raise ValueError(f"max_norm must be positive, got {self.max_norm}")
        if self.max_norm is not None and not bool(((low <= 0) & (high >= 0)).all()):
            raise ValueError(f"with max_norm the box must hold zero, got {low} and {high}")
        if self.block < 1:
            raise ValueError(f"a block holds at least 1 action, got {self.block}")

    @classmethod
    def from_spec(cls, spec: Any, block: int = 1) -> "ActionBounds":
        """Bounds of an action specification: anything with `low` [A], `high` [A] and `max_norm` (envs.ActionSpec).

        Args:
            spec: of one environment action, not of a block.
            block: environment actions per action of the world model.
        """
        return cls(low=spec.low, high=spec.high, max_norm=spec.max_norm, block=block)

    @cached_property
    def _box(self) -> tuple[Any, Any] | None:
        """The box of a whole block; two numbers where all sides are equal, which are clamped to much faster."""
        low, high = self.low, self.high
        if not bool((low.isfinite() | high.isfinite()).any()):
            return None
        if bool((low == low[0]).all()) and bool((high == high[0]).all()):
            return float(low[0]), float(high[0])
        return low.repeat(self.block), high.repeat(self.block)

    @property
    def dim(self) -> int:
        """Width of an action of the world model, block * A."""
        return self.block * len(self.low)

    def to(self, device: torch.device | str) -> "ActionBounds":
        """The same bounds on another device."""
        if self.low.device == torch.device(device):
            return self
        return ActionBounds(
            low=self.low.to(device), high=self.high.to(device), max_norm=self.max_norm, block=self.block
        )

    def project(self, actions: torch.Tensor) -> torch.Tensor:
        """The actions [..., block * A] with each environment action clipped to the box, then shortened to max_norm.

        Raises:
            ValueError: if the last axis is not block * A.
        """
        if actions.shape[-1] != self.dim:
            raise ValueError(
                f"actions end in {self.dim} numbers (block {self.block} x {len(self.low)}), got "
                f"{tuple(actions.shape)}"
            )
        if self._box is not None:
            actions = torch.clamp(actions, *self._box)
        if self.max_norm is None:
            return actions
        each = actions.unflatten(-1, (self.block, -1))
        norm = each.norm(dim=-1, keepdim=True)
        # The tiny factor keeps float32 rounding of the product on the inner side of the bound.
        short = self.max_norm * (1 - 1e-6) / norm.clamp(min=self.max_norm)
        return (each * short.where(norm > self.max_norm, 1.0)).flatten(-2)

    def initial_spread(self, spread: float | Sequence[float] | None) -> torch.Tensor:
        """Standard deviation [block * A] of a search: one number or one per dimension of an action, or the default.

        Raises:
            ValueError: if it is not positive or has another length.
        """
        each = self.default_spread() if spread is None else torch.as_tensor(spread, dtype=torch.float32)
        each = each.expand(len(self.low)) if each.ndim == 0 else each
        if each.shape != self.low.shape or not bool((each > 0).all()):
            raise ValueError(f"the spread is positive, one number or one per action dimension, got {spread}")
        return each.repeat(self.block)

    def default_spread(self) -> torch.Tensor:
        """Standard deviation [A] to start a search with: half the box, at most max_norm; 1 where unbounded."""
        half = (self.high - self.low) / 2
        half = torch.where(half.isfinite(), half, torch.full_like(half, math.inf))
        if self.max_norm is not None:
            half = half.clamp(max=self.max_norm)
        return torch.where(half.isfinite(), half, torch.ones_like(half))


def changed_share(actions: torch.Tensor, projected: torch.Tensor) -> float:
    """Share of the numbers of the actions that a projection has changed."""
    return int(torch.ne(actions, projected).count_nonzero()) / actions.numel()
