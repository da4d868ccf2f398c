"""The context encoder of ACT and ACT-JEPA, and the part of it that also encodes sequences of states as targets."""

from dataclasses import dataclass

import torch
from torch import nn

from policies.imitation.batches import PolicyObservation
from policies.imitation.lidar_tokens import LidarTokens
from policies.imitation.vision import ImageTokens
from worldmodel.nn.decoder import Encoder, sequence_positions


@dataclass(frozen=True, kw_only=True)
class StateSequence:
    """States [B, T, Ds] of one task [B] each; is_pad [B, T] marks steps past the end of the episode."""

    state: torch.Tensor
    task: torch.Tensor
    is_pad: torch.Tensor


class StateTransformer(nn.Module):
    """Embeddings of task and state, post-norm layers, a last norm: what context and target encoder share.

    Building the target from these alone leaves out the image network, which it never uses.

    Args:
        state_dim: Ds.
        tasks: rows of the table of task embeddings.
        dim, layers, heads, hidden, dropout: of the transformer.
        causal: a step of a sequence does not see later ones.
    """

    def __init__(
        self,
        *,
        state_dim: int,
        tasks: int,
        dim: int = 512,
        layers: int = 4,
        heads: int = 8,
        hidden: int = 2048,
        dropout: float = 0.1,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.causal = dim, causal
        self.task_embedding = nn.Embedding(tasks, dim)
        self.state_embedding = nn.Linear(state_dim, dim)
        self.encoder = Encoder(dim, layers=layers, heads=heads, hidden=hidden, dropout=dropout)

    def forward(self, sequence: StateSequence) -> torch.Tensor:
        """One latent per state, [B, T, D], each knowing the others: the target path (arXiv 2501.14622).

        Tokens are the task and the states with fixed positions; the task's output is dropped.
        """
        steps = self.state_embedding(sequence.state)
        steps = steps + sequence_positions(self.dim, steps.shape[1]).to(steps)
        tokens = torch.cat([self.task_embedding(sequence.task).unsqueeze(1), steps], dim=1)
        is_pad = nn.functional.pad(sequence.is_pad, (1, 0), value=False)
        return self.encoder(tokens, is_pad=is_pad, causal=self.causal)[:, 1:]


class ContextEncoder(nn.Module):
    """An observation of the current step to the memory that all heads read.

    Tokens are the task, the state, the environment and the image or LiDAR sweep (each where there is one), all seeing
    all; only those of the sensor carry positions.

    Args:
        transformer: of task and state.
        environment_dim: De, or None.
        vision: image or LiDAR tokens of the transformer's width, or None.

    `freeze` keeps it as it is, for the second of two stages.
    """

    frozen = False

    def __init__(
        self,
        *,
        transformer: StateTransformer,
        environment_dim: int | None = None,
        vision: ImageTokens | LidarTokens | None = None,
    ) -> None:
        super().__init__()
        self.transformer, self.vision = transformer, vision
        self.environment_embedding = (
            None if environment_dim is None else nn.Linear(environment_dim, transformer.dim)
        )

    def freeze(self) -> None:
        """No gradient, and evaluation mode for ever: dropout off, BatchNorm statistics as they are."""
        self.frozen = True
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "ContextEncoder":
        return super().train(mode and not self.frozen)

    @property
    def dim(self) -> int:
        """D, width of the memory."""
        return self.transformer.dim

    def forward(self, observation: PolicyObservation, extra: torch.Tensor | None = None) -> torch.Tensor:
        """Memory [B, K, D]; `extra` [B, D] is one more token, such as the style of ACT."""
        parts = [self.transformer.task_embedding(observation.task)]
        parts.append(self.transformer.state_embedding(observation.state))
        if self.environment_embedding is not None:
            parts.append(self.environment_embedding(observation.environment))
        if extra is not None:
            parts.append(extra)
        tokens = torch.stack(parts, dim=1)
        if self.vision is not None:
            tokens = torch.cat([tokens, self.vision(observation.sensor)], dim=1)
        return self.transformer.encoder(tokens)
