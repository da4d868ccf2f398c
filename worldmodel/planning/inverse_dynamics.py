"""Amortised planning: a network that names the first action towards a goal, learned from episodes.

Hindsight supplies the goals: the observation k steps later was reached by the action that was taken. At a fraction of a
search's cost it is a baseline, and a proposal for a search to begin with.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from worldmodel.batches import EpisodeBatch, LatentState
from worldmodel.distributed import at_least_fp32, mean_over_ranks
from worldmodel.objectives import Loss
from worldmodel.planning.bounds import ActionBounds
from worldmodel.planning.noise import generators
from worldmodel.protocols import WorldModel


class InverseDynamics(nn.Module):
    """MLP g(z, z_goal) to an action, with GELU.

    Args:
        latent_dim: numbers of a latent, flattened.
        action_dim: block * A.
        hidden: width of the hidden layers.
        layers: hidden layers.
    """

    def __init__(self, *, latent_dim: int, action_dim: int, hidden: int = 256, layers: int = 2) -> None:
        super().__init__()
        widths = [2 * latent_dim, *[hidden] * layers]
        body: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            body += [nn.Linear(a, b), nn.GELU()]
        self.body = nn.Sequential(*body, nn.Linear(widths[-1], action_dim))

    def forward(self, latent: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        """Latents and goals [N, ...] to actions [N, action_dim], not yet within any bounds."""
        return self.body(torch.cat([latent.flatten(1), goal.flatten(1)], dim=1))

    @torch.no_grad()
    def propose(
        self,
        model: WorldModel,
        state: LatentState,
        goal: torch.Tensor,
        *,
        horizon: int,
        bounds: ActionBounds,
        window: int | None = None,
    ) -> torch.Tensor:
        """Actions [B, H, action_dim] of this network followed in the model's imagination, for `Plan.proposal`.

        Args:
            goal: latents [B, ...].
            window: latents that the model remembers; all without.
        """
        actions = []
        for _ in range(horizon):
            action = bounds.project(self(state.latents[:, -1], goal))
            actions.append(action)
            latent = model.rollout(state, action.unsqueeze(1))[:, 0]
            state = state.append(latent, action, window=window)
        return torch.stack(actions, dim=1)


class InverseDynamicsTask(nn.Module):
    """Regress the action at t from the latents at t and t + k, k drawn uniformly from 1..max_distance.

    Args:
        model: frozen: its parameters require no gradient from here on, and it stays in evaluation mode.
        head: what is trained.
        max_distance: K, steps of the world model (blocks, where it takes blocks).
        pairs: (t, k) drawn per stretch and step.
        action_scale: [action_dim], typical size of each action; errors are taken in its units.
    """

    action_scale: torch.Tensor

    def __init__(
        self,
        *,
        model: nn.Module,
        head: InverseDynamics,
        max_distance: int,
        pairs: int = 4,
        action_scale: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        if max_distance < 1 or pairs < 1:
            raise ValueError(f"max_distance and pairs are at least 1, got {max_distance} and {pairs}")
        self.model = model.requires_grad_(False).eval()
        self.head, self.max_distance, self.pairs = head, max_distance, pairs
        scale = torch.ones(()) if action_scale is None else torch.as_tensor(action_scale, dtype=torch.float32)
        self.register_buffer("action_scale", scale)

    def train(self, mode: bool = True) -> "InverseDynamicsTask":
        super().train(mode)
        self.model.eval()
        return self

    def training_step(self, batch: EpisodeBatch, step: int) -> Loss:
        """Mean squared error of the actions.

        Raises:
            ValueError: if the stretches are too short for the largest distance.
        """
        return Loss.weighted({"loss/action": (1.0, self._error(batch, step))})

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        return {}

    @torch.no_grad()
    def monitors(self, batches: Sequence[EpisodeBatch]) -> dict[str, float]:
        """Error on held-out batches, and that of the mean action, which knows no goal."""
        device = next(self.head.parameters()).device
        errors, actions = [], []
        for whole in batches:
            batch = whole.to(device)
            errors.append(self._error(batch, 0))
            actions.append((batch.actions / self.action_scale).flatten(0, 1))
        mean_action = torch.cat(actions).var(0, correction=0).mean()
        return {"action_error": float(torch.stack(errors).mean()), "action_error_mean": float(mean_action)}

    def _error(self, batch: EpisodeBatch, step: int) -> torch.Tensor:
        stretch = batch.observations.shape[1]
        if stretch < self.max_distance + 1:
            raise ValueError(
                f"goals up to {self.max_distance} steps ahead need stretches of {self.max_distance + 1} observations, "
                f"got {stretch}"
            )
        with torch.no_grad():
            latents = self.model.encode(batch.observations)  # type: ignore[operator]
        sources = generators(batch.seeds, step, torch.device("cpu"))
        uniform = torch.stack([torch.rand(2, self.pairs, generator=g) for g in sources]).to(latents.device)
        distance = 1 + (uniform[:, 0] * self.max_distance).long()
        start = (uniform[:, 1] * (stretch - distance)).long()
        row = torch.arange(len(latents), device=latents.device).unsqueeze(1)
        guess = self.head(latents[row, start].flatten(0, 1), latents[row, start + distance].flatten(0, 1))
        error = (guess - batch.actions[row, start].flatten(0, 1)) / self.action_scale
        square = at_least_fp32(error).square()
        return mean_over_ranks(square.sum(), square.numel())


class InverseDynamicsAgent:
    """Acts by the network alone: one encoding and one small network per action, no search.

    Args:
        model: in evaluation mode.
        head: trained.
        bounds: actions are projected into them.
    """

    def __init__(self, *, model: WorldModel, head: InverseDynamics, bounds: ActionBounds) -> None:
        self.model, self.head, self.bounds = model, head, bounds
        self.goal: torch.Tensor | None = None

    def reset(self, goal: torch.Tensor) -> None:
        """Begin an episode with goal latents [B, ...] (`model.encode` of goal images)."""
        self.goal = goal

    @torch.no_grad()
    def act(self, observations: torch.Tensor) -> torch.Tensor:
        """Actions [B, block * A] for the newest observations [B, ...].

        Raises:
            RuntimeError: before `reset`.
        """
        if self.goal is None:
            raise RuntimeError("call reset(goal) before the first act(observations)")
        if len(observations) != len(self.goal):
            raise ValueError(f"reset was given {len(self.goal)} goals, got {len(observations)} observations")
        latent = self.model.encode(observations.unsqueeze(1))[:, 0]
        return self.bounds.project(self.head(latent, self.goal))
