"""Typed batches of the world models."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, kw_only=True)
class EpisodeBatch:
    """Stretches of episodes, all of the same length.

    Attributes:
        observations: [B, T, ...].
        actions: [B, T - 1, A] float32; actions[:, t] leads from observations[:, t] to observations[:, t + 1].
        seeds: one integer per stretch: the seed of every random draw made for it.
    """

    observations: torch.Tensor
    actions: torch.Tensor
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.observations.ndim < 2:
            raise ValueError(f"observations must be [B, T, ...], got {tuple(self.observations.shape)}")
        batch, steps = self.observations.shape[:2]
        if self.actions.ndim != 3 or self.actions.shape[:2] != (batch, steps - 1) or len(self.seeds) != batch:
            raise ValueError(
                f"observations [B, T, ...] go with actions [B, T - 1, A] and B seeds, got "
                f"{tuple(self.observations.shape)}, {tuple(self.actions.shape)} and {len(self.seeds)}"
            )

    def to(self, device: torch.device | str) -> "EpisodeBatch":
        """The same batch on another device."""
        return replace(
            self,
            observations=self.observations.to(device, non_blocking=True),
            actions=self.actions.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "EpisodeBatch":
        """The same batch in page-locked memory."""
        return replace(self, observations=self.observations.pin_memory(), actions=self.actions.pin_memory())

    def first(self, steps: int) -> "EpisodeBatch":
        """The first `steps` observations of each stretch."""
        return replace(
            self, observations=self.observations[:, :steps], actions=self.actions[:, : max(steps - 1, 0)]
        )


@dataclass(frozen=True, kw_only=True)
class LatentState:
    """What a world model remembers when it imagines: the latest latents and the actions between them.

    Attributes:
        latents: [B, M, ...], the newest last.
        actions: [B, M - 1, A].
    """

    latents: torch.Tensor
    actions: torch.Tensor

    def __post_init__(self) -> None:
        if self.latents.ndim < 3 or self.actions.shape[:2] != (len(self.latents), self.latents.shape[1] - 1):
            raise ValueError(
                f"latents [B, M, ...] go with actions [B, M - 1, A], got {tuple(self.latents.shape)} and "
                f"{tuple(self.actions.shape)}"
            )

    def __len__(self) -> int:
        return len(self.latents)

    def repeat(self, times: int) -> "LatentState":
        """Each row `times` times in a row: [B * times, ...], for as many candidates of each."""
        return LatentState(
            latents=self.latents.repeat_interleave(times, 0), actions=self.actions.repeat_interleave(times, 0)
        )

    def append(
        self, latent: torch.Tensor, action: torch.Tensor, *, window: int | None = None
    ) -> "LatentState":
        """With the latent [B, ...] that `action` [B, A] led to; at most the newest `window` latents are kept."""
        latents = torch.cat([self.latents, latent.unsqueeze(1).to(self.latents.dtype)], dim=1)
        actions = torch.cat([self.actions, action.unsqueeze(1)], dim=1)
        keep = latents.shape[1] if window is None else min(window, latents.shape[1])
        return LatentState(latents=latents[:, -keep:], actions=actions[:, actions.shape[1] - keep + 1 :])
