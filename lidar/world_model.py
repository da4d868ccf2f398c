"""A bird's-eye world model: the latent map ahead of a vehicle under its speed and yaw rate.

The next map is the newest one, its deviation from a prior moved by the ego motion that the action stands for, plus what
a convolutional network adds: what comes into view, what moves by itself, what is seen from another side.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from lidar.drive_features import BEVGrid
from worldmodel.batches import EpisodeBatch, LatentState
from worldmodel.monitors import CopyLast, representation_health
from worldmodel.objectives import Loss, PredictionError
from worldmodel.protocols import RepresentationCollapse
from worldmodel.targets import EMATarget, SharedTarget

PERIOD = 0.1  # seconds that one (speed, yaw rate) lasts
ACTION_SCALE = (7.0, 0.3)  # speed (m/s) and yaw rate (rad/s) that count as 1 for the network
Condition = Literal["motion", "action", "none"]


def ego_motion(actions: torch.Tensor, *, period: float = PERIOD) -> torch.Tensor:
    """Displacement [..., 3] (x, y in metres in the frame before, yaw in radians) of a unicycle under action blocks.

    Args:
        actions: [..., 2 n]: n times (speed in m/s, yaw rate in rad/s), each held for `period` seconds: exact arcs.
    """
    speed, rate = actions.unflatten(-1, (-1, 2)).unbind(-1)
    turn = rate * period
    before = turn.cumsum(-1) - turn
    chord = speed * period * torch.sinc(turn / (2 * torch.pi))
    bearing = before + turn / 2
    return torch.stack(
        [(chord * bearing.cos()).sum(-1), (chord * bearing.sin()).sum(-1), turn.sum(-1)], dim=-1
    )


def compose(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Displacement [..., 3] of `first` and then `second`, which is given in the frame after the first."""
    c, s = first[..., 2].cos(), first[..., 2].sin()
    x = first[..., 0] + c * second[..., 0] - s * second[..., 1]
    y = first[..., 1] + s * second[..., 0] + c * second[..., 1]
    return torch.stack([x, y, first[..., 2] + second[..., 2]], dim=-1)


def moved(maps: torch.Tensor, motion: torch.Tensor, grid: BEVGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps as a vehicle sees them after a displacement: bilinear, 0 where the old map does not reach.

    Args:
        maps: [B, C, H, W].
        motion: [B, 3] x, y (m), yaw (rad) in the frame of the maps.

    Returns:
        The maps [B, C, H, W], and the share [B, 1, H, W] of each cell that the old map covers. Differentiable in both.
    """
    center = grid.centers().to(maps)
    c, s = motion[:, 2].cos()[:, None, None], motion[:, 2].sin()[:, None, None]
    x = motion[:, 0, None, None] + c * center[..., 0] - s * center[..., 1]
    y = motion[:, 1, None, None] + s * center[..., 0] + c * center[..., 1]
    extent = maps.new_tensor([grid.columns * grid.cell, grid.rows * grid.cell])
    where = (torch.stack([x, y], dim=-1) - maps.new_tensor(grid.origin)) / extent * 2 - 1
    padded = torch.cat([maps, torch.ones_like(maps[:, :1])], dim=1)
    sampled = nn.functional.grid_sample(padded, where, padding_mode="zeros", align_corners=False)
    return sampled[:, :-1], sampled[:, -1:]


class BEVWorldModel(nn.Module):
    """Encoder, ego motion and a convolutional network that corrects the moved map: what is used after training.

    Args:
        encoder: observations [N, ...] to latent maps [N, C, H, W]; the identity where they are encoded already.
        channels: C.
        grid: of the maps.
        action_dim: A = 2 n, n pairs of speed (m/s) and yaw rate (rad/s) per step.
        condition: "motion" moves the maps by the ego motion and shows the actions to the network; "action" only shows
            the actions; "none" is the action-free ablation. All have the same parameters.
        window: maps the network sees, the latest M; missing ones are zero.
        width, dilations: of the network.
        action_embed: channels of the embedded actions.
        prior: [C, H, W] what the prior begins with, such as the mean latent of each cell; 0 without. It is the part of
            a map that stays with the sensor (rings on the road, the far end): only deviations from it are moved.
    """

    places: torch.Tensor

    def __init__(
        self,
        *,
        encoder: nn.Module,
        channels: int,
        grid: BEVGrid,
        action_dim: int,
        condition: Condition = "motion",
        window: int = 3,
        width: int = 24,
        dilations: Sequence[int] = (1, 2, 4, 1),
        action_embed: int = 8,
        prior: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        if condition not in ("motion", "action", "none"):
            raise ValueError(f"condition is motion, action or none, got {condition!r}")
        if action_dim < 2 or action_dim % 2:
            raise ValueError(f"an action is pairs of speed and yaw rate, got {action_dim} numbers")
        self.encoder, self.channels, self.grid = encoder, channels, grid
        self.condition, self.window, self.action_dim = condition, window, action_dim
        self.action_embedding = nn.Linear(window * action_dim, action_embed)
        layers: list[nn.Module] = []
        inputs = seen_by_network = window * (channels + 1) + 2 * channels + 2 + action_embed
        for dilation in dilations:
            layers += [
                nn.Conv2d(inputs, width, 3, padding=dilation, dilation=dilation, bias=False),
                nn.GroupNorm(4, width),
                nn.GELU(),
            ]
            inputs = width
        self.network = nn.Sequential(*layers)
        self.residual = nn.Conv2d(width, channels, 1, bias=False)
        # The linear path learns in a few steps how far to trust the newest map. It and the residual begin at zero: an
        # untrained model copies, or copies and moves.
        self.linear = nn.Conv2d(seen_by_network, channels, 3, padding=1, bias=False)
        start = torch.zeros(channels, grid.rows, grid.columns) if prior is None else prior.clone()
        if start.shape != (channels, grid.rows, grid.columns):
            raise ValueError(
                f"prior must be [{channels}, {grid.rows}, {grid.columns}], got {tuple(start.shape)}"
            )
        self.prior = nn.Parameter(start)
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.linear.weight)
        middle = grid.centers() / (grid.cell * max(grid.rows, grid.columns))
        self.register_buffer("places", middle.permute(2, 0, 1), persistent=False)

    def encode(self, observations: torch.Tensor) -> torch.Tensor:
        """Latent maps [B, T, C, H, W] of observations [B, T, ...]."""
        return self.encoder(observations.flatten(0, 1)).unflatten(0, observations.shape[:2])

    def predict(self, state: LatentState, action: torch.Tensor) -> torch.Tensor:
        """The next map [B, C, H, W] after an action [B, A]."""
        maps = state.latents[:, -self.window :]
        batch, count = maps.shape[:2]
        if maps.shape[2:] != (self.channels, self.grid.rows, self.grid.columns):
            raise ValueError(
                f"latents must be [B, M, {self.channels}, {self.grid.rows}, {self.grid.columns}], "
                f"got {tuple(maps.shape)}"
            )
        actions = torch.cat([state.actions[:, state.actions.shape[1] - count + 1 :], action[:, None]], dim=1)
        if self.condition == "none":
            actions = torch.zeros_like(actions)
        shown, seen = self._brought_forward(maps - self.prior, actions)
        newest = shown[:, -1]
        missing = self.window - count
        if missing:
            shown = torch.cat([shown.new_zeros(batch, missing, *shown.shape[2:]), shown], dim=1)
            seen = torch.cat([seen.new_zeros(batch, missing, *seen.shape[2:]), seen], dim=1)
            actions = torch.cat([actions.new_zeros(batch, missing, self.action_dim), actions], dim=1)
        scale = actions.new_tensor(ACTION_SCALE).repeat(self.action_dim // 2)
        embedded = self.action_embedding((actions / scale).flatten(1))
        embedded = embedded[:, :, None, None].expand(-1, -1, *newest.shape[2:])
        places = self.places.to(newest).expand(batch, -1, -1, -1)
        # Along a street, what comes into view is like what was at that place before.
        unmoved = maps[:, -1] - self.prior
        fill = (1 - seen[:, -1]) * unmoved
        features = torch.cat(
            [shown.flatten(1, 2), seen.flatten(1, 2), unmoved, fill, places, embedded], dim=1
        )
        return newest + self.linear(features) + self.residual(self.network(features)) + self.prior

    def rollout(self, state: LatentState, future: torch.Tensor) -> torch.Tensor:
        """Imagined maps [B, H, C, H', W'] for future actions [B, H, A]."""
        imagined = []
        for action in future.unbind(1):
            guess = self.predict(state, action)
            imagined.append(guess)
            state = state.append(guess, action, window=self.window)
        return torch.stack(imagined, dim=1)

    def _brought_forward(
        self, maps: torch.Tensor, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps [B, M, C, H, W] in the frame after the last of the actions [B, M, A], and coverage [B, M, 1, H, W]."""
        if self.condition != "motion":
            return maps, torch.ones_like(maps[:, :, :1])
        total = actions.new_zeros(len(maps), 3)
        motions = []
        for action in actions.flip(1).unbind(1):
            total = compose(ego_motion(action), total)
            motions.append(total)
        motion = torch.stack(motions[::-1], dim=1)
        shown, seen = moved(maps.flatten(0, 1), motion.flatten(0, 1), self.grid)
        return shown.unflatten(0, maps.shape[:2]), seen.unflatten(0, maps.shape[:2])


class BEVWorldModelTask(nn.Module):
    """Trains a `BEVWorldModel` on imagined maps `horizon` steps ahead, as a task of the training loop.

    Args:
        model: the world model.
        target: what encodes the targets: SharedTarget where the encoder is fixed, EMATarget where it learns.
        context: maps it starts from.
        horizon: steps imagined, each from the one before.
        error: of a map; dim 2 of [B, H, C, H', W'] are the channels.
        collapse_std: standard deviation of held-out latents over episodes below which training stops.
    """

    def __init__(
        self,
        *,
        model: BEVWorldModel,
        target: EMATarget | SharedTarget,
        context: int = 3,
        horizon: int = 4,
        error: PredictionError | None = None,
        collapse_std: float = 1e-3,
    ) -> None:
        super().__init__()
        if isinstance(target, SharedTarget) and any(p.requires_grad for p in model.encoder.parameters()):
            raise ValueError("an encoder that learns needs EMATarget: a shared target would collapse")
        if context < 1 or horizon < 1:
            raise ValueError(f"context and horizon must be at least 1, got {context} and {horizon}")
        self.model, self.target = model, target
        self.context, self.horizon = context, horizon
        self.error = error or PredictionError(kind="mse", dim=2)
        self.collapse_std = collapse_std

    def imagine(self, batch: EpisodeBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Imagined maps and targets [B, H, C, H', W'], and the newest map seen [B, C, H', W'].

        Raises:
            ValueError: if the stretches are too short.
        """
        context, steps = self.context, self.context + self.horizon
        if batch.observations.shape[1] < steps:
            raise ValueError(
                f"{context} maps and {self.horizon} steps ahead need stretches of {steps} observations, got "
                f"{batch.observations.shape[1]}"
            )
        z = self.model.encode(batch.observations[:, :context])
        state = LatentState(latents=z, actions=batch.actions[:, : context - 1])
        imagined = self.model.rollout(state, batch.actions[:, context - 1 : steps - 1])
        future = batch.observations[:, context:steps]
        goal = self.target(self.model.encoder, future.flatten(0, 1)).unflatten(0, future.shape[:2])
        return imagined, goal, z[:, -1]

    def training_step(self, batch: EpisodeBatch, step: int) -> Loss:
        imagined, goal, _ = self.imagine(batch)
        return self.error(prediction=imagined, target=goal)

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        momentum = self.target.update(self.model.encoder, progress=step / total_steps)
        return {} if momentum is None else {"ema_momentum": momentum}

    @torch.no_grad()
    def monitors(self, batches: Sequence[EpisodeBatch]) -> dict[str, float]:
        """Error against that of copying the newest map, at the first and the last step, and health of the latents."""
        device = self.model.places.device
        steps = {"first": 0, "last": self.horizon - 1}
        ratios = {name: CopyLast() for name in steps}
        latents = []
        for whole in batches:
            imagined, goal, newest = self.imagine(whole.to(device))
            latents.append(goal.flatten(0, 1))
            for name, step in steps.items():
                ratios[name].update(
                    prediction=imagined[:, step].movedim(1, -1),
                    target=goal[:, step].movedim(1, -1),
                    last=newest.movedim(1, -1),
                )
        maps = torch.cat(latents)
        spread = float(maps.std(dim=0).mean()) if len(maps) > 1 else float("nan")
        if not spread >= self.collapse_std:
            raise RepresentationCollapse(
                f"the latent maps collapsed: over held-out sweeps a cell's standard deviation is {spread:.2g} (limit "
                f"{self.collapse_std}). Lower trainer.max_lr or raise the EMA momentum"
            )
        cells = maps.movedim(1, -1).flatten(0, -2)
        return {
            **representation_health(cells[:: max(1, len(cells) // 4096)]),
            "z_std": spread,
            **{f"copy_last_ratio_{name}": ratio.compute().ratio for name, ratio in ratios.items()},
        }
