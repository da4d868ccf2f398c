"""Drives: kinematics against closed forms, the moving world against the still one, the store, the episodes."""

from dataclasses import replace

import numpy as np
import pytest

from envs.driving.drive_store import (
    DriveEpisodes,
    DriveFileError,
    FeatureEpisodes,
    build_drives,
    read_drive,
    save_drive,
)
from envs.driving.drives import (
    EGO_SIZE,
    PERIOD,
    Drive,
    DriveSpec,
    Stage,
    Traffic,
    blocked,
    draw_motion,
    draw_traffic,
    ego_footprints,
    simulate_drive,
    touches,
    without_collisions,
    without_users,
)
from envs.driving.kitti_export import SENSORS
from envs.driving.meshes import box
from envs.driving.routes import MAX_SPEED, MAX_YAW_RATE, draw_path, follow, speed_profile, to_road, unicycle
from envs.driving.streets import street
from envs.driving.terrain import draw_road
from envs.driving.traffic import overlaps
from envs.episodes import ActionBlocks, check_episodes
from envs.sensors.lidar import scan
from envs.sensors.raycast import EmbreeCaster

SPEC = DriveSpec(drives=2, frames=4, azimuth_range=(-8, 8), seed=3)


@pytest.fixture(scope="module")
def scene():
    """Road, street, what is solid, and traffic without collisions."""
    road, world = draw_road(np.random.default_rng(4)), street(np.random.default_rng(4))
    static = EmbreeCaster(world.triangles[world.object_id < 0])
    traffic = draw_traffic(road, world.boxes, np.random.default_rng(0))
    return road, world, static, without_collisions(traffic, road, static=static, duration=4.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return build_drives(tmp_path_factory.mktemp("drives"), spec=SPEC, progress=False)


def test_unicycle_drives_exact_circles_and_lines():
    circle = unicycle(np.zeros(3), np.tile([2.0, 2 * np.pi / 4], (40, 1)), period=0.1)
    assert circle[-1, :2] == pytest.approx([0, 0], abs=1e-9)
    assert circle[20, :2] == pytest.approx([0, 2 * 2.0 / (np.pi / 2)], abs=1e-9)
    line = unicycle(np.array([1.0, 2.0, np.pi / 2]), np.tile([3.0, 0.0], (10, 1)), period=0.1)
    assert line[-1] == pytest.approx([1.0, 5.0, np.pi / 2])


def test_road_coordinates_are_the_inverse_of_to_world():
    rng = np.random.default_rng(0)
    for seed in range(20):
        road = draw_road(np.random.default_rng(seed))
        s, n = rng.uniform(-80, 80, 30), rng.uniform(-60, 60, 30)
        x, y, _ = road.to_world(s, n)
        back = to_road(road, x, y)
        assert np.abs(back[0] - s).max() < 1e-6
        assert np.abs(back[1] - n).max() < 1e-6


def test_streets_begin_with_their_road():
    # `simulate_drive` relies on it.
    ground = draw_road(np.random.default_rng(7)).ground().triangles
    assert np.array_equal(street(np.random.default_rng(7)).triangles[: len(ground)], ground)


def test_routes_stay_on_their_path_and_within_the_bounds():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        road = draw_road(np.random.default_rng(seed))
        profile = speed_profile(50, rng, period=PERIOD)
        assert profile.min() >= 0
        for manoeuvre in ("keep", "lane_change", "weave"):
            path = draw_path(road, rng, manoeuvre=manoeuvre, start=-40, length=profile.sum() * PERIOD)
            motion = follow(path, profile, period=PERIOD)
            off = np.hypot(*(motion.poses[:, None, :2] - path[None]).transpose(2, 0, 1)).min(axis=1)
            assert off.max() < 0.6
            assert (motion.actions >= (0, -MAX_YAW_RATE)).all()
            assert (motion.actions <= (MAX_SPEED, MAX_YAW_RATE)).all()
            assert np.allclose(unicycle(motion.poses[0], motion.actions, period=PERIOD), motion.poses)


def test_a_turn_ends_a_quarter_turn_off():
    road = replace(draw_road(np.random.default_rng(0)), side_roads=(20.0, np.nan), curvature=0.0, heading=0.0)
    path = draw_path(road, np.random.default_rng(0), manoeuvre="turn", start=0.0, length=60.0)
    motion = follow(path, np.full(120, 4.0), period=PERIOD)
    assert motion.poses[-1, 2] == pytest.approx(np.pi / 2, abs=0.05)
    with pytest.raises(ValueError, match="no side road ahead"):
        draw_path(road, np.random.default_rng(0), manoeuvre="turn", start=30.0, length=60.0)


def test_blocked_finds_what_stands_in_a_footprint():
    wall = EmbreeCaster(box((10.0, 0.0, 1.0), (0.2, 3.0, 2.0)).astype(np.float32))
    poses = np.array([[0.0, 0, 0], [10.0, 0, 0], [10.0, 0, 1.0], [10.0, 8.0, 0.3]])
    assert blocked(wall, ego_footprints(poses), np.zeros(4)).tolist() == [False, True, True, False]
    assert not blocked(wall, ego_footprints(poses), np.full(4, 3.0)).any()  # the ground is above the wall


def test_nobody_touches_anybody(scene):
    road, world, static, traffic = scene
    assert traffic.moving.any()
    motion, _ = draw_motion(road, traffic, static=static, frames=41, rng=np.random.default_rng(1))
    world, traffic = without_users(world, traffic, touches(motion, road=road, traffic=traffic))
    assert len(traffic.size) == len(world.boxes) == world.object_id.max() + 1
    for i, ego in enumerate(ego_footprints(motion.poses)):
        users = traffic.at(road, i * PERIOD)
        assert not overlaps(ego, users).any()
        for k in np.flatnonzero(traffic.moving):
            assert not overlaps(users[k], np.delete(users, k, axis=0)).any()
    ground = road.height(*to_road(road, motion.poses[:, 0], motion.poses[:, 1]))
    assert not blocked(static, ego_footprints(motion.poses), ground).any()
    assert tuple(ego_footprints(motion.poses)[0, 2:4]) == EGO_SIZE


def test_road_users_move_by_their_velocity(scene):
    road, _, _, traffic = scene
    speed = np.hypot(*traffic.velocity.T)
    step = traffic.at(road, 1.01)[:, :2] - traffic.at(road, 1.0)[:, :2]
    assert np.hypot(*step.T) / 0.01 == pytest.approx(speed, rel=0.15, abs=1e-6)
    assert np.array_equal(traffic.at(road, 5.0)[~traffic.moving], traffic.at(road, 0.0)[~traffic.moving])


def test_without_collisions_stops_a_car_behind_a_parked_one(scene):
    road, _, _, _ = scene
    nothing = EmbreeCaster(np.empty((0, 3, 3), np.float32))
    pair = Traffic(
        position=np.array([[0.0, -1.5], [20.0, -1.5], [0.0, 1.5]]),
        velocity=np.array([[10.0, 0.0], [0.0, 0.0], [10.0, 0.0]]),
        heading=np.zeros(3),
        size=np.tile([4.0, 1.6], (3, 1)),
    )
    assert without_collisions(pair, road, static=nothing, duration=4.0).moving.tolist() == [
        False,
        False,
        True,
    ]


def test_the_stage_shows_the_street_and_leaves_out_only_what_no_ray_reaches(scene):
    road, world, _, traffic = scene
    sensor = replace(SENSORS["HDL-64E"], max_range=40.0)
    stage = Stage(world, road=road, traffic=traffic, sensor=sensor)
    start = stage.seen_from(np.zeros(3), time=0.0, everything=True)
    sums = [np.sort(w.triangles.sum(axis=(1, 2))) for w in (start, world)]
    assert np.abs(sums[0] - sums[1]).max() < 1e-3
    pose = np.array([-15.0, -1.0, 0.6])
    seen = [
        scan(sensor, stage.seen_from(pose, time=2.0, everything=e), np.random.default_rng(0), (-45, 45))
        for e in (False, True)
    ]
    assert len(seen[0].points) > 1000
    assert np.array_equal(seen[0].points, seen[1].points)


def test_a_still_point_moves_by_the_ego_motion(scene):
    road, world, _, traffic = scene
    still = replace(traffic, velocity=np.zeros_like(traffic.velocity))
    stage = Stage(world, road=road, traffic=still, sensor=SENSORS["HDL-64E"])
    pose = np.array([3.0, 0.5, 0.3])
    a, b = (stage.seen_from(p, time=0.0, everything=True).triangles for p in (np.zeros(3), pose))
    c, s = np.cos(pose[2]), np.sin(pose[2])
    assert np.abs(b[..., :2] - (a[..., :2] - pose[:2]) @ np.array([[c, -s], [s, c]])).max() < 1e-3


def test_a_drive_is_a_function_of_spec_and_number(files):
    again = simulate_drive(SPEC, 1)
    stored = read_drive(files[1])
    assert np.array_equal(again.actions, stored.actions)
    assert np.array_equal(again.poses, stored.poses)
    assert again.actions.dtype == np.float32
    for a, b in zip(again.points, stored.points, strict=True):
        assert np.abs(b - a).max(axis=0) == pytest.approx([0, 0, 0, 0], abs=2e-3)
    assert not np.array_equal(read_drive(files[0]).actions, stored.actions)


def test_building_resumes_and_a_larger_set_contains_the_smaller(files, monkeypatch):
    made = []
    monkeypatch.setattr("envs.driving.drive_store.simulate_drive", lambda spec, i: made.append(i) or _tiny(3))
    root = files[0].parent.parent
    assert build_drives(root, spec=SPEC, progress=False) == files
    assert made == []
    more = build_drives(root, spec=replace(SPEC, drives=3), progress=False)
    assert (more[:2], made) == (files, [2])
    more[2].unlink()


def _tiny(frames: int) -> Drive:
    return Drive(
        points=tuple(np.full((i + 1, 4), 0.5, np.float32) for i in range(frames)),
        actions=np.ones((frames - 1, 2), np.float32),
        poses=np.zeros((frames, 3)),
        seen=np.zeros(frames, np.int32),
        manoeuvre="stand",
    )


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "0.npz"
    with pytest.raises(DriveFileError, match=r"0\.npz"):
        read_drive(path)
    save_drive(path, _tiny(2))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DriveFileError, match="delete it"):
        read_drive(path)


def test_drives_as_episodes(files):
    source = DriveEpisodes(files, points=6000)
    check_episodes(source, steps=3)
    episode = source.sample(0, steps=4, generator=np.random.default_rng(0))
    assert episode.labels["pose"].shape == (4, 3)
    assert np.isinf(episode.observations[0, -1]).all()
    check_episodes(DriveEpisodes(files, points=100), steps=2)  # sweeps are thinned
    check_episodes(ActionBlocks(source, 3), steps=2)
    with pytest.raises(ValueError, match="4 sweeps, fewer than the 5"):
        source.sample(0, steps=5, generator=np.random.default_rng(0))


def test_feature_episodes():
    features = [np.arange(5, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)] * 2
    actions = [np.stack([np.arange(4), np.zeros(4)], 1).astype(np.float32)] * 2
    source = FeatureEpisodes(features, actions)
    check_episodes(source)
    episode = source.sample(1, steps=3, generator=np.random.default_rng(0))
    assert np.array_equal(episode.actions[:, 0], episode.observations[:-1, 0])
    with pytest.raises(ValueError, match="drive 0: 5 frames"):
        FeatureEpisodes(features, [a[1:] for a in actions])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sensor": "VLP"}, "unknown sensor"),
        ({"frames": 1}, "frames >= 2"),
        ({"max_range": 80.0}, "5..65"),
    ],
)
def test_impossible_specs(change, message):
    with pytest.raises(ValueError, match=message):
        DriveSpec(**change)


def test_workers_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="workers"):
        build_drives(tmp_path, spec=SPEC, workers=0)


def test_the_fingerprint_ignores_the_number_of_drives():
    assert SPEC.fingerprint() == replace(SPEC, drives=9).fingerprint() != replace(SPEC, seed=9).fingerprint()
