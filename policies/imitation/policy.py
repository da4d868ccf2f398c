"""What all imitation policies have in common: the contract of their networks, checks, units, and the training task."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

from policies.imitation.batches import ChunkBatch, PolicyObservation
from policies.imitation.interface import Interface
from policies.imitation.statistics import Statistics
from worldmodel.distributed import at_least_fp32
from worldmodel.objectives import Loss, masked_mean
from worldmodel.planning.noise import generators

Noise = torch.Generator | Sequence[torch.Generator] | None


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
