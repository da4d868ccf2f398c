"""What a policy sees at a decision, and the stretches of demonstrations it learns from."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class ObservationError(ValueError):
    """Observations or batches that do not fit a policy: a missing or unexpected part, a wrong width, NaN."""


def _with(batch: T, change: Callable[[torch.Tensor], torch.Tensor]) -> T:
    """A dataclass with each of its tensors changed, and those of its parts."""
    changes: dict[str, Any] = {}
    for field in fields(batch):  # type: ignore[arg-type]
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor):
            changes[field.name] = change(value)
        elif isinstance(value, History):
            changes[field.name] = _with(value, change)
    return replace(batch, **changes)  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """The L steps before an observation, oldest first, for policies with a memory.

    Attributes:
        state: [B, L, Ds].
        environment: [B, L, De] or None.
        image: [B, L, 3, H, W] uint8 or None.
        action: [B, L, Da], what was executed, in the units of the environment.
        count: [B] int64, how many steps are there; rows are filled from the left, the rest holds anything finite.
    """

    state: torch.Tensor
    environment: torch.Tensor | None
    image: torch.Tensor | None
    action: torch.Tensor
    count: torch.Tensor

    def to(self, device: torch.device | str) -> "History":
        """The same history on another device."""
        return _with(self, lambda tensor: tensor.to(device, non_blocking=True))

    def select(self, rows: torch.Tensor) -> "History":
        """The given rows [N] int64."""
        return _with(self, lambda tensor: tensor[rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyObservation:
    """All that a policy and its context encoder see of B situations: the current step, never a later one.

    Attributes:
        state: [B, Ds] float32, proprioception.
        environment: [B, De] float32, the low-dimensional rest of the observation, or None.
        image: [B, 3, H, W] uint8, or None.
        points: [B, P, 4] float32, a LiDAR sweep (x, y, z in metres, intensity 0..1), or None; rows of infinity are no
            points.
        task: [B] int64, index among the tasks of the policy.
        history: earlier steps; read only by policies with a memory.
    """

    state: torch.Tensor
    environment: torch.Tensor | None
    image: torch.Tensor | None
    task: torch.Tensor
    history: History | None = None
    points: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.state.ndim != 2 or self.task.shape != self.state.shape[:1] or self.task.dtype != torch.int64:
            raise ObservationError(
                f"state is [B, Ds] and task [B] int64, got {tuple(self.state.shape)} and {tuple(self.task.shape)} "
                f"{self.task.dtype}"
            )
        for name, value, ndim in (
            ("environment", self.environment, 2),
            ("image", self.image, 4),
            ("points", self.points, 3),
        ):
            if value is not None and (value.ndim != ndim or len(value) != len(self.state)):
                raise ObservationError(
                    f"{name} must have {ndim} axes and {len(self.state)} rows, got {tuple(value.shape)}"
                )

    def __len__(self) -> int:
        return len(self.state)

    @property
    def sensor(self) -> torch.Tensor | None:
        """What the sensor tokens are made of: the image, or the sweep."""
        return self.points if self.image is None else self.image

    def to(self, device: torch.device | str) -> "PolicyObservation":
        """The same observation on another device."""
        return _with(self, lambda tensor: tensor.to(device, non_blocking=True))

    def select(self, rows: torch.Tensor) -> "PolicyObservation":
        """The given rows [N] int64."""
        return _with(self, lambda tensor: tensor[rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class ChunkBatch:
    """Stretches of demonstrations that begin at the current step: T observed states and C actions.

    Where an episode ends early its last step is repeated and marked in `is_pad`; nothing may depend on those values.
    Only `observation` goes to a policy; the rest are labels and targets.

    Attributes:
        state: [B, T, Ds] float32, states of steps 0..T-1; step 0 is the current one.
        environment: [B, De] float32 of the current step, or None.
        image: [B, 3, H, W] uint8 of the current step, or None.
        action: [B, C, Da] float32, actions of steps 0..C-1.
        is_pad: [B, max(T, C)] bool, true past the end of the episode; never at step 0.
        has_action: [B] bool, false for demonstrations without action labels, whose actions are zero.
        task: [B] int64.
        seeds: one integer per stretch: the seed of every random draw made for it.
        environments: [B, T, De], all steps, where the data set was asked for them, else None.
        images: [B, K, 3, H, W] uint8 of the steps 0, s, 2 s, ... below T, where it was asked for a stride s, else None.
        points: [B, P, 4] float32 of the current step, or None.
    """

    state: torch.Tensor
    environment: torch.Tensor | None
    image: torch.Tensor | None
    action: torch.Tensor
    is_pad: torch.Tensor
    has_action: torch.Tensor
    task: torch.Tensor
    seeds: tuple[int, ...]
    environments: torch.Tensor | None = None
    images: torch.Tensor | None = None
    points: torch.Tensor | None = None

    def __post_init__(self) -> None:
        batch = len(self.seeds)
        if self.state.ndim != 3 or self.action.ndim != 3 or len(self.state) != batch:
            raise ObservationError(
                f"states are [B, T, Ds] and actions [B, C, Da] with B seeds, got {tuple(self.state.shape)}, "
                f"{tuple(self.action.shape)} and {batch}"
            )
        longest = (batch, max(self.state.shape[1], self.action.shape[1]))
        if self.is_pad.shape != longest or self.has_action.shape != (batch,):
            raise ObservationError(
                f"is_pad must be {longest} and has_action {(batch,)}, got {tuple(self.is_pad.shape)} and "
                f"{tuple(self.has_action.shape)}"
            )

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def observation(self) -> PolicyObservation:
        """What a policy sees."""
        return PolicyObservation(
            state=self.state[:, 0],
            environment=self.environment,
            image=self.image,
            task=self.task,
            points=self.points,
        )

    @property
    def state_is_pad(self) -> torch.Tensor:
        """[B, T] bool."""
        return self.is_pad[:, : self.state.shape[1]]

    @property
    def action_is_pad(self) -> torch.Tensor:
        """[B, C] bool, of the episode, whether or not its actions are known."""
        return self.is_pad[:, : self.action.shape[1]]

    @property
    def action_counts(self) -> torch.Tensor:
        """[B, C] bool, true where there is an action to learn from."""
        return ~self.action_is_pad & self.has_action.unsqueeze(1)

    def to(self, device: torch.device | str) -> "ChunkBatch":
        """The same batch on another device."""
        return _with(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "ChunkBatch":
        """The same batch in page-locked memory."""
        return _with(self, torch.Tensor.pin_memory)
