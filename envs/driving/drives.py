"""Drives: a vehicle with a LiDAR on a scripted route through a street whose other road users move, at 10 Hz.

The sensor keeps level (no pitch, no roll) at a constant height above the ground below it; a sweep is one frozen world,
as everywhere in this simulator. The reference point of the unicycle is the sensor.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace

import numpy as np

from envs.driving.kitti_export import SENSORS, SIMULATOR_VERSION
from envs.driving.routes import MANOEUVRES, Motion, draw_path, follow, speed_profile, to_road, unicycle
from envs.driving.streets import street
from envs.driving.terrain import Road, draw_road
from envs.driving.traffic import overlaps
from envs.sensors.lidar import SpinningLidar, rotate_z, scan
from envs.sensors.raycast import Caster, EmbreeCaster
from envs.sensors.world import Box, World

# Raise it with every change that changes a byte of a drive: cached drives are then made anew.
DRIVES_VERSION = 1
PERIOD = 0.1  # seconds between sweeps
EGO_SIZE = (4.6, 1.9)  # length and width, metres; the sensor stands 0.8 m ahead of the middle
_EGO_BACK = 0.8
_TRIES = 40  # routes tried before the vehicle stands still
_AHEAD = 30.0  # s beyond which no route goes: the street ends at 78 m, and the sensor looks ahead


@dataclass(frozen=True, kw_only=True)
class DriveSpec:
    """A set of drives. Equal specs give equal drives.

    Attributes:
        drives: how many; each has a street of its own.
        frames: sweeps per drive, 0.1 s apart.
        sensor: "HDL-64E" or "HDL-32E".
        azimuth_range: sector in degrees (counter-clockwise from forward), or None for full turns.
        max_range: metres; farther hits are no returns.
        seed: of the whole set.

    Raises:
        ValueError: on an unknown sensor, fewer than 2 frames, no drive, or a range beyond what is stored (65 m).
    """

    drives: int = 64
    frames: int = 41
    sensor: str = "HDL-64E"
    azimuth_range: tuple[float, float] | None = (-45.0, 45.0)
    max_range: float = 58.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sensor not in SENSORS:
            raise ValueError(f"unknown sensor {self.sensor!r}; choose one of {', '.join(SENSORS)}")
        if self.drives < 1 or self.frames < 2 or self.seed < 0:
            raise ValueError(
                f"a set needs drives >= 1, frames >= 2 and seed >= 0; got {self.drives}, {self.frames}, {self.seed}"
            )
        if not 5 <= self.max_range <= 65:
            raise ValueError(
                f"max_range must lie in 5..65 m (coordinates are stored in 16 bits); got {self.max_range}"
            )
        if self.azimuth_range is not None:
            low, high = (float(v) for v in self.azimuth_range)
            object.__setattr__(self, "azimuth_range", (low, high))

    def fingerprint(self) -> str:
        """Ten hexadecimal digits of what one drive depends on: the spec without the number of drives, and versions."""
        values = {k: v for k, v in asdict(self).items() if k != "drives"}
        text = json.dumps({**values, "versions": [DRIVES_VERSION, SIMULATOR_VERSION]}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


@dataclass(frozen=True, kw_only=True)
class Drive:
    """A recorded drive of T sweeps.

    Attributes:
        points: T arrays [P, 4] float32: x, y, z in metres in the sensor frame, intensity 0..1.
        actions: [T - 1, 2] float32 speed (m/s) and yaw rate (rad/s) between the sweeps.
        poses: [T, 3] float64 x, y (m) and yaw (rad) of the sensor in the frame of the street.
        seen: [T] int32 road users with at least one point.
        manoeuvre: of the route; "stand" if none was free.
    """

    points: tuple[np.ndarray, ...]
    actions: np.ndarray
    poses: np.ndarray
    seen: np.ndarray
    manoeuvre: str


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Road users with constant velocities in road coordinates: who keeps his lane follows the road.

    Attributes:
        position: [K, 2] s and n at time 0.
        velocity: [K, 2] ds/dt and dn/dt, m/s.
        heading: [K] against the road's, radians.
        size: [K, 2] length and width.
    """

    position: np.ndarray
    velocity: np.ndarray
    heading: np.ndarray
    size: np.ndarray

    def at(self, road: Road, time: float) -> np.ndarray:
        """Footprints [K, 5] (x, y, length, width, yaw) after `time` seconds."""
        s, n = (self.position + time * self.velocity).T
        x, y, yaw = road.to_world(s, n)
        return np.column_stack([x, y, self.size, yaw + self.heading])

    def height(self, road: Road, time: float) -> np.ndarray:
        """Height [K] of the ground below them, metres."""
        return road.height(*(self.position + time * self.velocity).T)

    @property
    def moving(self) -> np.ndarray:
        """[K] bool."""
        return (self.velocity != 0).any(axis=1)


def draw_traffic(road: Road, boxes: tuple[Box, ...], rng: np.random.Generator) -> Traffic:
    """Velocities for the road users of a street: a common speed per direction of travel; what is parked stays."""
    center = np.array([b.center for b in boxes]).reshape(-1, 3)
    s, n = to_road(road, center[:, 0], center[:, 1])
    _, _, road_yaw = road.to_world(s, n)
    heading = np.array([b.yaw for b in boxes]) - road_yaw
    flow = np.where(rng.random(2) < 0.15, 0.0, rng.uniform(3, 12, 2))
    velocity = np.zeros((len(boxes), 2))
    for k, box in enumerate(boxes):
        draw, chance = rng.random(), rng.random()
        if box.category == "Pedestrian":
            speed = 0.0 if chance < 0.2 else 0.8 + 0.9 * draw
        elif box.category == "Cyclist":
            speed = 2.5 + 3.5 * draw
        else:  # beyond the lanes is the parking strip
            speed = flow[int(n[k] > 0)] if abs(n[k]) < road.lanes * road.lane_width else 0.0
        along, across = np.cos(heading[k]), np.sin(heading[k])
        lane_keeping = abs(across) < 0.3
        velocity[k] = (speed * np.sign(along), 0.0) if lane_keeping else (speed * along, speed * across)
    return Traffic(
        position=np.stack([s, n], axis=1),
        velocity=velocity,
        heading=heading,
        size=np.array([b.size[:2] for b in boxes]).reshape(-1, 2),
    )


def without_collisions(traffic: Traffic, road: Road, *, static: Caster, duration: float) -> Traffic:
    """The same with those standing still who would run into another one or into something solid on the way."""
    times = np.arange(0, duration + 0.2, 0.2)
    users = np.stack([traffic.at(road, t) for t in times], axis=1)  # [K, T, 5]
    ground = np.stack([traffic.height(road, t) for t in times], axis=1)
    moving = traffic.moving
    stop = np.zeros(len(moving), bool)
    stop[moving] = (
        blocked(static, users[moving, 1:].reshape(-1, 5), ground[moving, 1:].ravel())
        .reshape(moving.sum(), -1)
        .any(axis=1)
    )
    first = True
    while first or stop.any():
        first = False
        moving &= ~stop
        users[stop] = users[stop, :1]
        stop = np.zeros(len(moving), bool)
        radius = np.hypot(users[:, 0, 2], users[:, 0, 3]) / 2
        reach = radius[:, None] + radius + 0.2
        for now in users.transpose(1, 0, 2):
            close = np.hypot(*(now[:, None, :2] - now[None, :, :2]).transpose(2, 0, 1)) < reach
            np.fill_diagonal(close, False)
            for k in np.flatnonzero(moving & ~stop & close.any(axis=1)):
                stop[k] = overlaps(now[k], now[close[k]], gap=0.1).any()
    return replace(traffic, velocity=traffic.velocity * moving[:, None])


def blocked(static: Caster, footprints: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Whether something solid stands between 0.5 and 1.6 m above the ground within footprints.

    Rays run through each footprint, 13 lengthwise (0.2 m apart in a truck) and one across either end, at three heights.

    Args:
        static: what does not move, in the frame of the street.
        footprints: [K, 5] x, y, length, width, yaw.
        ground: [K] height of the ground.

    Returns:
        [K] bool.
    """
    side = np.linspace(-0.5, 0.5, 13)
    lines = [((-0.5, v), (0.5, v)) for v in side] + [((e, -0.5), (e, 0.5)) for e in (-0.5, 0.5)]
    ends = np.array(lines) * footprints[:, None, None, 2:4]  # [K, lines, 2 ends, 2]
    c, s = (v[:, None, None] for v in (np.cos(footprints[:, 4]), np.sin(footprints[:, 4])))
    x = footprints[:, 0, None, None] + c * ends[..., 0] - s * ends[..., 1]
    y = footprints[:, 1, None, None] + s * ends[..., 0] + c * ends[..., 1]
    levels = [np.broadcast_to((ground + height)[:, None, None], x.shape) for height in (0.5, 1.0, 1.6)]
    rays = np.concatenate([np.stack([x, y, z], axis=-1) for z in levels], axis=1)  # [K, 3 lines, 2, 3]
    origin, offset = rays[:, :, 0], rays[:, :, 1] - rays[:, :, 0]
    reach = np.linalg.norm(offset, axis=-1, keepdims=True)
    hits = static.cast(
        origin.reshape(-1, 3).astype(np.float32), (offset / reach).reshape(-1, 3).astype(np.float32)
    )
    return (hits.distance.reshape(reach.shape[:2]) < reach[..., 0]).any(axis=1)


def ego_footprints(poses: np.ndarray) -> np.ndarray:
    """Footprints [T, 5] of the vehicle at sensor poses [T, 3]."""
    x, y, yaw = np.asarray(poses).T
    size = np.broadcast_to(EGO_SIZE, (len(x), 2))
    return np.column_stack([x - _EGO_BACK * np.cos(yaw), y - _EGO_BACK * np.sin(yaw), size, yaw])


def touches(motion: Motion, *, road: Road, traffic: Traffic) -> np.ndarray:
    """Which road users [K] the vehicle would touch on its way."""
    result = np.zeros(len(traffic.size), bool)
    for i, footprint in enumerate(ego_footprints(motion.poses)):
        result |= overlaps(footprint, traffic.at(road, i * PERIOD), gap=0.2)
    return result


def draw_motion(
    road: Road, traffic: Traffic, *, static: Caster, frames: int, rng: np.random.Generator
) -> tuple[Motion, str]:
    """A route clear of scenery and parked vehicles, and its manoeuvre; standing at the origin if none of 40 is.

    Whoever else is in the way is for the caller to clear (`touches`).
    """
    parked = ~traffic.moving & (np.abs(traffic.position[:, 1]) >= road.lanes * road.lane_width)
    manoeuvre = str(rng.choice(MANOEUVRES, p=[0.2, 0.25, 0.25, 0.3]))
    for _ in range(_TRIES):
        profile = speed_profile(frames - 1, rng, period=PERIOD)
        length = float(profile.sum() * PERIOD)
        chosen, start = manoeuvre, np.inf
        mouths = [m for m in road.side_roads if np.isfinite(m)]
        if manoeuvre == "turn" and mouths:
            start = rng.choice(mouths) - 13 - rng.uniform(0, 0.6) * length
        if not -75 < start < _AHEAD:
            chosen = "lane_change" if manoeuvre == "turn" else manoeuvre
            last = min(_AHEAD, road.end - 12.0) - length
            start = rng.uniform(min(-65.0, last), last)
        if start < -75:
            continue
        path = draw_path(road, rng, manoeuvre=chosen, start=start, length=length)  # type: ignore[arg-type]
        motion = follow(path, profile, period=PERIOD)
        ground = road.height(*to_road(road, motion.poses[:, 0], motion.poses[:, 1]))
        clear = not (parked & touches(motion, road=road, traffic=traffic)).any()
        if clear and not blocked(static, ego_footprints(motion.poses), ground).any():
            return motion, chosen
    still = np.zeros((frames - 1, 2))
    return Motion(poses=unicycle(np.zeros(3), still, period=PERIOD), actions=still), "stand"


def without_users(world: World, traffic: Traffic, leave: np.ndarray) -> tuple[World, Traffic]:
    """A street without the road users of a mask [K]; the others are numbered anew, in order."""
    number = np.where(leave, -1, np.cumsum(~leave) - 1)
    static = world.object_id < 0
    kept = world.select(static | ~np.r_[leave, False][world.object_id])
    ids = np.where(kept.object_id < 0, -1, np.r_[number, -1][kept.object_id]).astype(np.int32)
    boxes = tuple(
        replace(b, object_id=int(number[b.object_id])) for b in world.boxes if not leave[b.object_id]
    )
    fields = ("position", "velocity", "heading", "size")
    return (
        replace(kept, object_id=ids, boxes=boxes),
        Traffic(**{name: getattr(traffic, name)[~leave] for name in fields}),
    )


def simulate_drive(spec: DriveSpec, index: int) -> Drive:
    """Drive number `index` of a set: a function of the spec and the number alone."""
    seeds = np.random.SeedSequence([spec.seed, 0xD21E, index]).spawn(3)
    # The road is the first thing that `street` draws.
    road, world = draw_road(np.random.default_rng(seeds[0])), street(np.random.default_rng(seeds[0]))
    scene, sensing = (np.random.default_rng(s) for s in seeds[1:])
    static = EmbreeCaster(world.triangles[world.object_id < 0])
    traffic = draw_traffic(road, world.boxes, scene)
    traffic = without_collisions(traffic, road, static=static, duration=spec.frames * PERIOD)
    motion, manoeuvre = draw_motion(road, traffic, static=static, frames=spec.frames, rng=scene)
    world, traffic = without_users(world, traffic, touches(motion, road=road, traffic=traffic))
    sensor = replace(SENSORS[spec.sensor], max_range=spec.max_range)
    stage = Stage(world, road=road, traffic=traffic, sensor=sensor)
    points, seen = [], []
    for i, pose in enumerate(motion.poses):
        sweep = scan(sensor, stage.seen_from(pose, time=i * PERIOD), sensing, spec.azimuth_range)
        points.append(sweep.points)
        seen.append(len(np.unique(sweep.object_id[sweep.object_id >= 0])))
    return Drive(
        points=tuple(points),
        actions=motion.actions.astype(np.float32),
        poses=motion.poses,
        seen=np.array(seen, np.int32),
        manoeuvre=manoeuvre,
    )


class Stage:
    """A street as a moving sensor sees it: what stands still is prepared once, what moves is put in place per sweep.

    Args:
        world: the street at time 0.
        road, traffic: how its road users move.
        sensor: what it cannot see, too far or too high, is left out.
    """

    def __init__(self, world: World, *, road: Road, traffic: Traffic, sensor: SpinningLidar) -> None:
        self.road, self.traffic, self.sensor = road, traffic, sensor
        mover = np.r_[traffic.moving, False][
            world.object_id
        ]  # -1, the static surroundings, reads the last entry
        order = np.argsort(mover, kind="stable")
        self.world = world.select(order)
        self._still = int((~mover).sum())
        # Triangles of movers relative to their own ground position and heading.
        self._ids = self.world.object_id[self._still :]
        start, ground = traffic.at(road, 0.0), traffic.height(road, 0.0)
        origin = np.column_stack([start[:, :2], ground])[self._ids].astype(np.float32)
        self._local = _turned(self.world.triangles[self._still :] - origin[:, None], -start[self._ids, 4])
        self._bounds = _bounds(self.world.triangles[: self._still])

    def seen_from(self, pose: np.ndarray, *, time: float, everything: bool = False) -> World:
        """The world in the frame of the vehicle at pose [3] after `time` seconds.

        Args:
            everything: also what no ray of the sensor can reach; for tests.
        """
        x, y, yaw = (float(v) for v in pose)
        ground = float(self.road.height(*to_road(self.road, np.array([x]), np.array([y])))[0])
        users, height = self.traffic.at(self.road, time), self.traffic.height(self.road, time)
        place = np.column_stack([users[:, :2], height])[self._ids].astype(np.float32)
        moved = _turned(self._local, users[self._ids, 4]) + place[:, None]
        center, radius, low = (np.concatenate(v) for v in zip(self._bounds, _bounds(moved), strict=True))
        distance = np.hypot(center[:, 0] - x, center[:, 1] - y)
        lift = np.tan(np.radians(max(self.sensor.elevation) + 0.1))
        keep = distance - radius < self.sensor.max_range + 1
        keep &= low - ground - self.sensor.mount_height < 0.3 + lift * (distance + radius)
        keep |= everything
        world, still = self.world, keep[: self._still]
        triangles = np.concatenate([world.triangles[: self._still][still], moved[keep[self._still :]]])
        triangles -= np.array([x, y, ground], np.float32)
        return World(
            triangles=rotate_z(triangles.reshape(-1, 3), -yaw).reshape(-1, 3, 3),
            albedo=world.albedo[keep],
            relief=world.relief[keep],
            object_id=world.object_id[keep],
            boxes=world.boxes,
        )


def _bounds(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of triangles [T, 3, 3]: centre x, y [T, 2] and radius [T] of a circle around them, and lowest z [T]."""
    flat = triangles[..., :2]
    center = flat.mean(axis=1)
    radius = np.sqrt(np.square(flat - center[:, None]).sum(axis=-1).max(axis=1, initial=0.0))
    return center, radius, triangles[..., 2].min(axis=1, initial=np.inf)


def _turned(triangles: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Triangles [T, 3, 3] each turned about z by its own angle [T]."""
    c, s = (v.astype(np.float32)[:, None] for v in (np.cos(angle), np.sin(angle)))
    x, y, z = triangles[..., 0], triangles[..., 1], triangles[..., 2]
    return np.stack([c * x - s * y, s * x + c * y, z], axis=-1)
