"""Road users placed on a street: parked and driving cars, pedestrians, cyclists, without overlap."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from envs.driving.actors import SIZES
from envs.driving.terrain import Road


@dataclass(frozen=True)
class Actor:
    """A road user: ground position x, y, z below its centre (m), heading (rad); length, width, height (m)."""

    category: str
    position: tuple[float, float, float]
    yaw: float
    size: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class TrafficDensity:
    """How many road users a street holds.

    Attributes:
        near: inclusive range of the number tried within 25 m in front of the ego vehicle.
        far: mean of the Poisson number everywhere else (75 m along the road either way).
    """

    near: dict[str, tuple[int, int]]
    far: dict[str, float]


DEFAULT_DENSITY = TrafficDensity(
    near={"Car": (3, 6), "Van": (0, 1), "Truck": (0, 0), "Pedestrian": (1, 3), "Cyclist": (0, 3)},
    far={"Car": 16.0, "Van": 2.0, "Truck": 0.6, "Pedestrian": 6.0, "Cyclist": 2.5},
)

_GAP = 0.35  # clearance between any two road users, metres
_EGO = np.array(
    [[-0.8, 0.0, 4.6, 1.9, 0.0]]
)  # x, y, length, width, yaw of the vehicle that carries the sensor


def overlaps(candidate: np.ndarray, others: np.ndarray, *, gap: float = 0.0) -> np.ndarray:
    """Whether rectangles overlap in the ground plane (separating axis test).

    Args:
        candidate: [5] x, y, length, width, yaw.
        others: [K, 5] likewise.
        gap: clearance demanded between them.

    Returns:
        [K] bool.
    """
    result = np.zeros(len(others), bool)
    radius = (np.hypot(candidate[2], candidate[3]) + np.hypot(others[:, 2], others[:, 3])) / 2 + 1.5 * gap
    close = np.flatnonzero(np.hypot(others[:, 0] - candidate[0], others[:, 1] - candidate[1]) < radius)
    if len(close) == 0:
        return result
    others = others[close]

    def axes(yaw: np.ndarray) -> np.ndarray:
        c, s = np.cos(yaw), np.sin(yaw)
        return np.stack([np.stack([c, s], -1), np.stack([-s, c], -1)], -2)

    mine, theirs = axes(candidate[4]), axes(others[:, 4])
    half_mine, half_theirs = candidate[2:4] / 2 + gap, others[:, 2:4] / 2
    offset = others[:, :2] - candidate[:2]
    tests = np.concatenate([np.broadcast_to(mine, (len(others), 2, 2)), theirs], axis=1)
    distance = np.abs(np.einsum("kad,kd->ka", tests, offset))
    reach = np.abs(np.einsum("kad,bd->kab", tests, mine)) @ half_mine
    reach = reach + np.einsum("kab,kb->ka", np.abs(np.einsum("kad,kbd->kab", tests, theirs)), half_theirs)
    result[close] = (distance < reach).all(axis=1)
    return result


def _vehicle_spot(road: Road, rng: np.random.Generator, width: float) -> tuple[float, float]:
    """n and heading along the road of a parked or a driving vehicle."""
    side = -1 if rng.random() < 0.5 else 1
    strip = road.parking[side < 0]
    along = 0.0 if side < 0 else np.pi  # traffic keeps to the right
    if strip and rng.random() < 0.7:
        n = side * (road.edge(side) - 0.15 - width / 2 + rng.normal(0, 0.08))
        return n, along + (np.pi if rng.random() < 0.15 else 0.0) + rng.normal(0, 0.02)
    lane = rng.integers(road.lanes)
    return side * (lane + 0.5) * road.lane_width + rng.normal(0, 0.2), along + rng.normal(0, 0.02)


def _pedestrian_spot(road: Road, rng: np.random.Generator, width: float) -> tuple[float, float]:
    side = -1 if rng.random() < 0.5 else 1
    if rng.random() < 0.2:  # crossing the road
        return rng.uniform(-road.edge(-1), road.edge(1)), rng.choice([-1, 1]) * np.pi / 2 + rng.normal(0, 0.2)
    n = side * rng.uniform(road.edge(side) + 0.3, max(road.border(side) + 0.6, road.edge(side) + 1.2))
    heading = (
        rng.choice([0.0, np.pi]) + rng.normal(0, 0.15) if rng.random() < 0.75 else rng.uniform(-np.pi, np.pi)
    )
    return n, heading


def _cyclist_spot(road: Road, rng: np.random.Generator, width: float) -> tuple[float, float]:
    side = -1 if rng.random() < 0.6 else 1
    along = 0.0 if side < 0 else np.pi
    if rng.random() < 0.25:  # on the sidewalk, either way
        return side * (road.edge(side) + rng.uniform(0.5, 1.2)), rng.choice([0.0, np.pi]) + rng.normal(
            0, 0.08
        )
    return side * (road.lanes * road.lane_width - rng.uniform(0.4, 1.0)), along + rng.normal(0, 0.06)


_SPOTS: dict[str, Callable[[Road, np.random.Generator, float], tuple[float, float]]] = {
    "Car": _vehicle_spot,
    "Van": _vehicle_spot,
    "Truck": _vehicle_spot,
    "Pedestrian": _pedestrian_spot,
    "Cyclist": _cyclist_spot,
}


def place_traffic(
    road: Road, rng: np.random.Generator, density: TrafficDensity = DEFAULT_DENSITY
) -> list[Actor]:
    """Road users on a road, the near ones first. One that finds no free spot in 20 tries is left out."""
    wanted = [c for c, (low, high) in density.near.items() for _ in range(rng.integers(low, high + 1))]
    near = len(wanted)
    wanted += [c for c, mean in density.far.items() for _ in range(rng.poisson(mean))]
    taken = _EGO
    placed: list[tuple[str, float, float, tuple[float, float, float]]] = []
    for index, category in enumerate(wanted):
        size = SIZES[category].draw(rng)
        for _ in range(20):
            s = (
                rng.uniform(4, 26)
                if index < near
                else rng.uniform(26, 75) * rng.choice([-1, 1], p=[0.4, 0.6])
            )
            s = s if index < near or rng.random() < 0.8 else rng.uniform(-26, -3)
            if s > road.end - 5:
                continue
            n, heading = _SPOTS[category](road, rng, size[1])
            x, y, road_yaw = (float(v) for v in road.to_world(s, n))
            footprint = np.array([x, y, size[0], size[1], road_yaw + heading])
            if (index < near and abs(y) > 12) or overlaps(footprint, taken, gap=_GAP).any():
                continue
            taken = np.concatenate([taken, footprint[None]])
            placed.append((category, s, n, size))
            break
    where = np.array([(s, n) for _, s, n, _ in placed]).reshape(-1, 2)
    z = road.height(where[:, 0], where[:, 1])
    return [
        Actor(
            category, (float(t[0]), float(t[1]), float(h)), float((t[4] + np.pi) % (2 * np.pi) - np.pi), size
        )
        for (category, _, _, size), t, h in zip(placed, taken[1:], z, strict=True)
    ]
