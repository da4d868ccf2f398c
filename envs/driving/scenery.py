"""Shapes beside the road: buildings, walls, fences, hedges, trees, bushes, poles."""

from functools import lru_cache

import numpy as np

from envs.driving.actors import GLASS, METAL
from envs.driving.meshes import Mesh, ball, box, join, leaves, quads, tube

PLASTER, BRICK, FOLIAGE, BARK, WOOD = 0.42, 0.35, 0.42, 0.35, 0.38
LEAF_RELIEF = 0.03


def _building(*, floors: int, columns: int, gable: bool) -> Mesh:
    """A unit building (x along the street, facades at y = +-0.5) with dark windows and a flat or gable roof."""
    walls = Mesh.of(box((0, 0, 0.5), (1, 1, 1)), albedo=PLASTER)
    parts = [walls]
    x = (np.arange(columns) + 0.5) / columns - 0.5
    z = (np.arange(floors) + 0.55) / floors
    w, h = 0.22 / columns, 0.25 / floors
    for y in (-0.503, 0.503):
        corners = [
            [(cx - w, y, cz - h), (cx + w, y, cz - h), (cx + w, y, cz + h), (cx - w, y, cz + h)]
            for cx in x
            for cz in z
        ]
        parts.append(Mesh.of(quads(np.array(corners)), albedo=GLASS))
    if gable:
        a, b = 0.55, 0.54
        eaves = [[(-a, s * b, 0.97), (a, s * b, 0.97), (a, 0, 1.35), (-a, 0, 1.35)] for s in (-1, 1)]
        ends = [[(s * 0.5, -0.5, 1), (s * 0.5, 0.5, 1), (s * 0.5, 0, 1.33)] for s in (-1, 1)]
        parts += [Mesh.of(quads(np.array(eaves)), albedo=BRICK), Mesh.of(np.array(ends), albedo=PLASTER)]
    return join(parts)


def _crown(rng: np.random.Generator, *, count: int, size: float, hollow: float) -> Mesh:
    """A cloud of leaves in the unit ball, denser outside; rays pass between them."""
    direction = rng.standard_normal((count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radius = rng.uniform(hollow, 1.0, (count, 1)) * rng.uniform(0.75, 1.0, (count, 1))
    return Mesh.of(leaves(direction * radius, size=size, rng=rng), albedo=FOLIAGE, relief=LEAF_RELIEF)


def _hedge(rng: np.random.Generator, *, count: int) -> Mesh:
    """A unit piece of hedge: leaves on and just inside the faces of a box around a dark core."""
    at = rng.uniform(-0.5, 0.5, (count, 3))
    face = rng.integers(0, 3, count)
    at[np.arange(count), face] = np.sign(at[np.arange(count), face]) * rng.uniform(0.36, 0.5, count)
    at[:, 2] = np.abs(at[:, 2]) * 2 * 0.98 + 0.02
    foliage = Mesh.of(leaves(at, size=0.135, rng=rng), albedo=FOLIAGE, relief=LEAF_RELIEF)
    return join([foliage, Mesh.of(box((0, 0, 0.4), (0.98, 0.35, 0.8)), albedo=FOLIAGE, relief=LEAF_RELIEF)])


def _fence() -> Mesh:
    """A unit piece of picket fence along x."""
    at = np.linspace(-0.5, 0.5, 12, endpoint=False)
    pickets = [[(x, 0, 0.05), (x + 0.05, 0, 0.05), (x + 0.05, 0, 1.0), (x, 0, 1.0)] for x in at]
    rails = [
        [(-0.5, 0.01, z), (0.5, 0.01, z), (0.5, 0.01, z + 0.08), (-0.5, 0.01, z + 0.08)] for z in (0.2, 0.75)
    ]
    return Mesh.of(quads(np.array(pickets + rails)), albedo=WOOD)


@lru_cache(maxsize=1)
def shapes() -> dict[str, tuple[Mesh, ...]]:
    """Shape variants of every kind, made once from a fixed seed; their units are noted beside each."""
    rng = np.random.default_rng(20110926)
    sign = Mesh.of(box((0.04, 0, 0.93), (0.02, 0.6, 0.14)), albedo=2.5)  # retro-reflecting plate
    post = Mesh.of(tube((0, 0, 0), (0, 0, 1), radius=(0.06, 0.05)), albedo=METAL)
    return {
        # unit box; the pitched roof rises above z = 1
        "building": tuple(
            _building(floors=f, columns=c, gable=g)
            for f, c, g in ((2, 4, True), (3, 5, False), (4, 5, False), (2, 3, True))
        ),
        "shed": (Mesh.of(box((0, 0, 0.5), (1, 1, 1)), albedo=BRICK),),
        "wall": (Mesh.of(box((0, 0, 0.5), (1, 1, 1)), albedo=BRICK, relief=0.005),),
        "fence": (_fence(),),
        "hedge": tuple(_hedge(rng, count=48) for _ in range(3)),
        # metres
        "pole": (post, join([post, sign])),
        "trunk": (Mesh.of(tube((0, 0, -0.3), (0, 0, 1), radius=(1.0, 0.8)), albedo=BARK, relief=0.01),),
        # unit ball
        "crown": tuple(_crown(rng, count=84, size=0.185, hollow=0.3) for _ in range(4)),
        "thicket": tuple(_crown(rng, count=45, size=0.24, hollow=0.4) for _ in range(3)),
        "bush": tuple(_crown(rng, count=48, size=0.24, hollow=0.2) for _ in range(4)),
        "boulder": (Mesh.of(ball((0, 0, 0.3), (1, 1, 1)), albedo=0.3, relief=0.02),),
    }
