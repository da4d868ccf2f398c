"""ACT: a transformer reads a chunk of actions from the current observation (arXiv 2304.13705).

As the baseline of ACT-JEPA (arXiv 2501.14622): one decoder layer, because the original only ever used the output of its
first, and no variational style unless it is asked for.
"""

from collections.abc import Sequence

import torch
from torch import nn

from policies.imitation.batches import ChunkBatch, PolicyObservation
from policies.imitation.context import ContextEncoder
from policies.imitation.policy import Noise, action_l1
from worldmodel.distributed import at_least_fp32
from worldmodel.nn.decoder import Encoder, QueryDecoder, sequence_positions
from worldmodel.objectives import Loss, masked_mean
from worldmodel.planning.noise import draw_normal, generators


class StyleEncoder(nn.Module):
    """The conditional VAE's encoder of ACT: state and actions of a demonstration to a Gaussian style.

    Tokens are a learned one, whose output is read, the state, and the actions with fixed positions.

    Args:
        state_dim, action_dim: Ds, Da.
        style_dim: S.
        dim, layers, heads, hidden, dropout: of the transformer; dim is also the width of the style token.
    """

    def __init__(
        self,
        *,
        state_dim: int,
        action_dim: int,
        dim: int,
        layers: int,
        heads: int,
        hidden: int,
        dropout: float,
        style_dim: int = 32,
    ) -> None:
        super().__init__()
        self.style_dim = style_dim
        self.read_out = nn.Parameter(torch.randn(dim))
        self.state_embedding = nn.Linear(state_dim, dim)
        self.action_embedding = nn.Linear(action_dim, dim)
        self.encoder = Encoder(dim, layers=layers, heads=heads, hidden=hidden, dropout=dropout)
        self.gaussian = nn.Linear(dim, 2 * style_dim)
        self.token = nn.Linear(style_dim, dim)

    def forward(self, batch: ChunkBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance [B, S] of the style of each stretch."""
        actions = self.action_embedding(batch.action)
        actions = actions + sequence_positions(actions.shape[-1], actions.shape[1]).to(actions)
        first = [self.read_out.expand(len(batch), -1), self.state_embedding(batch.state[:, 0])]
        tokens = torch.cat([torch.stack(first, dim=1), actions], dim=1)
        is_pad = nn.functional.pad(batch.action_is_pad, (2, 0), value=False)
        mean, log_variance = self.gaussian(self.encoder(tokens, is_pad=is_pad)[:, 0]).chunk(2, dim=-1)
        return mean, log_variance


class ACT(nn.Module):
    """Context encoder and action decoder, trained by the mean absolute error. A `ChunkNetwork`.

    Args:
        context: observation to memory.
        decoder: memory to normalised actions, one query per action.
        style: makes it a conditional VAE; at rollout the style is its prior's mean, 0.
        kl_weight: of the divergence of the style from N(0, I), summed over its dimensions.
    """

    def __init__(
        self,
        *,
        context: ContextEncoder,
        decoder: QueryDecoder,
        style: StyleEncoder | None = None,
        kl_weight: float = 10.0,
    ) -> None:
        super().__init__()
        self.context, self.decoder, self.style, self.kl_weight = context, decoder, style, kl_weight

    def loss(self, batch: ChunkBatch, step: int) -> Loss:
        """L1 of the actions, and the divergence where there is a style."""
        if self.style is None:
            memory = self.context(batch.observation)
            return Loss.weighted({"loss/action": (1.0, self.action_error(memory, batch))})
        mean, log_variance = (at_least_fp32(v) for v in self.style(batch))
        noise = draw_normal(torch.empty_like(mean), generators(batch.seeds, step, mean.device))
        # A demonstration without actions has no style to encode.
        style = torch.where(batch.has_action.unsqueeze(1), mean + noise * (log_variance / 2).exp(), 0.0)
        memory = self.context(batch.observation, extra=self.style.token(style))
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
        return Loss.weighted(
            {
                "loss/action": (1.0, self.action_error(memory, batch)),
                "loss/style_divergence": (self.kl_weight, masked_mean(divergence, batch.has_action)),
            }
        )

    def action_error(self, memory: torch.Tensor, batch: ChunkBatch) -> torch.Tensor:
        """Mean absolute error of the actions read from a memory; a scalar."""
        return action_l1(self.decoder(memory, batch.action_is_pad), batch)

    def sample(self, observation: PolicyObservation, noise: Noise = None) -> torch.Tensor:
        """Normalised actions [B, C, Da]; no draw is made."""
        return self.decoder(self.memory(observation))

    def memory(self, observation: PolicyObservation) -> torch.Tensor:
        """What actions are read from in a rollout, [B, K, D]."""
        extra = None
        if self.style is not None:
            extra = self.style.token(observation.state.new_zeros(len(observation), self.style.style_dim))
        return self.context(observation, extra=extra)

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        return {}

    def diagnostics(self, batches: Sequence[ChunkBatch]) -> dict[str, float]:
        return {}
