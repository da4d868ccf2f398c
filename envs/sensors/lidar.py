"""Spinning LiDAR: beam pattern, ray casting, return model. A frame is one frozen world (no rolling shutter)."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from envs.sensors import beams
from envs.sensors.raycast import Caster, EmbreeCaster
from envs.sensors.world import World


@dataclass(frozen=True, kw_only=True)
class ReturnModel:
    """Link budget of a pulse: which hits come back (simulation.md 3.5).

    power = albedo * max(cos, min_cosine) * exp(-2 * extinction * t) * (reference_range / max(t, near_range))^2
    P(return) = efficiency * sigmoid(steepness * (log10(power) - log10_threshold)).

    `log10_threshold`, like the albedos of the surfaces, is set so that the share of points per range agrees with
    25 real KITTI scans (docs/results/simulator_vs_kitti.md); it is no measured property of the device.
    """

    efficiency: float = 0.995
    min_cosine: float = 0.02
    extinction: float = 0.004
    reference_range: float = 30.0
    near_range: float = 5.0
    steepness: float = 6.0
    log10_threshold: float = -2.4

    def probability(self, *, albedo: np.ndarray, cosine: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Probability [H] of a return, from albedo, |cos| of incidence and distance in metres."""
        power = albedo * np.maximum(cosine, self.min_cosine) * np.exp(-2 * self.extinction * distance)
        power *= np.square(self.reference_range / np.maximum(distance, self.near_range))
        margin = self.steepness * (np.log10(power + 1e-9) - self.log10_threshold)
        return self.efficiency / (1 + np.exp(-margin))


@dataclass(frozen=True, kw_only=True)
class BlindSector:
    """What the carrying vehicle hides: a range of azimuths, for beams below an elevation (degrees)."""

    azimuth: tuple[float, float]
    below: float


@dataclass(frozen=True, kw_only=True)
class SpinningLidar:
    """A spinning LiDAR and how it is mounted.

    Attributes:
        name: as used in data set names.
        elevation: degrees of every beam, lowest first; its index is the ring number.
        azimuth_offset: degrees added to the azimuth of every beam.
        height: metres of every laser above the origin of the sensor frame; empty: 0.
        azimuth_steps: firings per turn.
        mount_height: metres above the ground.
        min_range, max_range: metres; nearer and farther hits are no returns.
        range_noise: 1 sigma along the ray, metres.
        relief: factor on the sub-mesh relief of surfaces (0 switches it off).
        returns: which hits come back; None: all of them.
        intensity: "unit": 0..1 in steps of 0.01 (KITTI); "byte": whole numbers 0..255 (nuScenes).
        axes: "forward_left": x forward, y left (KITTI); "right_forward": x right, y forward (nuScenes).
        blind: what the carrying vehicle hides.

    Raises:
        ValueError: if the beam table is inconsistent or a range is empty.
    """

    name: str
    elevation: tuple[float, ...]
    azimuth_offset: tuple[float, ...]
    azimuth_steps: int
    mount_height: float
    max_range: float
    height: tuple[float, ...] = ()
    min_range: float = 1.0
    range_noise: float = 0.02
    relief: float = 1.0
    returns: ReturnModel | None = ReturnModel()
    intensity: Literal["unit", "byte"] = "unit"
    axes: Literal["forward_left", "right_forward"] = "forward_left"
    blind: tuple[BlindSector, ...] = ()

    def __post_init__(self) -> None:
        counts = (len(self.elevation), len(self.azimuth_offset), len(self.height) or len(self.elevation))
        if not self.elevation or len(set(counts)) > 1:
            raise ValueError(f"{self.name}: elevation, azimuth_offset and height differ in length: {counts}")
        if self.azimuth_steps < 1 or not 0 <= self.min_range < self.max_range:
            raise ValueError(
                f"{self.name}: needs azimuth_steps >= 1 and 0 <= min_range < max_range; "
                f"got {self.azimuth_steps}, {self.min_range}, {self.max_range}"
            )

    @property
    def beams(self) -> int:
        """Number of beams."""
        return len(self.elevation)


# The car of the KITTI recordings as its sensor sees it: points per ring and azimuth of 25 real scans.
_KITTI_CAR = (
    BlindSector(azimuth=(-20, 20), below=-21.5),
    BlindSector(azimuth=(158, 204), below=-19.0),
    BlindSector(azimuth=(283, 298), below=-18.0),
    BlindSector(azimuth=(128, 136), below=-21.1),
    BlindSector(azimuth=(229, 235), below=-21.1),
    BlindSector(azimuth=(136, 158), below=-23.0),
)

# 2083 firings: 0.1728 degrees at 10 Hz; 120 m by the data sheet.
HDL_64E = SpinningLidar(
    name="HDL-64E",
    elevation=beams.HDL_64E_ELEVATION,
    azimuth_offset=beams.HDL_64E_AZIMUTH_OFFSET,
    azimuth_steps=2083,
    mount_height=1.73,
    max_range=120.0,
)
# KITTI's unit and car, as measured on 25 real scans: a slower turn (9.66 Hz) and so 2156 firings; nothing
# stored beyond 80 m.
KITTI_HDL_64E = replace(
    HDL_64E,
    elevation=beams.KITTI_HDL_64E_ELEVATION,
    height=beams.KITTI_HDL_64E_HEIGHT,
    azimuth_steps=2156,
    max_range=80.0,
    blind=_KITTI_CAR,
)
HDL_32E = SpinningLidar(
    name="HDL-32E",
    elevation=beams.HDL_32E_ELEVATION,
    azimuth_offset=beams.HDL_32E_AZIMUTH_OFFSET,
    azimuth_steps=1084,
    mount_height=1.84,
    max_range=80.0,
)
# As nuScenes stores it: x right, y forward, intensity 0..255.
HDL_32E_NUSCENES = replace(HDL_32E, axes="right_forward", intensity="byte")


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One turn of the sensor, or a sector of it, ring by ring from the highest beam down.

    Attributes:
        points: [N, 4] float32: x, y, z in metres in the sensor frame, intensity.
        ring: [N] int16 beam number, lowest beam 0.
        time: [N] float32 in [0, 1): fraction of the turn, which starts at the rear and runs clockwise.
        object_id: [N] int32, -1 for static surroundings. For labels and tests; never a model input.
        hits_per_object: [O] int64: rays within range whose first surface is the object, returned or not.
    """

    points: np.ndarray
    ring: np.ndarray
    time: np.ndarray
    object_id: np.ndarray
    hits_per_object: np.ndarray


@dataclass(frozen=True)
class RayPattern:
    """Rays in the sensor frame: origins and unit directions [R, 3], ring [R] and time [R] of firing."""

    origins: np.ndarray
    directions: np.ndarray
    ring: np.ndarray
    time: np.ndarray


def in_sector(azimuth: np.ndarray, sector: tuple[float, float]) -> np.ndarray:
    """Whether azimuths in degrees lie in the sector [from, to), counter-clockwise from +x (forward)."""
    return (azimuth - sector[0]) % 360.0 < sector[1] - sector[0]


@lru_cache(maxsize=8)
def ray_pattern(sensor: SpinningLidar, azimuth_range: tuple[float, float] | None = None) -> RayPattern:
    """The rays of one turn, restricted to a sector in degrees (counter-clockwise from forward).

    Raises:
        ValueError: if the sector is empty or larger than a turn.
    """
    if azimuth_range is not None and not 0 < azimuth_range[1] - azimuth_range[0] <= 360:
        raise ValueError(
            f"azimuth_range must be (from, to) in degrees with 0 < to - from <= 360; got {azimuth_range}"
        )
    step = np.arange(sensor.azimuth_steps)
    ring, step = (v.ravel() for v in np.meshgrid(np.arange(sensor.beams)[::-1], step, indexing="ij"))
    elevation = np.asarray(sensor.elevation)[ring]
    azimuth = 180.0 - step * (360.0 / sensor.azimuth_steps) + np.asarray(sensor.azimuth_offset)[ring]
    keep = np.ones(len(ring), bool) if azimuth_range is None else in_sector(azimuth, azimuth_range)
    for blind in sensor.blind:
        keep &= ~(in_sector(azimuth, blind.azimuth) & (elevation < blind.below))
    ring, step = ring[keep], step[keep]
    el, az = np.radians(elevation[keep]), np.radians(azimuth[keep])
    directions = np.stack([np.cos(el) * np.cos(az), np.cos(el) * np.sin(az), np.sin(el)], axis=1)
    origins = np.zeros((len(ring), 3), np.float32)
    if sensor.height:
        origins[:, 2] = np.asarray(sensor.height)[ring]
    pattern = RayPattern(
        origins,
        directions.astype(np.float32),
        ring.astype(np.int16),
        (step / sensor.azimuth_steps).astype(np.float32),
    )
    for array in (pattern.origins, pattern.directions, pattern.ring, pattern.time):
        array.setflags(write=False)
    return pattern


def cull(triangles: np.ndarray, azimuth_range: tuple[float, float]) -> np.ndarray:
    """Mask [T] of the triangles that a sector below 180 degrees can see from the z axis (conservative)."""
    keep = np.ones(len(triangles), bool)
    if azimuth_range[1] - azimuth_range[0] >= 180:
        return keep
    for edge, sign in zip(np.radians(azimuth_range), (1, -1), strict=True):
        side = triangles[:, :, 1] * np.float32(np.cos(edge)) - triangles[:, :, 0] * np.float32(np.sin(edge))
        keep &= (sign * side > -0.01).any(axis=1)
    return keep


def scan(
    sensor: SpinningLidar,
    world: World,
    rng: np.random.Generator,
    azimuth_range: tuple[float, float] | None = None,
) -> Scan:
    """Scan a world from `sensor.mount_height` above its origin.

    The random draws do not depend on the switches of the sensor: switching one off changes only what it
    stands for.

    Args:
        sensor: the sensor.
        world: what it sees.
        rng: draws the phase of the turn, ray drop and noise.
        azimuth_range: cast only this sector, degrees counter-clockwise from forward, to within a step.

    Raises:
        ValueError: if the sector is empty or larger than a turn.
        ImportError: if embreex is missing.
    """
    pattern = ray_pattern(sensor, azimuth_range)
    if azimuth_range is not None:
        world = world.select(cull(world.triangles, (azimuth_range[0] - 0.5, azimuth_range[1] + 0.5)))
    # The turn starts at a random fraction of a step, as the encoder of a real sensor does.
    directions = rotate_z(pattern.directions, -rng.random() * 2 * np.pi / sensor.azimuth_steps)
    mount = np.array([0, 0, sensor.mount_height], np.float32)
    caster: Caster = EmbreeCaster(world.triangles)
    hits = caster.cast(pattern.origins + mount, directions)

    hit = np.flatnonzero((hits.distance >= sensor.min_range) & (hits.distance <= sensor.max_range))
    distance, triangle, directions = hits.distance[hit], hits.triangle[hit], directions[hit]
    object_id, albedo = world.object_id[triangle], world.albedo[triangle]
    cosine = np.abs(np.einsum("nk,nk->n", unit_normals(world.triangles)[triangle], directions))
    chance = rng.random(len(hit), dtype=np.float32)
    noise = rng.standard_normal((2, len(hit)), dtype=np.float32)

    keep = np.ones(len(hit), bool)
    if sensor.returns is not None:
        keep = chance < sensor.returns.probability(albedo=albedo, cosine=cosine, distance=distance)
    # Grass a few centimetres high moves the hit along a grazing ray by more than its height.
    slack = np.float32(sensor.relief) * world.relief[triangle] / np.maximum(cosine, 0.2)
    measured = distance + np.float32(sensor.range_noise) * noise[0] + slack * noise[1]
    xyz = pattern.origins[hit] + directions * measured[:, None]
    points = np.empty((int(keep.sum()), 4), np.float32)
    points[:, :3] = _to_axes(xyz[keep], sensor.axes)
    points[:, 3] = intensity(sensor, albedo=albedo[keep], cosine=cosine[keep], distance=distance[keep])
    rays = hit[keep]
    objects = max((box.object_id for box in world.boxes), default=-1) + 1
    return Scan(
        points=points,
        ring=pattern.ring[rays],
        time=pattern.time[rays],
        object_id=object_id[keep],
        hits_per_object=np.bincount(object_id[object_id >= 0], minlength=objects),
    )


def intensity(
    sensor: SpinningLidar, *, albedo: np.ndarray, cosine: np.ndarray, distance: np.ndarray
) -> np.ndarray:
    """Stored intensity [H] of returns, in the sensor's convention.

    Stored values are not radiometric. On KITTI asphalt keeps 0.2-0.3 at a grazing angle where a Lambertian
    surface would fall below 0.05, and car paint reads 0.13 although it stops returning before asphalt does.
    Hence the weak power of the cosine and the square root of the albedo.
    """
    value = 0.65 * np.sqrt(albedo) * np.power(cosine, 0.3) * (0.6 + 0.4 * np.exp(distance / -40.0))
    value = np.clip(value, 0, 1)
    return np.round(value * 100) / 100 if sensor.intensity == "unit" else np.round(value * 255)


def unit_normals(triangles: np.ndarray) -> np.ndarray:
    """Unit normals [T, 3] of triangles [T, 3, 3]; zero for degenerate ones."""
    a, b = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    normal = np.stack(
        [
            a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1],
            a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2],
            a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0],
        ],
        axis=1,
    )
    return normal / np.maximum(np.sqrt(np.einsum("nk,nk->n", normal, normal)), 1e-12)[:, None]


def rotate_z(vectors: np.ndarray, angle: float) -> np.ndarray:
    """Vectors [N, 3] turned counter-clockwise about z by an angle in radians."""
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    out = vectors.copy()
    out[:, 0] = c * vectors[:, 0] - s * vectors[:, 1]
    out[:, 1] = s * vectors[:, 0] + c * vectors[:, 1]
    return out


def _to_axes(xyz: np.ndarray, axes: str) -> np.ndarray:
    if axes == "forward_left":
        return xyz
    return np.stack([-xyz[:, 1], xyz[:, 0], xyz[:, 2]], axis=1)
