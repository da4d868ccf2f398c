"""The contracts between models and the code that trains and uses them; nothing more abstract than these."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from worldmodel.batches import LatentState
from worldmodel.objectives import Loss


@runtime_checkable
class Task(Protocol):
    """What the training loop sees of a model: an nn.Module with these methods.

    Its `parameters()` that require a gradient are optimised, its `state_dict()` is the checkpoint.
    """

    def training_step(self, batch: Any, step: int) -> Loss:
        """Loss of one micro-batch. Random draws are functions of the batch's seeds and `step`."""
        ...

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        """Called after the optimiser step number `step` (from 0): EMA updates. Returns numbers to log."""
        ...

    def monitors(self, batches: Sequence[Any]) -> dict[str, float]:
        """Health of the representation on held-out batches. Leaves the model bit-identical.

        Raises:
            RepresentationCollapse: if training on makes no sense.
        """
        ...


class RepresentationCollapse(RuntimeError):
    """Embeddings no longer depend on the input."""


class MaskSampler(Protocol):
    """Chooses what the context encoder sees."""

    def __call__(self, occupied: torch.Tensor, *, seeds: Sequence[int]) -> Any: ...


@runtime_checkable
class WorldModel(Protocol):
    """What planners and evaluations see of a world model.

    A model may also have `rollout_candidates(state, candidates [B, K, H, A], workspace) -> [B, K, H, ...]`, without
    gradients: the same as `rollout` for K candidates per row of the state, which share where they start. Planners use
    it for speed; with a `worldmodel.nn.dynamics.Workspace` a call may overwrite what the one before returned.
    """

    def encode(self, observations: torch.Tensor) -> torch.Tensor:
        """Latents [B, T, ...] of observations [B, T, ...], each from its own observation alone."""
        ...

    def rollout(self, state: LatentState, future: torch.Tensor) -> torch.Tensor:
        """Imagined latents [B, H, ...] for future actions [B, H, A]; future[:, 0] leads on from the newest latent.

        Differentiable in the actions. Imagining H steps equals imagining them one after another.
        """
        ...
