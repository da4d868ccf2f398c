"""A flow-matching policy: chunks of actions transported from noise along straight lines, given the observation.

Conditional rectified flow (arXiv 2210.02747, 2209.03003) on action chunks, as in the action heads of current
vision-language-action models (pi0, arXiv 2410.24164): x_s = (1 - s) x_0 + s x_1 with x_0 ~ N(0, I) and x_1 the actions,
and a decoder that learns the velocity x_1 - x_0 from x_s, s and the memory of the observation.
"""

from collections.abc import Sequence

import torch
from torch import nn

from policies.imitation.batches import ChunkBatch, ObservationError, PolicyObservation
from policies.imitation.context import ContextEncoder
from policies.imitation.policy import Noise
from worldmodel.distributed import at_least_fp32
from worldmodel.nn.decoder import Decoder
from worldmodel.objectives import Loss, masked_mean
from worldmodel.planning.noise import draw_normal, generators


class FlowPolicy(nn.Module):
    """Context encoder and velocity decoder. A `ChunkNetwork`.

    Args:
        context: observation to memory.
        action_dim, chunk: Da, C.
        layers, heads, hidden, dropout: of the decoder, which is as wide as the memory.
        steps: Euler steps from noise to actions.
    """

    def __init__(
        self,
        *,
        context: ContextEncoder,
        action_dim: int,
        chunk: int,
        layers: int = 4,
        heads: int = 8,
        hidden: int = 2048,
        dropout: float = 0.1,
        steps: int = 10,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"Euler's method needs at least 1 step, got {steps}")
        dim = context.dim
        self.context, self.steps, self.shape = context, steps, (chunk, action_dim)
        self.read = nn.Linear(action_dim, dim)
        self.positions = nn.Parameter(torch.randn(chunk, dim))
        self.time = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.decoder = Decoder(dim, layers=layers, heads=heads, hidden=hidden, dropout=dropout)
        self.head = nn.Linear(dim, action_dim)

    def loss(self, batch: ChunkBatch, step: int) -> Loss:
        """Mean squared error of the velocity at one time per stretch, over the steps with a label."""
        sources = generators(batch.seeds, step, batch.action.device)
        start = draw_normal(torch.empty_like(batch.action), sources)
        time = torch.cat([torch.rand(1, generator=g, device=g.device) for g in sources]).to(start)
        at = time.view(-1, 1, 1)
        memory = self.context(batch.observation)
        velocity = self.velocity(
            (1 - at) * start + at * batch.action, time, memory, is_pad=batch.action_is_pad
        )
        error = (at_least_fp32(velocity) - at_least_fp32(batch.action - start)).square()
        counts = batch.action_counts.unsqueeze(-1).expand_as(error)
        return Loss.weighted({"loss/flow": (1.0, masked_mean(error, counts))})

    def velocity(
        self,
        actions: torch.Tensor,
        time: torch.Tensor,
        memory: torch.Tensor,
        *,
        is_pad: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """d actions / d time [B, C, Da] at actions [B, C, Da] and time [B] in 0..1."""
        tokens = self.read(actions) + self.positions + self.time(self._time_code(time)).unsqueeze(1)
        return self.head(self.decoder(tokens, memory, is_pad=is_pad))

    def sample(self, observation: PolicyObservation, noise: Noise = None) -> torch.Tensor:
        """Normalised actions [B, C, Da]: Euler's method from one draw of noise per row.

        Raises:
            ObservationError: without a generator.
        """
        if noise is None:
            raise ObservationError("a flow policy draws its actions: give act() a generator, or one per row")
        # Drawn where the generators are, on the CPU in rollouts: the same numbers for every device of the policy.
        first = noise if isinstance(noise, torch.Generator) else noise[0]
        x = torch.empty(len(observation), *self.shape, dtype=observation.state.dtype, device=first.device)
        x = x.normal_(generator=noise) if isinstance(noise, torch.Generator) else draw_normal(x, noise)
        x = x.to(observation.state.device)
        memory = self.memory(observation)
        for k in range(self.steps):
            time = x.new_full((len(x),), k / self.steps)
            x = x + self.velocity(x, time, memory) / self.steps
        return x

    def memory(self, observation: PolicyObservation) -> torch.Tensor:
        """What velocities are read from, [B, K, D]."""
        return self.context(observation)

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        return {}

    def diagnostics(self, batches: Sequence[ChunkBatch]) -> dict[str, float]:
        """Held-out flow loss."""
        losses = [float(self.loss(b, 0).total) * int(b.action_counts.sum()) for b in batches]
        return {"flow_loss": sum(losses) / max(1, sum(int(b.action_counts.sum()) for b in batches))}

    def _time_code(self, time: torch.Tensor) -> torch.Tensor:
        """[B, D] sines and cosines of 1 to 1000 radians per unit of time."""
        half = self.positions.shape[1] // 2
        rates = 1000.0 ** torch.linspace(0, 1, half, device=time.device, dtype=time.dtype)
        phases = time.unsqueeze(1) * rates
        return torch.cat([phases.sin(), phases.cos()], dim=1)
