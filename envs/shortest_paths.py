"""Shortest paths of a point among axis-parallel boxes: the true distance to a goal."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

# Boxes are entered by less than this before they block: a path may run along them and bend at their corners.
_SKIN = 1e-6


@dataclass(frozen=True, eq=False)
class FreeSpace:
    """A rectangle with boxes in it.

    Attributes:
        low, high: corners [2] of the rectangle.
        boxes: [K, 2, 2], of each box the low corner and the high one. Boxes that touch must overlap, or a path could
            run between them.
    """

    low: np.ndarray
    high: np.ndarray
    boxes: np.ndarray

    def corners(self) -> np.ndarray:
        """Corners [C, 2] of the boxes that a path can bend at."""
        grid = [self.boxes[:, (0, 0, 1, 1), 0], self.boxes[:, (0, 1, 0, 1), 1]]
        corners = np.stack(grid, axis=-1).reshape(-1, 2)
        inside = ((corners >= self.low) & (corners <= self.high)).all(axis=1)
        return corners[inside & self.free(corners)]

    def free(self, points: np.ndarray) -> np.ndarray:
        """Whether points [N, 2] are in no box."""
        low, high = self.boxes[:, 0] + _SKIN, self.boxes[:, 1] - _SKIN
        return ~((points[:, None] > low) & (points[:, None] < high)).all(axis=2).any(axis=1)

    def visible(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Whether the segments between points [..., 2] (broadcast) meet no box."""
        starts, ends = np.broadcast_arrays(starts, ends)
        start, way = starts[..., None, :], (ends - starts)[..., None, :]
        with np.errstate(divide="ignore", invalid="ignore"):
            first = (self.boxes[:, 0] + _SKIN - start) / way
            second = (self.boxes[:, 1] - _SKIN - start) / way
        # 0 / 0 or x / 0: parallel to an axis, and always or never between the two faces across it.
        between = (start > self.boxes[:, 0] + _SKIN) & (start < self.boxes[:, 1] - _SKIN)
        enter = np.where(way == 0, np.where(between, -np.inf, np.inf), np.minimum(first, second)).max(axis=-1)
        leave = np.where(way == 0, np.where(between, np.inf, -np.inf), np.maximum(first, second)).min(axis=-1)
        return ~((enter < leave) & (enter < 1) & (leave > 0)).any(axis=-1)

    def path_lengths(self, starts: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Lengths [N] of the shortest free paths from points [N, 2] to a point [2]; infinite where there is none.

        Such a path is straight or bends at corners of boxes only. A start in a box counts from the nearest face: soft
        contacts let bodies sink into walls.
        """
        starts, goal = (
            self._pushed_out(np.array(starts, dtype=np.float64)),
            np.asarray(goal, dtype=np.float64),
        )
        corners, between = self._corner_graph
        direct = self._lengths(starts, goal)
        if not len(corners):
            return direct
        beyond = (between + self._lengths(corners, goal)).min(axis=1)
        return np.minimum(direct, (self._lengths(starts[:, None], corners) + beyond).min(axis=1))

    def _pushed_out(self, points: np.ndarray) -> np.ndarray:
        """Points [N, 2] with those inside of boxes moved to the nearest face, box after box."""
        for low, high in self.boxes:
            inside = ((points > low + _SKIN) & (points < high - _SKIN)).all(axis=1)
            if inside.any():
                rows = np.flatnonzero(inside)
                faces = np.concatenate([low - points[rows], high - points[rows]], axis=1)
                nearest = abs(faces).argmin(axis=1)
                points[rows, nearest % 2] += faces[np.arange(len(rows)), nearest]
        return points

    @cached_property
    def _corner_graph(self) -> tuple[np.ndarray, np.ndarray]:
        """Corners [C, 2] and the lengths [C, C] of the shortest paths between them (Floyd-Warshall)."""
        corners = self.corners()
        between = self._lengths(corners[:, None], corners[None])
        for via in range(len(corners)):
            between = np.minimum(between, between[:, via, None] + between[None, via])
        return corners, between

    def _lengths(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Lengths of the free segments between points, infinite for those that are not free."""
        return np.where(self.visible(starts, ends), np.linalg.norm(ends - starts, axis=-1), np.inf)
