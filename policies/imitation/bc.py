"""Behaviour cloning by a multi-layer perceptron: one action (chunk 1), or a chunk at once."""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from policies.imitation.batches import ChunkBatch, PolicyObservation
from policies.imitation.interface import Interface
from policies.imitation.lidar_tokens import LidarTokens
from policies.imitation.policy import Noise, action_l1
from policies.imitation.vision import ImageTokens
from worldmodel.objectives import Loss


class BehaviourCloning(nn.Module):
    """State, environment, mean image token and task through ReLU layers to the chunk. A `ChunkNetwork`.

    Args:
        interface: of the policy; its chunk is the number of actions.
        vision: image or LiDAR tokens [B, K, dim], where there are any.
        dim: of the task embedding and of these tokens.
        hidden, layers: of the perceptron.
        dropout: after each hidden layer.
    """

    def __init__(
        self,
        *,
        interface: Interface,
        dim: int = 64,
        hidden: int = 256,
        layers: int = 2,
        dropout: float = 0.1,
        vision: ImageTokens | LidarTokens | None = None,
    ) -> None:
        super().__init__()
        self.interface, self.vision = interface, vision
        self.task_embedding = nn.Embedding(len(interface.tasks), dim)
        inputs = interface.state_dim + dim + (interface.environment_dim or 0)
        widths = [inputs + (0 if vision is None else dim), *[hidden] * layers]
        body: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            body += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)]
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(widths[-1], interface.chunk * interface.action_dim)

    def loss(self, batch: ChunkBatch, step: int) -> Loss:
        """L1 of the actions."""
        return Loss.weighted({"loss/action": (1.0, action_l1(self.sample(batch.observation), batch))})

    def sample(self, observation: PolicyObservation, noise: Noise = None) -> torch.Tensor:
        """Normalised actions [B, C, Da]; no draw is made."""
        flat = self.head(self.memory(observation)[:, 0])
        return flat.unflatten(1, (self.interface.chunk, self.interface.action_dim))

    def memory(self, observation: PolicyObservation) -> torch.Tensor:
        """The last hidden layer as one token, [B, 1, hidden]."""
        parts = [observation.state, self.task_embedding(observation.task)]
        if observation.environment is not None:
            parts.append(observation.environment)
        if self.vision is not None and observation.sensor is not None:
            parts.append(self.vision(observation.sensor).mean(1))
        return self.body(torch.cat(parts, dim=1)).unsqueeze(1)

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        return {}

    def diagnostics(self, batches: Sequence[ChunkBatch]) -> dict[str, float]:
        return {}
