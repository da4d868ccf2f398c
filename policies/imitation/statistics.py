"""Normalisation statistics that live inside the checkpoint; a policy without them refuses to work."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from envs.demonstrations import Demonstration
from policies.imitation.batches import ChunkBatch, History, ObservationError, PolicyObservation

ENVIRONMENT_FLOOR = 1e-2


class MissingStatistics(RuntimeError):
    """A policy was used before its normalisation statistics were measured or loaded."""


class Statistics(nn.Module):
    """Mean and standard deviation of state, environment and action, and the bounds of actions, as buffers.

    A new one holds NaN until `measured` fills it or a checkpoint is loaded. Images are left to their encoder.

    Args:
        state_dim, action_dim: Ds, Da.
        environment_dim: De, or None.
    """

    state_mean: torch.Tensor
    state_std: torch.Tensor
    action_mean: torch.Tensor
    action_std: torch.Tensor
    action_low: torch.Tensor
    action_high: torch.Tensor
    environment_mean: torch.Tensor | None
    environment_std: torch.Tensor | None

    def __init__(self, *, state_dim: int, action_dim: int, environment_dim: int | None = None) -> None:
        super().__init__()
        self._complete = False
        widths = {"state": state_dim, "action": action_dim, "environment": environment_dim}
        for name, width in widths.items():
            for what in ("mean", "std"):
                unknown = None if width is None else torch.full((width,), torch.nan)
                self.register_buffer(f"{name}_{what}", unknown)
        for edge in ("low", "high"):
            self.register_buffer(f"action_{edge}", torch.full((action_dim,), torch.nan))

    @classmethod
    def measured(
        cls,
        demonstrations: Sequence[Demonstration],
        *,
        action_low: np.ndarray,
        action_high: np.ndarray,
        action_free: Collection[int] = (),
    ) -> "Statistics":
        """Statistics of all steps of the training demonstrations.

        What does not vary gets a standard deviation of 1 (environment: at least 0.01): rounding is not blown up.

        Args:
            demonstrations: of the training split only.
            action_low, action_high: [Da], bounds of the environment; infinite where there is none.
            action_free: indices of demonstrations whose actions are not to be read.

        Raises:
            ValueError: if there are none, or their parts or widths differ.
        """
        if not demonstrations:
            raise ValueError("statistics need demonstrations: the training split is empty")
        labelled = [d.action for i, d in enumerate(demonstrations) if i not in action_free]
        if not labelled:
            raise ValueError("statistics of actions need at least one demonstration with actions")
        parts = {
            "state": _joined([d.state for d in demonstrations], "state"),
            "environment": _joined([d.environment for d in demonstrations], "environment"),
            "action": _joined(labelled, "action"),
        }
        state, environment, action = parts.values()
        assert state is not None
        assert action is not None
        made = cls(
            state_dim=state.shape[1],
            action_dim=action.shape[1],
            environment_dim=None if environment is None else environment.shape[1],
        )
        for name, rows in parts.items():
            if rows is not None:
                std = rows.std(0)
                std = (
                    np.maximum(std, ENVIRONMENT_FLOOR)
                    if name == "environment"
                    else np.where(std > 1e-6, std, 1)
                )
                getattr(made, f"{name}_mean").copy_(torch.from_numpy(rows.mean(0)))
                getattr(made, f"{name}_std").copy_(torch.from_numpy(std))
        made.set_bounds(action_low, action_high)
        return made

    @classmethod
    def identity(
        cls, *, action_low: np.ndarray, action_high: np.ndarray, state_dim: int, environment_dim: int | None
    ) -> "Statistics":
        """No normalisation, as the released code on Meta-World and ManiSkill."""
        made = cls(state_dim=state_dim, action_dim=len(action_low), environment_dim=environment_dim)
        for name, buffer in made.named_buffers():
            buffer.fill_(1.0 if name.endswith("std") else 0.0)
        made.set_bounds(action_low, action_high)
        return made

    def set_bounds(self, low: np.ndarray, high: np.ndarray) -> None:
        """Bounds [Da] that denormalised actions are clipped to.

        Raises:
            ValueError: if they have another width, contradict each other or hold NaN.
        """
        low, high = np.asarray(low, dtype=np.float32), np.asarray(high, dtype=np.float32)
        if low.shape != tuple(self.action_low.shape) or low.shape != high.shape or not (low <= high).all():
            raise ValueError(
                f"bounds of actions are two vectors [{len(self.action_low)}] with low <= high, got {low} and {high}"
            )
        # Checkpoints hold no infinite number: the largest finite one bounds nothing either.
        self.action_low.copy_(torch.from_numpy(np.nan_to_num(low)))
        self.action_high.copy_(torch.from_numpy(np.nan_to_num(high)))

    def require(self) -> None:
        """Raise MissingStatistics unless all are there."""
        if self._complete:  # what was there stays there; looking again would wait for a GPU at every step
            return
        missing = [name for name, buffer in self.named_buffers() if bool(buffer.isnan().any())]
        if missing:
            raise MissingStatistics(
                f"no normalisation statistics ({', '.join(missing)}): measure them on the training demonstrations "
                f"(Statistics.measured), or load a checkpoint that holds them"
            )
        self._complete = True

    def normalise(self, observation: PolicyObservation) -> PolicyObservation:
        """z-scores in place of state, environment and history."""
        past = observation.history
        if past is not None:
            past = History(
                state=self._z("state", past.state),
                environment=None if past.environment is None else self._z("environment", past.environment),
                image=past.image,
                action=self._z("action", past.action),
                count=past.count,
            )
        environment = observation.environment
        return replace(
            observation,
            state=self._z("state", observation.state),
            environment=None if environment is None else self._z("environment", environment),
            history=past,
        )

    def normalise_batch(self, batch: ChunkBatch) -> ChunkBatch:
        """z-scores in place of states, environments and actions."""
        environment, environments = batch.environment, batch.environments
        return replace(
            batch,
            state=self._z("state", batch.state),
            action=self._z("action", batch.action),
            environment=None if environment is None else self._z("environment", environment),
            environments=None if environments is None else self._z("environment", environments),
        )

    def executable(self, action: torch.Tensor) -> torch.Tensor:
        """Actions [..., Da] of z-scores: back to the units of the environment, and only then clipped to its bounds."""
        raw = action * self.action_std + self.action_mean
        return torch.maximum(torch.minimum(raw, self.action_high), self.action_low)

    def _z(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return (value - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_std")


def _joined(rows: Sequence[np.ndarray | None], name: str) -> np.ndarray | None:
    """Rows [N, D] float64 of all demonstrations, None if none has them."""
    there = [r for r in rows if r is not None]
    if there and (len(there) != len(rows) or len({r.shape[1] for r in there}) != 1):
        widths = sorted({"none" if r is None else str(r.shape[1]) for r in rows})
        raise ObservationError(f"demonstrations differ in the width of {name}: {', '.join(widths)}")
    return np.concatenate(there).astype(np.float64) if there else None
