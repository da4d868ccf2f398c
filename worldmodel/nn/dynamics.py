"""Predictors of vector latents: z' from z and an action.

`forward` is for training. `imagine` is the same network for planners, without gradients: the candidates of an
environment share the latent they start from, so what depends on it alone is computed once, and every step writes into
the memory of the one before. With a `Workspace` so does every call: fresh memory costs as much as the arithmetic.
"""

from collections.abc import Iterator

import torch
from torch import nn

_ROWS_AT_ONCE = 4096


class Workspace:
    """Memory that calls of `imagine` leave to the next. What they returned before is overwritten."""

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}

    def empty(self, name: str, like: torch.Tensor, *shape: int) -> torch.Tensor:
        """Uninitialised, as `like.new_empty(shape)`; the last one of this name and shape if there is one."""
        found = self._kept.get(name)
        if found is None or found.shape != shape or (found.dtype, found.device) != (like.dtype, like.device):
            found = self._kept[name] = like.new_empty(*shape)
        return found


class RecurrentPredictor(nn.Module):
    """z' = GRU(action, z): a gate per latent dimension decides what an action changes.

    Args:
        dim: D of the latents, which are the hidden state.
        action_dim: A.
        hidden: width of the action's embedding.
    """

    def __init__(self, dim: int, action_dim: int, *, hidden: int = 256) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(action_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.cell = nn.GRUCell(hidden, dim)

    def forward(self, z: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Next latents [N, D] of latents [N, D] and actions [N, A]."""
        return self.cell(self.embed(action), z)

    @torch.no_grad()
    def imagine(
        self, z: torch.Tensor, actions: torch.Tensor, workspace: Workspace | None = None
    ) -> torch.Tensor:
        """Latents [B, K, H, D] that K candidates [B, K, H, A] lead to from latents [B, D]."""
        batch, count, horizon = actions.shape[:3]
        rows, dim = batch * count, z.shape[1]
        read, bias = self.cell.weight_hh.t(), self.cell.bias_hh
        memory = workspace or Workspace()
        out, seen = memory.empty("out", z, horizon, rows, dim), memory.empty("seen", z, rows, 3 * dim)
        seen.view(batch, count, -1).copy_(torch.addmm(bias, z, read).unsqueeze(1).expand(-1, count, -1))
        now = z.unsqueeze(1).expand(-1, count, -1).reshape(rows, dim)
        for t, told in enumerate(self._told(actions.flatten(0, 1))):
            if t:
                torch.addmm(bias, now, read, out=seen)
            gates = told[:, : 2 * dim].add_(seen[:, : 2 * dim]).sigmoid_()
            fresh = told[:, 2 * dim :].addcmul_(gates[:, :dim], seen[:, 2 * dim :]).tanh_()
            now = torch.lerp(fresh, now, gates[:, dim:], out=out[t])
        return out.unflatten(1, (batch, count)).permute(1, 2, 0, 3)

    def _told(self, actions: torch.Tensor) -> Iterator[torch.Tensor]:
        """What the cell is told [N, 3 D] at each step of actions [N, H, A]: of few candidates all steps at once, which
        takes fewer calls; of many one after another, which stays in the cache."""
        rows, horizon = actions.shape[:2]
        width, bias = self.cell.weight_ih.t(), self.cell.bias_ih
        if rows * horizon > _ROWS_AT_ONCE:
            for action in actions.unbind(1):
                yield torch.addmm(bias, self.embed(action), width)
            return
        together = self.embed(actions.transpose(0, 1).reshape(horizon * rows, -1))
        yield from torch.addmm(bias, together, width).view(horizon, rows, -1).unbind(0)


class ResidualPredictor(nn.Module):
    """z' = z + f([z, a]) with a three-layer perceptron f.

    Args:
        dim: D of the latents.
        action_dim: A.
        hidden: width of f.
    """

    def __init__(self, dim: int, action_dim: int, *, hidden: int = 512) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.Linear(dim + action_dim, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, dim),
        )

    def forward(self, z: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Next latents [N, D] of latents [N, D] and actions [N, A]."""
        return z + self.change(torch.cat([z, action], dim=-1))

    @torch.no_grad()
    def imagine(
        self, z: torch.Tensor, actions: torch.Tensor, workspace: Workspace | None = None
    ) -> torch.Tensor:
        """Latents [B, K, H, D] that K candidates [B, K, H, A] lead to from latents [B, D]."""
        batch, count, horizon = actions.shape[:3]
        rows, dim = batch * count, z.shape[1]
        first, second, last = (layer for layer in self.change if isinstance(layer, nn.Linear))
        norm = self.change[1]
        assert isinstance(norm, nn.LayerNorm)
        of_latent, of_action, width = first.weight[:, :dim].t(), first.weight[:, dim:].t(), first.out_features
        memory = workspace or Workspace()
        out = memory.empty("out", z, horizon, rows, dim)
        inner, outer = (memory.empty(name, z, rows, width) for name in ("inner", "outer"))
        now = z.unsqueeze(1).expand(-1, count, -1).reshape(rows, dim)
        for t, action in enumerate(actions.flatten(0, 1).unbind(1)):
            torch.addmm(first.bias, action, of_action, out=inner)
            if t:
                inner.addmm_(now, of_latent)
            else:
                inner.view(batch, count, width).add_((z @ of_latent).unsqueeze(1))
            normed = norm(inner).relu_()
            torch.addmm(second.bias, normed, second.weight.t(), out=outer)
            now = torch.addmm(last.bias, outer.relu_(), last.weight.t(), out=out[t]).add_(now)
        return out.unflatten(1, (batch, count)).permute(1, 2, 0, 3)
