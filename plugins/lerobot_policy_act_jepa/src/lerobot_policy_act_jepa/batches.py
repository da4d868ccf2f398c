"""LeRobot's dictionaries of tensors as what policies see and learn from. Values are normalised already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from policies.imitation.batches import ChunkBatch, ObservationError, PolicyObservation
from policies.imitation.interface import Interface

STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which entries of a batch a policy reads.

    Attributes:
        interface: of the policy; an environment is read where it has one.
        camera: key of its images, or None for none.
        image_stride: steps between the frames of image targets, or None where no frame is predicted.
    """

    interface: Interface
    camera: str | None = None
    image_stride: int | None = None

    def observation(self, batch: Mapping[str, Any]) -> PolicyObservation:
        """The current step of a batch, that of a rollout [B, ...] or the first of T in one for training [B, T, ...].

        Raises:
            ObservationError: if a part is missing or the policy does not know a task.
        """
        state = _current(_entry(batch, STATE), axes=2)
        environment = None
        if self.interface.environment_dim is not None:
            environment = _current(_entry(batch, ENVIRONMENT), axes=2)
        image = None if self.camera is None else _current(_entry(batch, self.camera), axes=4)
        return PolicyObservation(
            state=state, environment=environment, image=image, task=self._tasks(batch, state)
        )

    def chunk(self, batch: Mapping[str, Any]) -> ChunkBatch:
        """The stretches of a batch for training: states [B, T, Ds], actions [B, C, Da] and their `_is_pad`.

        Raises:
            ObservationError: if a part is missing or has another shape, or the policy does not know a task.
        """
        now, state, action = self.observation(batch), _entry(batch, STATE), _entry(batch, ACTION)
        # Both end with the episode: the longer mask begins with the shorter one.
        pads = (_entry(batch, f"{STATE}_is_pad"), _entry(batch, f"{ACTION}_is_pad"))
        frames = None
        if self.camera is not None and self.image_stride is not None:
            frames = _entry(batch, self.camera)[:, :: self.image_stride]
        return ChunkBatch(
            state=state,
            environment=now.environment,
            image=now.image,
            action=action,
            is_pad=max(pads, key=lambda pad: pad.shape[1]),
            has_action=torch.ones(len(state), dtype=torch.bool, device=state.device),
            task=now.task,
            seeds=tuple(_entry(batch, "index").flatten().tolist()),
            images=frames,
        )

    def _tasks(self, batch: Mapping[str, Any], state: torch.Tensor) -> torch.Tensor:
        """Task indices [B]. A policy of one task does not look at names: environments often give none."""
        if len(self.interface.tasks) == 1:
            return torch.zeros(len(state), dtype=torch.int64, device=state.device)
        names: Sequence[str] | None = batch.get("task")
        if names is None or len(names) != len(state):
            raise ObservationError(
                f'a policy of {len(self.interface.tasks)} tasks needs batch["task"], the name of the task of each of '
                f"the {len(state)} rows, got {names}"
            )
        return torch.tensor([self.interface.task_index(name) for name in names], device=state.device)


def _entry(batch: Mapping[str, Any], key: str) -> torch.Tensor:
    if key not in batch:
        raise ObservationError(
            f"the batch has no {key!r}, only {', '.join(sorted(batch))}: training data come from a LeRobotDataset with "
            f"the delta timestamps of the policy's config, observations have the names of its input_features"
        )
    return batch[key]


def _current(value: torch.Tensor, *, axes: int) -> torch.Tensor:
    """Step 0 of [B, T, ...]; a value with `axes` axes has no time."""
    return value[:, 0] if value.ndim == axes + 1 else value
