"""What all imitation policies have in common: the contract of their networks, checks, units, and the training task."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from policies.imitation.batches import ChunkBatch, ObservationError, PolicyObservation
from policies.imitation.statistics import Statistics
from worldmodel.distributed import at_least_fp32
from worldmodel.objectives import Loss, masked_mean
from worldmodel.planning.noise import generators

Noise = torch.Generator | Sequence[torch.Generator] | None


class ChunkError(ValueError):
    """A batch holds chunks of another length than the policy predicts."""


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What goes into a policy and comes out of it.

    Attributes:
        state_dim, action_dim: Ds, Da.
        chunk: C, actions predicted at once.
        tasks: names, whose place is the task index.
        environment_dim: De, or None for none.
        image_size: (height, width), or None for none.
    """

    state_dim: int
    action_dim: int
    chunk: int
    tasks: tuple[str, ...]
    environment_dim: int | None = None
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if min(self.state_dim, self.action_dim, self.chunk) < 1 or not self.tasks:
            raise ValueError(
                f"widths and chunk are at least 1 and a policy has at least one task, got {self}"
            )
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"a task stands twice in {self.tasks}")

    def task_index(self, name: str) -> int:
        """Place of a task.

        Raises:
            ObservationError: naming the tasks there are.
        """
        if name not in self.tasks:
            raise ObservationError(f"this policy has no task {name!r}, only {', '.join(self.tasks)}")
        return self.tasks.index(name)

    def check(self, observation: PolicyObservation) -> None:
        """Raise ObservationError if a part is missing, not expected, of another shape or not finite."""
        self._check_shapes(observation)
        for name in ("state", "environment"):
            value = getattr(observation, name)
            if value is not None and not bool(value.isfinite().all()):
                row = int((~value.isfinite()).flatten(1).any(1).nonzero()[0])
                raise ObservationError(f"{name} of row {row} holds NaN or infinite numbers")
        if len(observation) and not 0 <= int(observation.task.min()) <= int(observation.task.max()) < len(
            self.tasks
        ):
            raise ObservationError(f"task indices must lie in 0..{len(self.tasks) - 1}")

    def check_batch(self, batch: ChunkBatch) -> None:
        """Raise ObservationError or ChunkError if a batch does not fit; no number is looked at."""
        self._check_shapes(batch.observation)
        if batch.action.shape[1] != self.chunk:
            raise ChunkError(
                f"the batch holds chunks of {batch.action.shape[1]} actions, the policy predicts {self.chunk}: give "
                f"the data set chunk={self.chunk}"
            )
        if batch.action.shape[2] != self.action_dim:
            raise ObservationError(
                f"actions have {batch.action.shape[2]} numbers, the policy's have {self.action_dim}"
            )

    def _check_shapes(self, observation: PolicyObservation) -> None:
        image = None if self.image_size is None else (3, *self.image_size)
        environment = None if self.environment_dim is None else (self.environment_dim,)
        expected = {"state": (self.state_dim,), "environment": environment, "image": image}
        for name, shape in expected.items():
            value = getattr(observation, name)
            if value is None and shape is not None:
                raise ObservationError(f"the policy sees {name} {list(shape)}, but the observation has none")
            if value is not None and shape is None:
                raise ObservationError(f"the policy was built without {name}, but the observation has one")
            if value is not None and tuple(value.shape[1:]) != shape:
                raise ObservationError(
                    f"{name} must be {list(shape or ())} per row, got {list(value.shape[1:])}"
                )


class ChunkNetwork(Protocol):
    """What is specific to a policy; an nn.Module that sees z-scores only."""

    def loss(self, batch: ChunkBatch, step: int) -> Loss:
        """Loss of a normalised batch. Dropout apart, random draws are functions of the batch's seeds and `step`."""
        ...

    def sample(self, observation: PolicyObservation, noise: Noise) -> torch.Tensor:
        """Normalised actions [B, C, Da], fewer than C for a policy with a memory."""
        ...

    def memory(self, observation: PolicyObservation) -> torch.Tensor:
        """What the actions are read from, [B, K, D]; what probes read."""
        ...

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        """As `worldmodel.protocols.Task.after_step`."""
        ...

    def diagnostics(self, batches: Sequence[ChunkBatch]) -> dict[str, float]:
        """Numbers of its own on normalised held-out batches. Raises RepresentationCollapse."""
        ...


class ImitationPolicy(nn.Module):
    """A network with its normalisation: a `Task` of the training loop, and what acts afterwards.

    Args:
        network: a `ChunkNetwork`.
        statistics: measured, or to be filled by loading a checkpoint.
        interface: what every observation and batch is checked against.
    """

    def __init__(self, *, network: nn.Module, statistics: Statistics, interface: Interface) -> None:
        super().__init__()
        self.network, self.statistics, self.interface = network, statistics, interface

    def training_step(self, batch: ChunkBatch, step: int) -> Loss:
        """Loss of one micro-batch.

        Raises:
            MissingStatistics, ObservationError, ChunkError: it cannot be learned from.
        """
        self.statistics.require()
        self.interface.check_batch(batch)
        with dropout_of(batch.seeds, step, batch.state.device):
            return self.network.loss(self.statistics.normalise_batch(batch), step)  # type: ignore[operator]

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        return self.network.after_step(step, total_steps)  # type: ignore[operator]

    @torch.no_grad()
    def act(self, observation: PolicyObservation, noise: Noise = None) -> torch.Tensor:
        """Actions [B, C, Da] in the units of the environment and within its bounds.

        Args:
            observation: on the device of the policy.
            noise: generator of the draws of a stochastic policy, or one per row, which makes rows independent of what
                is decided beside them.

        Raises:
            RuntimeError: in training mode, where dropout would change the actions.
            MissingStatistics, ObservationError: it cannot be decided on.
        """
        if self.training:
            raise RuntimeError("a policy acts in evaluation mode: call policy.eval() first")
        self.statistics.require()
        self.interface.check(observation)
        return self.statistics.executable(self._sample(self.statistics.normalise(observation), noise))

    @torch.no_grad()
    def monitors(self, batches: Sequence[ChunkBatch]) -> dict[str, float]:
        """Held-out error of the actions (z-scores), decided as in a rollout, and what the network adds.

        `action_l1_mean` is the error of the mean action of the training data: a policy above it has learned nothing.
        """
        self.statistics.require()
        device = self.statistics.state_mean.device
        here = [self.statistics.normalise_batch(batch.to(device)) for batch in batches]
        errors, sizes = [], []
        for batch in here:
            noise = generators(batch.seeds, 0, device)
            decided = self._sample(batch.observation, noise)
            # A policy with a memory decides on fewer steps than it learns from.
            label, known = (v[:, : decided.shape[1]] for v in (batch.action, batch.action_counts))
            errors.append(at_least_fp32(decided - label).abs()[known])
            sizes.append(at_least_fp32(label).abs()[known])
        values = {
            "action_l1": float(torch.cat(errors).mean()),
            "action_l1_mean": float(torch.cat(sizes).mean()),
        }
        return values | self.network.diagnostics(here)  # type: ignore[operator]

    def _sample(self, observation: PolicyObservation, noise: Noise) -> torch.Tensor:
        return self.network.sample(observation, noise)  # type: ignore[operator]


def action_l1(prediction: torch.Tensor, batch: ChunkBatch) -> torch.Tensor:
    """Mean absolute error of actions [B, C, Da] over the steps with a label, of all ranks."""
    return masked_l1(prediction, batch.action, batch.action_counts)


def masked_l1(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of [B, Q, D] over the entries of the steps [B, Q] where the mask is true, of all ranks."""
    error = (at_least_fp32(prediction) - at_least_fp32(target)).abs()
    return masked_mean(error, mask.unsqueeze(-1).expand_as(error))


@contextmanager
def dropout_of(seeds: Sequence[int], step: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's global generators are functions of the seeds of the batch and the step; then as before."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        (source,) = generators([hash(tuple(seeds)) % 2**64], step, torch.device("cpu"))
        torch.manual_seed(source.initial_seed())
        yield
