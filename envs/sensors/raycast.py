"""Casting rays against triangles. One interface; embree behind it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Hits:
    """First intersections of R rays.

    Attributes:
        distance: [R] float32 in metres along the unit direction, inf where nothing is hit.
        triangle: [R] int32 index of the triangle, -1 where nothing is hit.
    """

    distance: np.ndarray
    triangle: np.ndarray


class Caster(Protocol):
    """Something that finds the nearest triangle along rays."""

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """Cast rays from origins [R, 3] along unit directions [R, 3], both float32."""
        ...


class EmbreeCaster:
    """Nearest hits by Intel Embree over triangles [T, 3, 3] float32.

    Raises:
        ImportError: if embreex is not installed; the message names the command that installs it.
    """

    def __init__(self, triangles: np.ndarray) -> None:
        try:
            from embreex.mesh_construction import TriangleMesh
            from embreex.rtcore_scene import EmbreeScene
        except ImportError as error:
            raise ImportError("ray casting needs embreex: pip install 'embreex>=4.4'") from error
        self._empty = len(triangles) == 0
        self._scene = EmbreeScene()
        if not self._empty:
            # The scene keeps pointers to the mesh only; hold the mesh as long as the scene lives.
            self._mesh = TriangleMesh(self._scene, np.ascontiguousarray(triangles, np.float32))

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """Cast rays from origins [R, 3] along unit directions [R, 3], both float32."""
        if origins.shape != directions.shape or origins.ndim != 2 or origins.shape[1] != 3:
            raise ValueError(
                f"origins and directions must both be [R, 3]; got {origins.shape} and {directions.shape}"
            )
        if self._empty or len(origins) == 0:
            return Hits(np.full(len(origins), np.inf, np.float32), np.full(len(origins), -1, np.int32))
        result = self._scene.run(
            np.ascontiguousarray(origins, np.float32),
            np.ascontiguousarray(directions, np.float32),
            query="INTERSECT",
            output=True,
        )
        missed = result["geomID"] < 0
        distance = np.where(missed, np.float32(np.inf), result["tfar"])
        return Hits(distance, np.where(missed, np.int32(-1), result["primID"]))
