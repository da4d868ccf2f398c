"""Discs turned in the plane: an episode source whose z, classes and rotations are known."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation


@dataclass(frozen=True)
class Drawn:
    observations: np.ndarray
    actions: np.ndarray
    labels: dict[str, np.ndarray]


class Turned:
    """Items of 3 classes; a view is (cos, sin) of its angle and the one-hot class, both with noise."""

    def __init__(self, items: int = 60, limit: float = 60.0) -> None:
        self.items, self.limit = items, np.radians(limit)

    def __len__(self) -> int:
        return self.items

    def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Any:
        angle = generator.uniform(-self.limit, self.limit, steps)
        pose = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        label = np.eye(3)[item % 3] + 0.8 * generator.standard_normal((steps, 3))
        turns = Rotation.from_rotvec(np.outer(np.diff(angle), [0, 0, 1])).as_quat(canonical=True)
        poses = Rotation.from_rotvec(np.outer(angle, [0, 0, 1])).as_quat(canonical=True)
        return Drawn(
            observations=np.concatenate([pose, label], axis=1).astype(np.float32),
            actions=turns.astype(np.float32),
            labels={"class": np.int64(item % 3), "rotation": poses.astype(np.float32)},  # type: ignore[dict-item]
        )
