"""An autoregressive transformer: the next action from a window of observations and actions ("BC" in 2501.14622).

One token per observation and one per action, interleaved behind a task token, in a causal post-norm transformer; the
action is read from the token of its observation. It acts one step at a time and is given the history of its episode.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from policies.imitation.batches import ChunkBatch, ObservationError, PolicyObservation
from policies.imitation.interface import Interface
from policies.imitation.policy import Noise
from policies.imitation.vision import ImageTokens
from worldmodel.distributed import at_least_fp32
from worldmodel.nn.decoder import Encoder
from worldmodel.objectives import Loss, masked_mean


@dataclass(frozen=True, kw_only=True)
class _Steps:
    """L steps: state [B, L, Ds], environment [B, L, De] or None, image [B, L, 3, H, W] or None, action [B, L, Da]."""

    state: torch.Tensor
    environment: torch.Tensor | None
    image: torch.Tensor | None
    action: torch.Tensor


class AutoregressiveTransformer(nn.Module):
    """Mean squared error of every action of a window given what came before. A `ChunkNetwork` that samples one action.

    Args:
        interface: of the policy; its chunk is the window: steps that are learned from, and seen, at most.
        dim, layers, heads, hidden, dropout: of the transformer.
        vision: image tokens [B, K, dim], whose mean is used, where there are images.
    """

    def __init__(
        self,
        *,
        interface: Interface,
        dim: int = 512,
        layers: int = 5,
        heads: int = 8,
        hidden: int = 2048,
        dropout: float = 0.1,
        vision: ImageTokens | None = None,
    ) -> None:
        super().__init__()
        self.window, self.vision = interface.chunk, vision
        self.task_embedding = nn.Embedding(len(interface.tasks), dim)
        self.state_embedding = nn.Linear(interface.state_dim, dim)
        self.environment_embedding = (
            None if interface.environment_dim is None else nn.Linear(interface.environment_dim, dim)
        )
        self.action_embedding = nn.Linear(interface.action_dim, dim)
        self.positions = nn.Parameter(torch.randn(self.window, dim))
        self.encoder = Encoder(dim, layers=layers, heads=heads, hidden=hidden, dropout=dropout)
        self.head = nn.Linear(dim, interface.action_dim)

    def tokens(self, steps: _Steps, task: torch.Tensor) -> torch.Tensor:
        """Tokens [B, L, D] of the observations: each knows itself, earlier ones and earlier actions."""
        observed = self.state_embedding(steps.state)
        if self.environment_embedding is not None:
            observed = observed + self.environment_embedding(steps.environment)
        if self.vision is not None and steps.image is not None:
            tokens = self.vision(steps.image.flatten(0, 1)).mean(1)
            observed = observed + tokens.unflatten(0, observed.shape[:2])
        positions = self.positions[: observed.shape[1]]
        pairs = torch.stack([observed + positions, self.action_embedding(steps.action) + positions], dim=2)
        tokens = torch.cat([self.task_embedding(task).unsqueeze(1), pairs.flatten(1, 2)], dim=1)
        return self.encoder(tokens, causal=True)[:, 1::2]

    def loss(self, batch: ChunkBatch, step: int) -> Loss:
        """Mean squared error over the steps with a label.

        Raises:
            ObservationError: if the batch holds environment or images of the current step only.
        """
        for name, parts, needed in (
            ("environments: environment_sequence=True", batch.environments, self.environment_embedding),
            ("images: image_stride=1", batch.images, self.vision),
        ):
            if needed is not None and (parts is None or parts.shape[1] != self.window):
                raise ObservationError(
                    f"the window of {self.window} steps needs all their {name} of the data set"
                )
        if batch.state.shape[1] != self.window:
            raise ObservationError(
                f"the batch holds {batch.state.shape[1]} states, the window {self.window}: give horizon="
                f"{self.window}"
            )
        steps = _Steps(
            state=batch.state, environment=batch.environments, image=batch.images, action=batch.action
        )
        error = (
            at_least_fp32(self.head(self.tokens(steps, batch.task))) - at_least_fp32(batch.action)
        ).square()
        counts = batch.action_counts.unsqueeze(-1).expand_as(error)
        return Loss.weighted({"loss/action": (1.0, masked_mean(error, counts))})

    def sample(self, observation: PolicyObservation, noise: Noise = None) -> torch.Tensor:
        """The next action [B, 1, Da], normalised; no draw is made."""
        return self.head(self.memory(observation))

    def memory(self, observation: PolicyObservation) -> torch.Tensor:
        """The token that the next action is read from, [B, 1, D].

        Raises:
            ObservationError: if the history is longer than the window allows.
        """
        past = observation.history
        if past is None:
            count = observation.task.new_zeros(len(observation))
        else:
            count = past.count
            if past.state.shape[1] >= self.window:
                raise ObservationError(
                    f"a window of {self.window} steps takes at most {self.window - 1} earlier ones, got "
                    f"{past.state.shape[1]}"
                )
        rows = torch.arange(len(count), device=count.device)

        def placed(before: torch.Tensor | None, now: torch.Tensor | None) -> torch.Tensor | None:
            """History and current step as one row of steps."""
            if now is None:
                return None
            steps = now.unsqueeze(1) if before is None else torch.cat([before, now.unsqueeze(1)], dim=1)
            return steps.index_put((rows, count), now)

        unknown = observation.state.new_zeros(len(count), self.action_embedding.in_features)
        state = placed(None if past is None else past.state, observation.state)
        action = placed(None if past is None else past.action, unknown)
        assert state is not None
        assert action is not None
        steps = _Steps(
            state=state,
            environment=placed(None if past is None else past.environment, observation.environment),
            image=placed(None if past is None else past.image, observation.image),
            action=action,
        )
        return self.tokens(steps, observation.task)[rows, count].unsqueeze(1)

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        return {}

    def diagnostics(self, batches: Sequence[ChunkBatch]) -> dict[str, float]:
        """Held-out mean squared error over the whole window, earlier actions given."""
        counts = [int(b.action_counts.sum()) for b in batches]
        total = sum(float(self.loss(b, 0).total) * n for b, n in zip(batches, counts, strict=True))
        return {"action_mse_teacher_forced": total / max(1, sum(counts))}
