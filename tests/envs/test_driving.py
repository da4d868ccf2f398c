"""Street scenes: shapes, sizes, placement, density, and the statistics that compare scans."""

from pathlib import Path

import numpy as np
import pytest

from envs.driving import actors, scenery
from envs.driving.meshes import Mesh, Placement, assemble, ball, box, hull, join, leaves, tube
from envs.driving.statistics import (
    clear_cars,
    labelled_objects,
    log_log_slope,
    occupied_cells,
    scan_statistics,
)
from envs.driving.streets import street
from envs.driving.terrain import draw_road
from envs.driving.traffic import overlaps
from envs.sensors.world import Box, World

SCENES = 30


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [street(np.random.default_rng(seed)) for seed in range(SCENES)]


def area(triangles: np.ndarray) -> float:
    edges = triangles[:, 1:] - triangles[:, :1]
    return float(np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1).sum() / 2)


def test_primitives_have_the_right_surface() -> None:
    assert area(box((1, 2, 3), (2, 3, 4))) == pytest.approx(52)
    many = tube((0, 0, 0), (0, 0, 2), radius=(1, 1), sides=64)
    assert area(many) == pytest.approx(2 * np.pi * 2 + 2 * np.pi, rel=5e-3)
    assert len(ball((0, 0, 0), (1, 1, 1))) == 20
    assert np.linalg.norm(ball((0, 0, 0), (2, 2, 2)), axis=2) == pytest.approx(2)
    strip, sides = hull([(1, 0), (1, 1), (-1, 1), (-1, 0)], 0.5)
    assert area(strip) + area(sides) == pytest.approx(2 * (2 * 1 + 2 * 1 + 1 * 1))
    assert leaves(np.zeros((7, 3)), size=0.1, rng=np.random.default_rng(0)).shape == (7, 3, 3)


@pytest.mark.parametrize("category", list(actors.SIZES))
def test_actor_shapes_fill_the_unit_box(category: str) -> None:
    for mesh in actors.shapes()[category]:
        lo, hi = mesh.triangles.min(axis=(0, 1)), mesh.triangles.max(axis=(0, 1))
        assert lo[1:] == pytest.approx([-0.5, 0], abs=1e-5)
        assert hi[1:] == pytest.approx([0.5, 1], abs=1e-5)
        assert 0.4 < hi[0] - lo[0] < 1 + 1e-5
        assert lo[0] == pytest.approx(-hi[0], abs=1e-5)


def test_shapes_are_finite_and_shared() -> None:
    for kinds in (actors.shapes(), scenery.shapes()):
        for meshes in kinds.values():
            assert all(np.isfinite(m.triangles).all() and (m.albedo > 0).all() for m in meshes)
    assert scenery.shapes() is scenery.shapes()


def test_assemble_scales_turns_moves_and_tints() -> None:
    ground = Mesh.of(box((0, 0, -1), (9, 9, 1)), albedo=0.5)
    unit = join([Mesh.of(box((0, 0, 0.5), (1, 1, 1)), albedo=0.2)])
    world = assemble(ground, [Placement(unit, (5, 1, 2), np.pi / 2, (4, 2, 3), tint=2.0, object_id=3)], [])
    placed = world.triangles[world.object_id == 3]
    assert placed.min(axis=(0, 1)) == pytest.approx([4, -1, 2], abs=1e-5)
    assert placed.max(axis=(0, 1)) == pytest.approx([6, 3, 5], abs=1e-5)
    assert world.albedo[world.object_id == 3] == pytest.approx(0.4)
    assert world.albedo[world.object_id == -1] == pytest.approx(0.5)
    assert len(assemble(ground, [], []).triangles) == 12


def test_box_corners_and_inside_agree() -> None:
    label = Box(category="Car", center=(3, -2, 1), size=(4, 2, 1.5), yaw=0.7, object_id=0)
    corners = label.corners()
    assert label.inside(corners, margin=1e-6).all()
    assert not label.inside((corners - label.center) * 1.01 + label.center).any()
    heading = corners[[0, 3, 4, 7]].mean(axis=0) - label.center
    assert np.arctan2(heading[1], heading[0]) == pytest.approx(0.7)


def test_overlaps_against_sampled_rectangles() -> None:
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 25)] * 2), -1).reshape(-1, 2)

    def holds(r: np.ndarray, points: np.ndarray) -> np.ndarray:
        c, s = np.cos(r[4]), np.sin(r[4])
        local = (points - r[:2]) @ np.array([[c, -s], [s, c]])
        return (np.abs(local) <= r[2:4] / 2 + 1e-9).all(axis=1)

    def samples(r: np.ndarray) -> np.ndarray:
        c, s = np.cos(r[4]), np.sin(r[4])
        return (grid * r[2:4]) @ np.array([[c, s], [-s, c]]) + r[:2]

    wrong = 0
    for _ in range(300):
        a, b = np.stack(
            [*rng.uniform(-3, 3, (2, 2)).T, *rng.uniform(1, 4, (2, 2)).T, rng.uniform(-3, 3, 2)], axis=1
        )
        sampled = holds(a, samples(b)).any() or holds(b, samples(a)).any()
        found = bool(overlaps(a, b[None])[0])
        assert found or not sampled  # a common point proves overlap
        wrong += found != sampled
    assert wrong < 9  # slivers thinner than the sampling
    assert not overlaps(np.array([0, 0, 2, 2, 0.0]), np.array([[2.1, 0, 2, 2, 0]]))[0]
    assert overlaps(np.array([0, 0, 2, 2, 0.0]), np.array([[2.1, 0, 2, 2, 0]]), gap=0.2)[0]


def test_road_frame_is_isometric_along_the_centre_and_level_at_the_origin() -> None:
    for seed in range(10):
        road = draw_road(np.random.default_rng(seed))
        s = np.linspace(-60, 60, 241)
        x, y, yaw = road.to_world(s, np.zeros_like(s))
        np.testing.assert_allclose(np.hypot(np.diff(x), np.diff(y)), 0.5, rtol=1e-3)
        np.testing.assert_allclose(
            np.unwrap(np.arctan2(np.diff(y), np.diff(x))), (yaw[1:] + yaw[:-1]) / 2, atol=1e-3
        )
        ego = road.to_world(0.0, road.offset)
        assert ego[:2] == pytest.approx((0, 0), abs=1e-9)
        assert road.height(np.zeros(1), np.array([road.offset])) == pytest.approx(0, abs=1e-6)


def test_no_two_road_users_overlap(worlds: list[World]) -> None:
    for world in worlds:
        flat = np.array([(*b.center[:2], *b.size[:2], b.yaw) for b in world.boxes])
        for i in range(1, len(flat)):
            assert not overlaps(flat[i], flat[:i]).any()


def test_boxes_hold_their_triangles_and_stand_on_the_ground(worlds: list[World]) -> None:
    for world in worlds[:5]:
        assert sorted(set(world.object_id.tolist())) == list(range(-1, len(world.boxes)))
        for label in world.boxes:
            corners = world.triangles[world.object_id == label.object_id].reshape(-1, 3)
            assert label.inside(corners, margin=1e-3).all()
            assert abs(label.center[2] - label.size[2] / 2) < 8


def test_label_sizes_are_near_kitti(worlds: list[World]) -> None:
    expected = {"Car": (3.88, 1.63, 1.53), "Pedestrian": (0.84, 0.66, 1.76), "Cyclist": (1.76, 0.60, 1.74)}
    for category, mean in expected.items():
        sizes = np.array([b.size for w in worlds for b in w.boxes if b.category == category])
        assert sizes.mean(axis=0) == pytest.approx(mean, rel=0.06)


def test_density_near_the_ego_vehicle(worlds: list[World]) -> None:
    def near(category: str) -> float:
        boxes = [b for w in worlds for b in w.boxes if b.category == category]
        return sum(0 < b.center[0] < 25.6 and abs(b.center[1]) < 12.8 for b in boxes) / len(worlds)

    assert 3 <= near("Car") <= 6
    assert 1 <= near("Pedestrian") <= 3
    assert 0.5 <= near("Cyclist") <= 3
    assert any(b.center[0] > 55 for w in worlds for b in w.boxes)
    assert any(b.center[0] < -20 for w in worlds for b in w.boxes)


def test_oncoming_traffic_keeps_to_the_right(worlds: list[World]) -> None:
    """Cars to the left of the ego lane mostly come towards it, those to the right go its way."""
    left = [
        b for w in worlds for b in w.boxes if b.category == "Car" and 5 < b.center[0] < 40 and b.center[1] > 2
    ]
    right = [
        b
        for w in worlds
        for b in w.boxes
        if b.category == "Car" and 5 < b.center[0] < 40 and b.center[1] < -1
    ]
    assert np.mean([np.cos(b.yaw) < 0 for b in left]) > 0.8
    assert np.mean([np.cos(b.yaw) > 0 for b in right]) > 0.7


def test_scene_is_a_function_of_the_seed() -> None:
    first, again, other = (street(np.random.default_rng(s)) for s in (3, 3, 4))
    assert first.triangles.tobytes() == again.triangles.tobytes()
    assert first.boxes == again.boxes
    assert first.boxes != other.boxes


def test_scan_statistics_of_known_points() -> None:
    points = np.array(
        [[10, 0, -1.73, 0.2], [10.1, 0, -1.73, 0.4], [-30, 0, 0, 0.6], [3, 4, -1.73, 0.8]], np.float32
    )
    figures = scan_statistics(points)
    assert (figures.points, figures.ahead, figures.crop, figures.cells) == (4, 2, 3, 2)
    assert figures.ground == pytest.approx(-1.725)
    assert figures.intensity == pytest.approx(0.5)
    assert figures.by_range[1:4] == pytest.approx((0.25, 0.5, 0.0))
    assert sum(figures.by_range) == pytest.approx(1)
    assert occupied_cells(points[:0]) == 0


def test_labelled_objects_and_slope(tmp_path: Path) -> None:
    calib, label = tmp_path / "c.txt", tmp_path / "l.txt"
    calib.write_text("R0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0 0 0 -1 -0.08 1 0 0 -0.27\n")
    label.write_text(
        "Car 0.00 0 0 0 0 9 9 1.5 1.6 4.0 0.0 1.65 19.73 -1.57\n"
        "DontCare -1 -1 -10 0 0 1 1 -1 -1 -1 -1000 -1000 -1000 -10\n"
    )
    points = np.array(
        [[20, 0, -1, 0.1], [21.9, 0.7, -0.5, 0.3], [20, 0.9, -1, 0.1], [20, 0, 0, 0.1]], np.float32
    )
    (car,) = labelled_objects(points, label=label, calib=calib)
    assert (car.category, car.points, car.range) == ("Car", 2, pytest.approx(19.73))
    assert car.intensity == pytest.approx(0.2)
    assert clear_cars([car]).tolist() == [[19.73, 2]]
    r = np.array([8.0, 10, 20, 40])
    assert log_log_slope(np.stack([r, 1e5 * r**-2.0], axis=1)) == pytest.approx(-2)
    assert np.isnan(log_log_slope(np.ones((2, 2))))
