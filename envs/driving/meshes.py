"""Triangle meshes from a few primitives, and their assembly into a world."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from envs.sensors.world import Box, World


@dataclass(frozen=True)
class Mesh:
    """Triangles [T, 3, 3] with their albedo [T] and relief [T] (see `World`), all float32."""

    triangles: np.ndarray
    albedo: np.ndarray
    relief: np.ndarray

    @staticmethod
    def of(triangles: np.ndarray, *, albedo: float | np.ndarray, relief: float = 0.0) -> "Mesh":
        """A mesh with one albedo for all triangles, or an array [T]."""
        triangles = np.asarray(triangles, np.float32).reshape(-1, 3, 3)
        count = len(triangles)
        return Mesh(
            triangles,
            np.broadcast_to(np.asarray(albedo, np.float32), count),
            np.full(count, relief, np.float32),
        )

    def fitted(self, *, least_length: float = 0.0) -> "Mesh":
        """The same mesh scaled to the unit box: x and y in [-0.5, 0.5], z in [0, 1].

        A mesh shorter than `least_length` along x is scaled as if it had that length.
        """
        lo, hi = self.triangles.min(axis=(0, 1)), self.triangles.max(axis=(0, 1))
        origin = np.array([(lo[0] + hi[0]) / 2, (lo[1] + hi[1]) / 2, lo[2]], np.float32)
        size = np.maximum(hi - lo, np.array([least_length, 0, 0], np.float32))
        return Mesh((self.triangles - origin) / size, self.albedo, self.relief)


def join(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh from several."""
    return Mesh(
        np.concatenate([m.triangles for m in meshes]),
        np.concatenate([m.albedo for m in meshes]),
        np.concatenate([m.relief for m in meshes]),
    )


def quads(corners: np.ndarray) -> np.ndarray:
    """Triangles [2Q, 3, 3] of quadrilaterals [Q, 4, 3] given as rings of corners."""
    return corners[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3, 3)


def box(center: Sequence[float], size: Sequence[float]) -> np.ndarray:
    """The twelve triangles of an axis-aligned box."""
    signs = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    v = np.asarray(center) + signs * np.asarray(size)
    faces = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    return quads(v[np.array(faces)])


def tube(
    start: Sequence[float], end: Sequence[float], *, radius: Sequence[float], sides: int = 6
) -> np.ndarray:
    """A tapered tube with closed ends from `start` to `end`; `radius` at both ends."""
    p, q = np.asarray(start, float), np.asarray(end, float)
    axis = (q - p) / np.linalg.norm(q - p)
    u = np.cross(axis, [0, 0, 1] if abs(axis[2]) < 0.9 else [1, 0, 0])
    u /= np.linalg.norm(u)
    turn = np.linspace(0, 2 * np.pi, sides, endpoint=False)[:, None]
    circle = np.cos(turn) * u + np.sin(turn) * np.cross(axis, u)
    a, b = p + radius[0] * circle, q + radius[1] * circle
    a2, b2 = np.roll(a, -1, axis=0), np.roll(b, -1, axis=0)
    caps = [np.stack([np.broadcast_to(c, v.shape), v, w], axis=1) for c, v, w in ((p, a, a2), (q, b, b2))]
    return np.concatenate([quads(np.stack([a, a2, b2, b], axis=1)), *caps])


def ball(center: Sequence[float], radius: Sequence[float]) -> np.ndarray:
    """An ellipsoid as a regular icosahedron (20 triangles)."""
    g = (1 + 5**0.5) / 2
    v = np.array([(0, a, b * g) for a in (-1, 1) for b in (-1, 1)])
    v = np.concatenate([v, v[:, [1, 2, 0]], v[:, [2, 0, 1]]]) / np.hypot(1, g)
    edge = 2 / np.hypot(1, g)
    near = np.abs(np.linalg.norm(v[:, None] - v[None], axis=2) - edge) < 1e-6
    faces = [
        (i, j, k)
        for i in range(12)
        for j in range(i)
        for k in range(j)
        if near[i, j] and near[j, k] and near[i, k]
    ]
    return (np.asarray(center) + v * np.asarray(radius))[np.array(faces)]


def hull(profile: ArrayLike, half_width: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """A body swept across its width from a side view.

    Args:
        profile: the side view as a ring of (x, z) corners, star-shaped about its mean.
        half_width: of the body at every corner.

    Returns:
        The strip that follows the profile [2P, 3, 3] (edge i gives triangles 2i and 2i+1), and the two sides
        [2P, 3, 3].
    """
    ring = np.asarray(profile, float)
    width = np.broadcast_to(np.asarray(half_width, float), len(ring))
    left, right = (np.stack([ring[:, 0], sign * width, ring[:, 1]], axis=1) for sign in (1, -1))
    strip = quads(np.stack([left, np.roll(left, -1, axis=0), np.roll(right, -1, axis=0), right], axis=1))
    sides = [
        np.stack([np.broadcast_to(v.mean(axis=0), v.shape), v, np.roll(v, -1, axis=0)], axis=1)
        for v in (left, right)
    ]
    return strip, np.concatenate(sides)


def leaves(positions: np.ndarray, *, size: float, rng: np.random.Generator) -> np.ndarray:
    """One randomly turned triangle of about `size` metres at every position [N, 3]."""
    a, b = rng.standard_normal((2, len(positions), 3))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b = np.cross(a, b)
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    a, b = size * a, size * b
    return np.stack([positions + a, positions - a / 2 + 0.866 * b, positions - a / 2 - 0.866 * b], axis=1)


@dataclass(frozen=True)
class Placement:
    """A mesh put somewhere: scaled, turned about z by yaw (radians), moved; its albedo multiplied by tint."""

    mesh: Mesh
    position: tuple[float, float, float]
    yaw: float
    scale: tuple[float, float, float]
    tint: float = 1.0
    object_id: int = -1


def assemble(ground: Mesh, placements: Sequence[Placement], boxes: Sequence[Box]) -> World:
    """The world of a ground mesh (world coordinates) and placed meshes, in one vectorised pass."""
    counts = np.array([len(p.mesh.albedo) for p in placements], int)
    pose = np.array([(*p.position, np.cos(p.yaw), np.sin(p.yaw), *p.scale) for p in placements], np.float32)
    pose = np.repeat(pose.reshape(-1, 8), counts, axis=0)[:, None, :]
    local = (
        np.concatenate([p.mesh.triangles for p in placements])
        if placements
        else np.empty((0, 3, 3), np.float32)
    )
    x, y, z = (local[..., k] * pose[..., 5 + k] for k in range(3))
    placed = np.stack([pose[..., 3] * x - pose[..., 4] * y, pose[..., 4] * x + pose[..., 3] * y, z], axis=-1)
    placed += pose[..., :3]
    tint = np.repeat(np.array([p.tint for p in placements], np.float32), counts)
    albedo = np.concatenate([ground.albedo, *(p.mesh.albedo for p in placements)])
    albedo[len(ground.albedo) :] *= tint
    ids = np.repeat(np.array([p.object_id for p in placements], np.int32), counts)
    return World(
        triangles=np.concatenate([ground.triangles, placed]),
        albedo=albedo,
        relief=np.concatenate([ground.relief, *(p.mesh.relief for p in placements)]),
        object_id=np.concatenate([np.full(len(ground.albedo), -1, np.int32), ids]),
        boxes=tuple(boxes),
    )
