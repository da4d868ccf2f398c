"""World models that are known in closed form."""

from dataclasses import dataclass

import torch

from worldmodel.batches import LatentState
from worldmodel.planning import ActionBounds


def state_of(latents: torch.Tensor, action_dim: int) -> LatentState:
    """One observed latent [B, D] each."""
    return LatentState(latents=latents.unsqueeze(1), actions=latents.new_zeros(len(latents), 0, action_dim))


def free(dim: int, *, block: int = 1) -> ActionBounds:
    edge = torch.full((dim,), torch.inf)
    return ActionBounds(low=-edge, high=edge, block=block)


def box(dim: int, *, size: float = 1.0, max_norm: float | None = None, block: int = 1) -> ActionBounds:
    edge = torch.full((dim,), size)
    return ActionBounds(low=-edge, high=edge, max_norm=max_norm, block=block)


class Linear:
    """z' = z A + u B; latents are the observations."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor) -> None:
        self.a, self.b = a, b

    def encode(self, observations: torch.Tensor) -> torch.Tensor:
        return observations

    def rollout(self, state: LatentState, future: torch.Tensor) -> torch.Tensor:
        z, imagined = state.latents[:, -1], []
        for u in future.unbind(1):
            z = z @ self.a + u @ self.b
            imagined.append(z)
        return torch.stack(imagined, dim=1)


class Recording:
    """Another model, with every action it was asked to imagine."""

    def __init__(self, model: Linear) -> None:
        self.model, self.futures = model, list[torch.Tensor]()

    def encode(self, observations: torch.Tensor) -> torch.Tensor:
        return self.model.encode(observations)

    def rollout(self, state: LatentState, future: torch.Tensor) -> torch.Tensor:
        self.futures.append(future.detach().clone())
        return self.model.rollout(state, future)

    @property
    def steps(self) -> int:
        """Applications of the dynamics, over all rows."""
        return sum(f.shape[0] * f.shape[1] for f in self.futures)


@dataclass(frozen=True, kw_only=True)
class LinearQuadratic:
    """sum_t mean (z_t - goal)^2 + weight * mean u_t^2 under linear dynamics, and its optimum in closed form."""

    model: Linear
    start: torch.Tensor
    goal: torch.Tensor
    weight: float
    horizon: int

    @classmethod
    def make(
        cls, *, batch: int = 2, horizon: int = 4, dtype: torch.dtype = torch.float32
    ) -> "LinearQuadratic":
        g = torch.Generator().manual_seed(0)
        a = torch.tensor([[1.0, 0.0, 0.2], [0.1, 0.9, 0.0], [0.0, -0.1, 0.8]], dtype=dtype)
        b = torch.tensor([[0.8, 0.0, 0.1], [0.0, 0.6, -0.3]], dtype=dtype)
        start, goal = torch.randn(2, batch, 3, generator=g).to(dtype)
        return cls(model=Linear(a, b), start=start, goal=goal, weight=0.3, horizon=horizon)

    def optimum(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Actions [B, H, A] and cost [B], by least squares in float64."""
        a, b = self.model.a.double(), self.model.b.double()
        d, k, h = a.shape[0], b.shape[0], self.horizon
        powers = [torch.linalg.matrix_power(a, i) for i in range(h + 1)]
        effect = torch.zeros(h * k, h * d, dtype=torch.float64)
        for t in range(h):
            for s in range(t + 1):
                effect[s * k : (s + 1) * k, t * d : (t + 1) * d] = b @ powers[t - s]
        drift = torch.cat([self.start.double() @ powers[t + 1] for t in range(h)], dim=1)
        gap = self.goal.double().repeat(1, h) - drift
        left = effect @ effect.T / d + self.weight / k * torch.eye(h * k, dtype=torch.float64)
        actions = torch.linalg.solve(left, effect @ gap.T / d).T
        cost = (gap - actions @ effect).square().sum(1) / d + self.weight / k * actions.square().sum(1)
        return actions.unflatten(1, (h, k)), cost
