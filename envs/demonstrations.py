"""Demonstrations: what an expert saw and did, for policies to imitate."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Demonstration:
    """T steps of an expert. `action[t]` was chosen on seeing what row t of the others holds.

    Attributes:
        state: [T, Ds] float32, proprioception.
        environment: [T, De] float32, the low-dimensional rest of the observation (objects, goal), or None.
        image: [T, H, W, 3] uint8, or None.
        action: [T, Da] float32, the expert's choice without noise, within the bounds of the environment.
        task: what was done; of recordings of this project the name that `envs.manipulation.make_env` takes.
        seed: of the environment's reset.
        success: whether the task was solved at any time.

    Raises:
        ValueError: on a wrong shape or type, unequal lengths, NaN or infinite numbers.
    """

    state: np.ndarray
    environment: np.ndarray | None
    image: np.ndarray | None
    action: np.ndarray
    task: str
    seed: int
    success: bool

    def __post_init__(self) -> None:
        named = f"demonstration of {self.task!r}, seed {self.seed}"
        for name, rows in (
            ("state", self.state),
            ("environment", self.environment),
            ("action", self.action),
        ):
            if rows is None:
                continue
            if rows.ndim != 2 or rows.dtype != np.float32:
                raise ValueError(
                    f"{named}: {name} must be [T, D] float32, got {list(rows.shape)} {rows.dtype}"
                )
            if not np.isfinite(rows).all():
                step = int(np.argwhere(~np.isfinite(rows))[0][0])
                raise ValueError(f"{named}: {name} holds NaN or infinite numbers, first in step {step}")
        image = self.image
        if image is not None and (image.ndim != 4 or image.shape[3] != 3 or image.dtype != np.uint8):
            raise ValueError(
                f"{named}: image must be [T, H, W, 3] uint8, got {list(image.shape)} {image.dtype}"
            )
        rows_of = {"state": self.state, "environment": self.environment, "image": image}
        lengths = {name: len(rows) for name, rows in rows_of.items() if rows is not None}
        if set(lengths.values()) != {len(self.action)} or not len(self.action):
            raise ValueError(
                f"{named}: {len(self.action)} actions need that many rows, at least 1: {lengths}"
            )

    def __len__(self) -> int:
        """T, the number of steps."""
        return len(self.action)
