"""What a sensor looks at: triangles with optical properties, and the boxes of the objects among them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Box:
    """An upright box around one object.

    Attributes:
        category: class name ("Car", "Van", "Truck", "Pedestrian", "Cyclist").
        center: x, y, z of the box centre in metres, world frame (x forward, y left, z up).
        size: length, width, height in metres.
        yaw: heading in radians, counter-clockwise from +x.
        object_id: the value that marks its triangles in `World.object_id`.
    """

    category: str
    center: tuple[float, float, float]
    size: tuple[float, float, float]
    yaw: float
    object_id: int

    def inside(self, points: np.ndarray, *, margin: float = 0.0) -> np.ndarray:
        """Boolean mask [N] of the points [N, >=3] inside the box grown by `margin` metres on every side."""
        offset = points[:, :3] - np.asarray(self.center, points.dtype)
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        half = np.asarray(self.size) / 2 + margin
        along = c * offset[:, 0] + s * offset[:, 1]
        across = -s * offset[:, 0] + c * offset[:, 1]
        return (np.abs(along) <= half[0]) & (np.abs(across) <= half[1]) & (np.abs(offset[:, 2]) <= half[2])

    def corners(self) -> np.ndarray:
        """The corners [8, 3] float64: the bottom four counter-clockwise from front left, then the top four."""
        a, b, h = (v / 2 for v in self.size)
        local = np.array([(x, y, z) for z in (-h, h) for x, y in ((a, b), (-a, b), (-a, -b), (a, -b))])
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return local @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) + np.asarray(self.center)


@dataclass(frozen=True, kw_only=True)
class World:
    """A frozen scene. The origin lies on the ground below the sensor; x forward, y left, z up; metres.

    Attributes:
        triangles: [T, 3, 3] float32 vertices.
        albedo: [T] float32: diffuse reflectance; about 0 for glass, above 1 for retro-reflectors.
        relief: [T] float32: height in metres of surface detail finer than the mesh (1 sigma), such as grass.
        object_id: [T] int32: index of the object, -1 for static surroundings.
        boxes: the labelled objects.

    Raises:
        ValueError: on a wrong shape or vertices that are not finite.
    """

    triangles: np.ndarray
    albedo: np.ndarray
    relief: np.ndarray
    object_id: np.ndarray
    boxes: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        if self.triangles.ndim != 3 or self.triangles.shape[1:] != (3, 3):
            raise ValueError(f"triangles must be [T, 3, 3]; got {self.triangles.shape}")
        count = (len(self.triangles),)
        for name in ("albedo", "relief", "object_id"):
            if getattr(self, name).shape != count:
                raise ValueError(f"{name} must be {count}, one per triangle; got {getattr(self, name).shape}")
        if not np.isfinite(self.triangles).all():
            raise ValueError("triangles hold NaN or infinite vertices")

    def select(self, keep: np.ndarray) -> "World":
        """The same world with the triangles of a boolean mask [T] only; the boxes stay."""
        return World(
            triangles=self.triangles[keep],
            albedo=self.albedo[keep],
            relief=self.relief[keep],
            object_id=self.object_id[keep],
            boxes=self.boxes,
        )
