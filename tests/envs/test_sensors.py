"""Beam tables, ray casting and the return model against closed forms."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from envs.sensors.lidar import (
    HDL_32E,
    HDL_32E_NUSCENES,
    HDL_64E,
    KITTI_HDL_64E,
    BlindSector,
    ReturnModel,
    SpinningLidar,
    cull,
    ray_pattern,
    scan,
    unit_normals,
)
from envs.sensors.raycast import EmbreeCaster
from envs.sensors.world import Box, World

CLEAN = replace(KITTI_HDL_64E, returns=None, range_noise=0.0, relief=0.0, blind=())


def plane(height: float = 0.0, *, half: float = 300.0, albedo: float = 0.4, relief: float = 0.0) -> World:
    """Two triangles at a height."""
    corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
    ring = np.concatenate([corners, np.full((4, 1), height)], axis=1).astype(np.float32)
    return World(
        triangles=ring[[[0, 1, 2], [0, 2, 3]]],
        albedo=np.full(2, albedo, np.float32),
        relief=np.full(2, relief, np.float32),
        object_id=np.full(2, -1, np.int32),
    )


def random_directions(count: int) -> np.ndarray:
    directions = np.random.default_rng(0).standard_normal((count, 3))
    return (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)


def nearest_hits(triangles: np.ndarray, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Distances by the Moeller-Trumbore test of every ray against every triangle, in float64."""
    a, b, c = (triangles[None, :, k].astype(float) for k in range(3))
    o, d = origins[:, None].astype(float), directions[:, None].astype(float)
    p = np.cross(d, c - a)
    det = ((b - a) * p).sum(-1)
    det = np.where(np.abs(det) < 1e-12, np.nan, det)
    u = ((o - a) * p).sum(-1) / det
    q = np.cross(o - a, b - a)
    v = (d * q).sum(-1) / det
    t = ((c - a) * q).sum(-1) / det
    return np.where((u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0), t, np.inf).min(axis=1)


@pytest.mark.parametrize(
    ("sensor", "beams", "low", "high"),
    [(HDL_64E, 64, -24.711, 2.021), (KITTI_HDL_64E, 64, -25.0, 1.94), (HDL_32E, 32, -30.667, 10.667)],
)
def test_beam_tables(sensor: SpinningLidar, beams: int, low: float, high: float) -> None:
    elevation = np.array(sensor.elevation)
    assert sensor.beams == beams == len(sensor.azimuth_offset)
    assert (np.diff(elevation) > 0).all()
    assert elevation[[0, -1]] == pytest.approx([low, high], abs=1e-3)


def test_hdl_64e_has_two_blocks_and_hdl_32e_one() -> None:
    steps = np.diff(HDL_64E.elevation)
    assert steps[:31].mean() == pytest.approx(0.51, abs=0.01)
    assert steps[32:].mean() == pytest.approx(0.34, abs=0.005)
    assert np.ptp(HDL_64E.azimuth_offset) > 15
    assert np.diff(HDL_32E.elevation) == pytest.approx(np.full(31, 4 / 3), abs=1e-3)
    assert not any(HDL_32E.azimuth_offset)


def test_caster_agrees_with_brute_force() -> None:
    rng = np.random.default_rng(1)
    triangles = (rng.uniform(-9, 9, (300, 1, 3)) + rng.normal(0, 1, (300, 3, 3))).astype(np.float32)
    directions = random_directions(500)
    origins = np.zeros_like(directions)
    hits = EmbreeCaster(triangles).cast(origins, directions)
    expected = nearest_hits(triangles, origins, directions)
    same = np.isfinite(hits.distance) == np.isfinite(expected)
    assert same.mean() > 0.995  # edges may fall either way
    both = np.isfinite(hits.distance) & np.isfinite(expected)
    assert both.sum() > 100
    np.testing.assert_allclose(hits.distance[both], expected[both], rtol=1e-4)
    assert (hits.triangle[~np.isfinite(hits.distance)] == -1).all()


def test_caster_on_plane_box_and_sphere() -> None:
    from envs.driving.meshes import box

    down = np.array([[0.6, 0, -0.8]], np.float32)
    assert EmbreeCaster(plane().triangles).cast(
        np.array([[0, 0, 2]], np.float32), down
    ).distance == pytest.approx(2.5)
    cube = EmbreeCaster(box((10, 0, 0), (2, 4, 4)).astype(np.float32))
    forward = np.array([[1, 0, 0]], np.float32)
    assert cube.cast(np.zeros((1, 3), np.float32), forward).distance == pytest.approx(9)
    assert np.isinf(cube.cast(np.zeros((1, 3), np.float32), -forward).distance)
    # From the centre of a finely triangulated sphere every ray has the radius as its distance.
    theta, phi = np.meshgrid(np.linspace(0, np.pi, 90), np.linspace(0, 2 * np.pi, 180), indexing="ij")
    v = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1) * 5
    faces = [(v[:-1, :-1], v[1:, :-1], v[1:, 1:]), (v[:-1, :-1], v[1:, 1:], v[:-1, 1:])]
    sphere = np.concatenate([np.stack(f, -2).reshape(-1, 3, 3) for f in faces]).astype(np.float32)
    rays = random_directions(200)
    np.testing.assert_allclose(EmbreeCaster(sphere).cast(np.zeros_like(rays), rays).distance, 5, rtol=2e-3)


def test_caster_without_triangles_or_rays_misses() -> None:
    none = np.empty((0, 3, 3), np.float32)
    assert np.isinf(
        EmbreeCaster(none).cast(np.zeros((2, 3), np.float32), random_directions(2)).distance
    ).all()
    assert EmbreeCaster(plane().triangles).cast(*np.empty((2, 0, 3), np.float32)).distance.shape == (0,)


def test_missing_embreex_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
    with pytest.raises(ImportError, match="pip install 'embreex"):
        EmbreeCaster(plane().triangles)


def test_caster_rejects_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"\[R, 3\]"):
        EmbreeCaster(plane().triangles).cast(np.zeros((2, 3)), np.zeros((3, 3)))


@pytest.mark.parametrize("sensor", [HDL_64E, KITTI_HDL_64E, HDL_32E])
def test_rings_on_flat_ground(sensor: SpinningLidar) -> None:
    """Every ring is a circle of radius (mount + laser height) / tan(-elevation) at z = -mount."""
    sensor = replace(sensor, returns=None, range_noise=0.0, blind=())
    sweep = scan(sensor, plane(), np.random.default_rng(0))
    radius = np.hypot(sweep.points[:, 0], sweep.points[:, 1])
    height = np.array(sensor.height or [0.0] * sensor.beams)
    with np.errstate(divide="ignore"):  # a horizontal beam
        expected = (sensor.mount_height + height) / np.tan(np.radians(-np.array(sensor.elevation)))
    np.testing.assert_allclose(radius, expected[sweep.ring], rtol=1e-3)
    np.testing.assert_allclose(sweep.points[:, 2], -sensor.mount_height, atol=2e-2)
    assert np.bincount(sweep.ring)[0] == sensor.azimuth_steps
    assert sweep.points.dtype == np.float32
    assert sweep.time.min() >= 0
    assert sweep.time.max() < 1


def test_turn_starts_at_the_rear_and_runs_clockwise() -> None:
    sweep = scan(replace(CLEAN, azimuth_offset=(0.0,) * 64), plane(), np.random.default_rng(0))
    azimuth = np.degrees(np.arctan2(sweep.points[:, 1], sweep.points[:, 0]))
    np.testing.assert_allclose(180 - 360 * sweep.time, azimuth, atol=0.2)


def test_sector_is_the_full_scan_cut_out() -> None:
    full = scan(CLEAN, plane(), np.random.default_rng(3))
    part = scan(CLEAN, plane(), np.random.default_rng(3), azimuth_range=(-45, 45))
    azimuth = np.degrees(np.arctan2(part.points[:, 1], part.points[:, 0]))
    assert np.abs(azimuth).max() < 45 + 0.2
    assert len(part.points) == pytest.approx(len(full.points) / 4, rel=0.01)
    full_rows = {row.tobytes() for row in full.points}
    assert np.mean([row.tobytes() in full_rows for row in part.points]) > 0.99


def test_culling_is_conservative() -> None:
    rng = np.random.default_rng(2)
    triangles = (rng.uniform(-30, 30, (2000, 1, 3)) + rng.normal(0, 2, (2000, 3, 3))).astype(np.float32)
    pattern = ray_pattern(CLEAN, (-20, 40))
    everything = EmbreeCaster(triangles).cast(pattern.origins, pattern.directions)
    kept = EmbreeCaster(triangles[cull(triangles, (-20, 40))]).cast(pattern.origins, pattern.directions)
    assert cull(triangles, (-20, 40)).mean() < 0.5
    np.testing.assert_array_equal(everything.distance, kept.distance)


def test_range_noise_moves_points_along_their_rays_only() -> None:
    quiet, noisy = (
        scan(replace(CLEAN, range_noise=s), plane(), np.random.default_rng(4)) for s in (0.0, 0.02)
    )
    origin = np.zeros((len(quiet.points), 3))
    origin[:, 2] = np.array(CLEAN.height)[quiet.ring]
    a, b = quiet.points[:, :3] - origin, noisy.points[:, :3] - origin
    change = np.linalg.norm(b, axis=1) - np.linalg.norm(a, axis=1)
    assert change.std() == pytest.approx(0.02, rel=0.02)
    assert change.mean() == pytest.approx(0, abs=1e-3)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 1 - 1e-6
    np.testing.assert_array_equal(quiet.points[:, 3], noisy.points[:, 3])
    np.testing.assert_array_equal(quiet.ring, noisy.ring)


def test_relief_is_noise_of_rough_surfaces_only() -> None:
    for relief, changes in ((0.0, False), (0.03, True)):
        world = plane(relief=relief)
        off, on = (scan(replace(CLEAN, relief=s), world, np.random.default_rng(4)) for s in (0.0, 1.0))
        assert (off.points != on.points).any() == changes


def test_ray_drop_leaves_the_surviving_points_as_they_were() -> None:
    sensor = replace(CLEAN, range_noise=0.02)
    everything = scan(sensor, plane(), np.random.default_rng(5))
    dropped = scan(replace(sensor, returns=ReturnModel()), plane(), np.random.default_rng(5))
    assert 0.3 < len(dropped.points) / len(everything.points) < 0.999
    rows = {row.tobytes() for row in everything.points}
    assert all(row.tobytes() in rows for row in dropped.points)


def test_returns_fade_with_range_incidence_and_albedo() -> None:
    model = ReturnModel()

    def chance(albedo: float, cosine: float, distance: float) -> float:
        values = (np.array([v], np.float32) for v in (albedo, cosine, distance))
        return float(model.probability(**dict(zip(("albedo", "cosine", "distance"), values, strict=True)))[0])

    near = chance(0.4, 0.5, 10)
    assert near == pytest.approx(model.efficiency, abs=1e-3)
    assert chance(0.4, 0.03, 70) < chance(0.4, 0.03, 40) < near
    assert chance(1e-4, 1, 20) < 0.1


def test_range_limits() -> None:
    near = scan(replace(CLEAN, min_range=6.0, max_range=20.0), plane(), np.random.default_rng(0))
    origin_height = np.array(CLEAN.height)[near.ring]
    distance = np.linalg.norm(
        near.points[:, :3] - np.stack([0 * origin_height, 0 * origin_height, origin_height], 1), axis=1
    )
    assert distance.min() >= 6 - 1e-3
    assert distance.max() <= 20 + 1e-3


def test_blind_sector_hides_low_beams() -> None:
    sensor = replace(CLEAN, azimuth_offset=(0.0,) * 64, blind=(BlindSector(azimuth=(-10, 10), below=-20.0),))
    sweep = scan(sensor, plane(), np.random.default_rng(0))
    azimuth = np.degrees(np.arctan2(sweep.points[:, 1], sweep.points[:, 0]))
    low = np.array(sensor.elevation)[sweep.ring] < -20
    assert not (low & (np.abs(azimuth) < 9.5)).any()
    assert (low & (np.abs(azimuth) > 11)).any()
    assert (~low & (np.abs(azimuth) < 9)).any()


def test_intensity_conventions_and_nuscenes_axes() -> None:
    kitti, nuscenes = (scan(s, plane(), np.random.default_rng(0)) for s in (HDL_32E, HDL_32E_NUSCENES))
    np.testing.assert_array_equal(nuscenes.points[:, 0], -kitti.points[:, 1])
    np.testing.assert_array_equal(nuscenes.points[:, 1], kitti.points[:, 0])
    assert kitti.points[:, 3].max() <= 1
    np.testing.assert_allclose(kitti.points[:, 3] * 100, np.round(kitti.points[:, 3] * 100), atol=1e-4)
    np.testing.assert_array_equal(nuscenes.points[:, 3], np.round(nuscenes.points[:, 3]))
    np.testing.assert_allclose(nuscenes.points[:, 3] / 255, kitti.points[:, 3], atol=0.008)


def test_scan_is_a_function_of_the_generator() -> None:
    first, again, other = (scan(KITTI_HDL_64E, plane(), np.random.default_rng(s)) for s in (7, 7, 8))
    assert first.points.tobytes() == again.points.tobytes()
    assert first.points.tobytes() != other.points.tobytes()


def test_object_hits_are_counted_before_ray_drop() -> None:
    from envs.driving.meshes import box

    ground = plane()
    body = box((10, 0, 1), (4, 2, 2)).astype(np.float32)
    world = World(
        triangles=np.concatenate([ground.triangles, body]),
        albedo=np.full(14, 1e-6, np.float32),
        relief=np.zeros(14, np.float32),
        object_id=np.array([-1] * 2 + [0] * 12, np.int32),
        boxes=(Box(category="Car", center=(10, 0, 1), size=(4, 2, 2), yaw=0.0, object_id=0),),
    )
    silent = scan(replace(CLEAN, returns=ReturnModel()), world, np.random.default_rng(0))
    loud = scan(CLEAN, world, np.random.default_rng(0))
    assert silent.hits_per_object.tolist() == loud.hits_per_object.tolist() == [(loud.object_id == 0).sum()]
    assert (silent.object_id == 0).sum() < 5
    on_box = loud.points[loud.object_id == 0, :3] + [0, 0, CLEAN.mount_height]
    assert world.boxes[0].inside(on_box, margin=1e-3).all()


def test_unit_normals() -> None:
    flat = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 0]] * 3], np.float32)
    np.testing.assert_array_equal(unit_normals(flat), [[0, 0, 1], [0, 0, 0]])


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        replace(HDL_32E, azimuth_offset=(0.0,))
    with pytest.raises(ValueError, match="min_range"):
        replace(HDL_32E, min_range=90.0)
    for sector in ((10.0, 10.0), (0.0, 361.0)):
        with pytest.raises(ValueError, match="azimuth_range"):
            scan(HDL_32E, plane(), np.random.default_rng(0), azimuth_range=sector)
    world = plane()
    with pytest.raises(ValueError, match="triangles must be"):
        replace(world, triangles=world.triangles[0])
    with pytest.raises(ValueError, match="albedo must be"):
        replace(world, albedo=world.albedo[:1])
    with pytest.raises(ValueError, match="NaN"):
        replace(world, triangles=world.triangles * np.float32(np.nan))
