"""Random street scenes: a road, what stands beside it, and the road users on it."""

from dataclasses import dataclass

import numpy as np

from envs.driving import actors, scenery
from envs.driving.meshes import Mesh, Placement, assemble
from envs.driving.terrain import Road, draw_road
from envs.driving.traffic import DEFAULT_DENSITY, TrafficDensity, place_traffic
from envs.sensors.world import Box, World


@dataclass(frozen=True, kw_only=True)
class RoadsideStyle:
    """What stands beside a road.

    Attributes:
        setback: range of the distance from sidewalk to buildings, metres.
        building: probability that a plot is built on.
        boundary: probability of wall, fence, hedge along the sidewalk of a plot (nothing otherwise).
        trees, bushes: mean number of trees and bushes per 100 m of road.
        depth: how far from the sidewalk they stand, metres.
    """

    setback: tuple[float, float]
    building: float
    boundary: tuple[float, float, float]
    trees: float
    bushes: float
    depth: float


STYLES = (
    RoadsideStyle(setback=(0.2, 3), building=0.9, boundary=(0.1, 0.05, 0.1), trees=4, bushes=4, depth=6),
    RoadsideStyle(setback=(4, 9), building=0.75, boundary=(0.25, 0.2, 0.4), trees=12, bushes=20, depth=10),
    RoadsideStyle(setback=(15, 30), building=0.3, boundary=(0.1, 0.15, 0.25), trees=22, bushes=28, depth=18),
    RoadsideStyle(setback=(30, 45), building=0.25, boundary=(0.0, 0.05, 0.05), trees=5, bushes=6, depth=45),
)
_STYLE_SHARE = (0.27, 0.38, 0.25, 0.10)
_LENGTH = 78.0


@dataclass(frozen=True)
class _Item:
    """A shape beside the road, in road coordinates; left out when within `clear` metres of a road user."""

    mesh: Mesh
    s: float
    n: float
    lift: float
    turn: float
    scale: tuple[float, float, float]
    tint: float
    clear: float


class _Roadside:
    """Collects items and places them all in one vectorised pass, ten times faster than one by one."""

    def __init__(self, road: Road, rng: np.random.Generator) -> None:
        self.road, self.rng = road, rng
        self._items: list[_Item] = []

    def put(
        self,
        kind: str,
        s: float,
        n: float,
        *,
        scale: tuple[float, float, float],
        lift: float = 0.0,
        turn: float = 0.0,
        tint: float = 1.0,
        clear: float = 0.0,
    ) -> None:
        """Put a random variant at (s, n), `lift` above the ground, `clear` metres from any road user."""
        variants = scenery.shapes()[kind]
        mesh = variants[int(self.rng.random() * len(variants))]
        self._items.append(_Item(mesh, s, n, lift, turn, scale, tint, clear))

    def placements(self, users: np.ndarray) -> list[Placement]:
        """Everything that keeps clear of the users [K, 5] (x, y, length, width, yaw)."""
        pose = np.array([(i.s, i.n, i.lift, i.turn, i.clear) for i in self._items]).reshape(-1, 5)
        x, y, yaw = self.road.to_world(pose[:, 0], pose[:, 1])
        z = self.road.height(pose[:, 0], pose[:, 1]) + pose[:, 2]
        dx, dy = x[:, None] - users[:, 0], y[:, None] - users[:, 1]
        c, s = np.cos(users[:, 4]), np.sin(users[:, 4])
        beyond = np.maximum(
            np.abs(c * dx + s * dy) - users[:, 2] / 2, np.abs(c * dy - s * dx) - users[:, 3] / 2
        )
        free = (pose[:, 4] == 0) | (beyond >= pose[:, 4:]).all(axis=1)
        return [
            Placement(item.mesh, (x[i], y[i], z[i]), yaw[i] + item.turn, item.scale, item.tint)
            for i, item in enumerate(self._items)
            if free[i]
        ]

    def tree(self, s: float, n: float, *, height: float, clear: float) -> None:
        """A trunk and a crown."""
        rng = self.rng
        stem, spread = height * rng.uniform(0.25, 0.4), height * rng.uniform(0.22, 0.34)
        radius = 0.02 * height * rng.uniform(0.7, 1.4)
        tint = float(rng.uniform(0.6, 1.2))
        crown = (height - stem) / 2
        turn = rng.uniform(0, 6.28)
        self.put("trunk", s, n, scale=(radius, radius, height * 0.6), clear=clear)
        self.put(
            "crown", s, n, scale=(spread, spread, crown), lift=stem + crown, turn=turn, tint=tint, clear=clear
        )


def _plots(side: int, style: RoadsideStyle, at: _Roadside) -> None:
    """Buildings and the boundaries of their plots along one side."""
    rng, road = at.rng, at.road
    s = -_LENGTH
    while s < _LENGTH:
        frontage = rng.uniform(9, 24)
        middle = s + frontage / 2
        s += frontage
        border = road.border(side)
        open_mouth = bool(road.in_side_road(middle, side, margin=frontage / 2 - 1))
        kinds = rng.choice(4, p=[*style.boundary, 1 - sum(style.boundary)])
        height = rng.uniform(0.9, 2.0)
        setback, depth, tall = rng.uniform(*style.setback), rng.uniform(8, 14), rng.uniform(4.5, 13)
        built, tint, gap = rng.random() < style.building, rng.uniform(0.5, 1.3), rng.uniform(0.0, 6.0)
        if open_mouth:
            continue
        if kinds < 3:
            kind = ("wall", "fence", "hedge")[kinds]
            thick = 0.25 if kind == "wall" else 1.0
            step = 4.0 if kind == "wall" else 2.0
            for i in range(int(frontage // step)):
                here = s - frontage + (i + 0.5) * step
                at.put(
                    kind,
                    here,
                    side * (border + 0.6),
                    scale=(step * 1.02, thick, height),
                    lift=-0.05,
                    tint=tint,
                )
        if built:
            length = max(frontage - gap, 6)
            where = side * (border + setback + depth / 2)
            at.put("building", middle, where, scale=(length, depth, tall + 1.5), lift=-1.5, tint=tint)


def _vegetation(side: int, style: RoadsideStyle, at: _Roadside) -> None:
    rng, road = at.rng, at.road
    border = road.border(side)
    for _ in range(rng.poisson(style.trees * 2 * _LENGTH / 100)):
        s, n = rng.uniform(-_LENGTH, _LENGTH), border + 0.8 + style.depth * rng.random() ** 1.3
        if not road.in_side_road(s, side, margin=1):
            at.tree(s, side * n, height=rng.uniform(5, 14), clear=0.4)
    for _ in range(rng.poisson(style.bushes * 2 * _LENGTH / 100)):
        s, n = rng.uniform(-_LENGTH, _LENGTH), border + 1.0 + style.depth * rng.random() ** 1.3
        size = rng.uniform(0.5, 1.6)
        if not road.in_side_road(s, side, margin=2):
            shape = (size * rng.uniform(0.8, 1.6), size, size * rng.uniform(0.6, 1.2))
            at.put("bush", s, side * n, scale=shape, lift=0.4 * size, turn=rng.uniform(0, 6.28), clear=size)
    # The far background that closes most views: woods behind the plots and at the end of side roads.
    for _ in range(rng.poisson(20)):
        s, n = rng.uniform(-_LENGTH, _LENGTH), border + rng.uniform(28, 50)
        size = rng.uniform(2.5, 6)
        at.put("thicket", s, side * n, scale=(1.5 * size, 1.5 * size, 1.2 * size), lift=0.8 * size)


def _street_furniture(side: int, at: _Roadside) -> None:
    rng, road = at.rng, at.road
    spacing = rng.uniform(14, 35)
    avenue = rng.random() < 0.3
    for s in np.arange(-_LENGTH + rng.uniform(0, spacing), _LENGTH, spacing):
        if road.in_side_road(s, side):
            continue
        n = side * (road.edge(side) + 0.45)
        at.put("pole", s, n, scale=(1.0, 1.0, rng.uniform(2.2, 6.5)), turn=rng.uniform(-0.3, 0.3), clear=0.25)
        if avenue:
            at.tree(s + spacing / 2, side * (road.edge(side) + 0.7), height=rng.uniform(5, 9), clear=0.45)
    for _ in range(rng.poisson(4)):  # bins, boxes, cabinets
        s, n = rng.uniform(-50, 60), side * (road.border(side) + rng.uniform(-0.3, 0.4))
        size = (rng.uniform(0.4, 1.2), rng.uniform(0.4, 0.8), rng.uniform(0.6, 1.4))
        at.put("shed", s, n, scale=size, tint=rng.uniform(0.4, 1.4), clear=0.7)


def street(rng: np.random.Generator, density: TrafficDensity = DEFAULT_DENSITY) -> World:
    """A random street around a vehicle at the origin, with labelled boxes for every road user.

    Args:
        rng: all of the scene is drawn from it.
        density: how many road users.
    """
    road = draw_road(rng)
    users = place_traffic(road, rng, density)
    at = _Roadside(road, rng)
    styles = rng.choice(len(STYLES), 2, p=_STYLE_SHARE)
    if rng.random() < 0.5:  # both sides are often alike
        styles[1] = styles[0]
    for side, style in ((1, STYLES[styles[0]]), (-1, STYLES[styles[1]])):
        _plots(side, style, at)
        _vegetation(side, style, at)
        _street_furniture(side, at)
    if np.isfinite(road.end):
        at.put("building", road.end + 12, 0.0, scale=(14, 40, rng.uniform(6, 12)), lift=-1.5)
    footprints = np.array([[a.position[0], a.position[1], a.size[0], a.size[1], a.yaw] for a in users])
    placements = at.placements(footprints.reshape(-1, 5))
    boxes = []
    for index, actor in enumerate(users):
        variants = actors.shapes()[actor.category]
        mesh = variants[rng.integers(len(variants))]
        tint = actors.draw_tint(actor.category, rng)
        placements.append(Placement(mesh, actor.position, actor.yaw, actor.size, tint, index))
        x, y, z = actor.position
        center = (x, y, z + actor.size[2] / 2)
        boxes.append(
            Box(category=actor.category, center=center, size=actor.size, yaw=actor.yaw, object_id=index)
        )
    return assemble(road.ground(), placements, boxes)
