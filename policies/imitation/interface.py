"""What goes into a policy and comes out of it, and the errors of whatever does not fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from policies.imitation.batches import ChunkBatch, ObservationError, PolicyObservation


class ChunkError(ValueError):
    """A batch holds chunks of another length than the policy predicts."""


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What goes into a policy and comes out of it.

    Attributes:
        state_dim, action_dim: Ds, Da.
        chunk: C, actions predicted at once.
        tasks: names, whose place is the task index.
        environment_dim: De, or None for none.
        image_size: (height, width), or None for none.
        points: whether it sees LiDAR sweeps.
    """

    state_dim: int
    action_dim: int
    chunk: int
    tasks: tuple[str, ...]
    environment_dim: int | None = None
    image_size: tuple[int, int] | None = None
    points: bool = False

    def __post_init__(self) -> None:
        if min(self.state_dim, self.action_dim, self.chunk) < 1 or not self.tasks:
            raise ValueError(
                f"widths and chunk are at least 1 and a policy has at least one task, got {self}"
            )
        if self.points and self.image_size is not None:
            raise ValueError("a policy sees images or LiDAR sweeps, not both: leave out one of them")
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"a task stands twice in {self.tasks}")

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> "Interface":
        """From what `dataclasses.asdict` made of one and JSON of that.

        Raises:
            KeyError, TypeError, ValueError: if it is no interface.
        """
        size = known["image_size"]
        return cls(
            **{**known, "tasks": tuple(known["tasks"]), "image_size": None if size is None else tuple(size)}
        )

    def task_index(self, name: str) -> int:
        """Place of a task.

        Raises:
            ObservationError: naming the tasks there are.
        """
        if name not in self.tasks:
            raise ObservationError(f"this policy has no task {name!r}, only {', '.join(self.tasks)}")
        return self.tasks.index(name)

    def check(self, observation: PolicyObservation) -> None:
        """Raise ObservationError if a part is missing, not expected, of another shape or not finite."""
        self._check_shapes(observation)
        for name in ("state", "environment"):
            value = getattr(observation, name)
            if value is not None and not bool(value.isfinite().all()):
                row = int((~value.isfinite()).flatten(1).any(1).nonzero()[0])
                raise ObservationError(f"{name} of row {row} holds NaN or infinite numbers")
        if observation.points is not None:
            finite = observation.points.isfinite().all(-1)
            broken = ~(finite | observation.points.isinf().all(-1))
            for rows, what in (
                (broken.any(1), "NaN or infinite numbers"),
                (~finite.any(1), "no point at all"),
            ):
                if bool(rows.any()):
                    raise ObservationError(f"the sweep of row {int(rows.nonzero()[0])} holds {what}")
        if len(observation) and not 0 <= int(observation.task.min()) <= int(observation.task.max()) < len(
            self.tasks
        ):
            raise ObservationError(f"task indices must lie in 0..{len(self.tasks) - 1}")

    def check_batch(self, batch: ChunkBatch) -> None:
        """Raise ObservationError or ChunkError if a batch does not fit; no number is looked at."""
        self._check_shapes(batch.observation)
        if batch.action.shape[1] != self.chunk:
            raise ChunkError(
                f"the batch holds chunks of {batch.action.shape[1]} actions, the policy predicts {self.chunk}: give "
                f"the data set chunk={self.chunk}"
            )
        if batch.action.shape[2] != self.action_dim:
            raise ObservationError(
                f"actions have {batch.action.shape[2]} numbers, the policy's have {self.action_dim}"
            )

    def _check_shapes(self, observation: PolicyObservation) -> None:
        image = None if self.image_size is None else (3, *self.image_size)
        environment = None if self.environment_dim is None else (self.environment_dim,)
        points = None
        if self.points:  # sweeps have any number of points
            points = (0 if observation.points is None else observation.points.shape[1], 4)
        expected = {"state": (self.state_dim,), "environment": environment, "image": image, "points": points}
        for name, shape in expected.items():
            value = getattr(observation, name)
            if value is None and shape is not None:
                raise ObservationError(f"the policy sees {name} {list(shape)}, but the observation has none")
            if value is not None and shape is None:
                raise ObservationError(f"the policy was built without {name}, but the observation has one")
            if value is not None and tuple(value.shape[1:]) != shape:
                raise ObservationError(
                    f"{name} must be {list(shape or ())} per row, got {list(value.shape[1:])}"
                )
