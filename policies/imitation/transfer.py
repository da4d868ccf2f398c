"""A policy that acts by what an action probe reads from a frozen network: a probe's score in terms of success.

Two-stage training is something else: `start.run` of train_policy.py.
"""

from collections.abc import Sequence

import torch
from torch import nn

from policies.imitation.batches import ChunkBatch, PolicyObservation
from policies.imitation.policy import ImitationPolicy, Noise
from worldmodel.nn.decoder import QueryDecoder
from worldmodel.objectives import Loss


class TransferredNetwork(nn.Module):
    """Actions read by the decoder of an action probe from a frozen network: a `ChunkNetwork` that is not trained on.

    Args:
        network: a `ChunkNetwork`.
        decoder: of `probe(..., what="action")`.
    """

    def __init__(self, network: nn.Module, decoder: QueryDecoder) -> None:
        super().__init__()
        self.network, self.decoder = network, decoder

    def sample(self, observation: PolicyObservation, noise: Noise = None) -> torch.Tensor:
        """Normalised actions [B, C, Da]; no draw is made."""
        return self.decoder(self.memory(observation))

    def memory(self, observation: PolicyObservation) -> torch.Tensor:
        """That of the frozen network, [B, K, D]."""
        return self.network.memory(observation)  # type: ignore[operator]

    def loss(self, batch: ChunkBatch, step: int) -> Loss:
        raise RuntimeError("a transferred network is frozen: it acts and is not trained")

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        return {}

    def diagnostics(self, batches: Sequence[ChunkBatch]) -> dict[str, float]:
        return {}


def transferred(policy: ImitationPolicy, decoder: QueryDecoder) -> ImitationPolicy:
    """The policy that acts by the decoder of an action probe, in evaluation mode; it shares the frozen network."""
    network = TransferredNetwork(policy.network, decoder)
    made = ImitationPolicy(network=network, statistics=policy.statistics, interface=policy.interface)
    return made.eval()
