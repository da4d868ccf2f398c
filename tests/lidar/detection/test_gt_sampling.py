"""Pasting recorded objects: how many, where not, and what becomes of the points there."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lidar.detection.gt_cutting import build_database
from lidar.detection.gt_database import GroundTruthDatabase
from lidar.detection.gt_sampling import GroundTruthSampling, free, on_road
from lidar.detection.labels import ClassNames
from lidar.detection.overlap import bev_intersection
from lidar.detection.scene import Scene, membership
from tests.lidar.detection.sources import filled, memory, row_of_boxes

CLASSES = ClassNames(names=("Car", "Pedestrian"))


def _database(path: Path, *, velocity: bool = False, columns: int = 4) -> GroundTruthDatabase:
    """9 cars at y = 0, 9 pedestrians at y = 10 and, in their place, 9 more cars."""
    rows = [row_of_boxes(9, y=y, velocity=velocity) for y in (0.0, 10.0, 10.0)]
    names = [("Car",) * 9, ("Pedestrian",) * 9, ("Car",) * 9]
    source = memory(rows, names, columns=columns, velocities=velocity)
    return build_database(path, source=source, refs=source.frames, classes=CLASSES, progress=False)


def _scene(
    boxes: np.ndarray, labels: list[int], *, columns: int = 4, road: np.ndarray | None = None
) -> Scene:
    points = filled(boxes, seed=5, columns=columns)
    return Scene(points=points, boxes=boxes, labels=np.array(labels, np.int64), road=road)


def _empty(columns: int = 4) -> Scene:
    floor = np.random.default_rng(0).uniform((1, -20, -2, 0), (60, 20, 0, 1), (3000, 4)).astype(np.float32)
    floor = np.column_stack([floor, np.zeros((3000, columns - 4), np.float32)])
    return Scene(points=floor, boxes=np.zeros((0, 7), np.float32), labels=np.zeros(0, np.int64))


def _sampling(database: GroundTruthDatabase, **options: object) -> GroundTruthSampling:
    settings = {"classes": CLASSES.names, "counts": {"Car": 5, "Pedestrian": 4}, **options}
    return GroundTruthSampling(database=database, **settings)  # type: ignore[arg-type]


def test_pasted_objects_overlap_nothing_and_bring_their_points(tmp_path: Path) -> None:
    sampling, scene = _sampling(_database(tmp_path / "a")), _empty()
    numbers = []
    for seed in range(20):
        view = sampling.paste(scene, np.random.default_rng(seed))
        numbers.append(len(view.boxes))
        overlap = bev_intersection(torch.from_numpy(view.boxes), torch.from_numpy(view.boxes))
        assert (overlap.fill_diagonal_(0) == 0).all()
        inside = membership(view.points, view.boxes)
        # 20 recorded points each, and none of the floor.
        np.testing.assert_array_equal(inside.sum(axis=1), 20)
        assert inside[:, : 20 * len(view.boxes)].any(axis=0).all()
        assert (
            len(view.points)
            == 20 * len(view.boxes) + (~membership(scene.points, view.boxes).any(axis=0)).sum()
        )
        assert ((view.labels == 0).sum() <= 5) & ((view.labels == 1).sum() <= 4)
    assert max(numbers) <= 9
    assert min(numbers) < max(numbers)  # cars at y = 10 are in the way of some pedestrians


def test_present_objects_count_or_do_not(tmp_path: Path) -> None:
    database = _database(tmp_path / "a")
    boxes = row_of_boxes(3, y=-15.0)  # out of the way
    for subtract, expected in ((True, 1), (False, 4)):
        sampling = _sampling(database, counts={"Pedestrian": 4}, subtract_present=subtract)
        view = sampling.paste(_scene(boxes, [1, 1, 1]), np.random.default_rng(0))
        assert (view.labels == 1).sum() == 3 + expected
        np.testing.assert_array_equal(view.boxes[:3], boxes)
    full = _sampling(database, counts={"Pedestrian": 3})
    scene = _scene(boxes, [1, 1, 1])
    assert full.paste(scene, np.random.default_rng(0)) is scene


def test_nothing_is_pasted_on_other_objects(tmp_path: Path) -> None:
    """Objects that are not learned occupy their place all the same."""
    sampling = _sampling(_database(tmp_path / "a"), counts={"Pedestrian": 9})
    boxes = row_of_boxes(4, y=10.3)
    view = sampling.paste(_scene(boxes, [-1, -1, -1, -1]), np.random.default_rng(0))
    assert len(view.boxes) == 4 + 5
    assert membership(view.points, boxes).sum() == 80


def test_candidates_that_overlap_each_other_are_both_rejected() -> None:
    candidates = row_of_boxes(4).astype(np.float64)
    candidates[1, 0] = candidates[0, 0] + 3.9  # 10 cm of overlap
    occupied = row_of_boxes(1, y=1.7).astype(np.float64)
    occupied[:, 0] = candidates[3, 0]
    np.testing.assert_array_equal(free(candidates, occupied), [False, False, True, False])
    np.testing.assert_array_equal(free(candidates, np.zeros((0, 7))), [False, False, True, True])
    touching = row_of_boxes(2, spacing=4.0).astype(np.float64)
    assert free(touching, np.zeros((0, 7))).all()


def test_objects_stand_on_the_road(tmp_path: Path) -> None:
    road = np.array([0.05, -0.02, 1.0, 1.5])  # z = -1.5 - 0.05 x + 0.02 y
    boxes = row_of_boxes(4, y=3.0)
    moved = on_road(boxes, road)
    bottom = moved[:, 2] - moved[:, 5] / 2
    np.testing.assert_allclose(bottom, -1.5 - 0.05 * boxes[:, 0] + 0.02 * boxes[:, 1], atol=1e-6)
    np.testing.assert_array_equal(np.delete(moved, 2, axis=1), np.delete(boxes, 2, axis=1))
    assert on_road(boxes, None) is boxes
    # Their points move along.
    sampling = _sampling(_database(tmp_path / "a"))
    scene = Scene(**{**vars(_empty()), "road": road})
    view = sampling.paste(scene, np.random.default_rng(0))
    np.testing.assert_array_equal(membership(view.points, view.boxes).sum(axis=1), 20)
    np.testing.assert_allclose(on_road(view.boxes, road), view.boxes, atol=1e-6)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_velocities_are_kept_dropped_or_unknown(tmp_path: Path, recorded: bool, wanted: bool) -> None:
    sampling = _sampling(_database(tmp_path / "a", velocity=recorded), counts={"Pedestrian": 4})
    boxes = row_of_boxes(1, y=-15.0, velocity=wanted)
    view = sampling.paste(_scene(boxes, [0]), np.random.default_rng(0))
    assert view.boxes.shape == (5, 9 if wanted else 7)
    if wanted:
        assert np.isnan(view.boxes[1:, 7:]).all() == (not recorded)


def test_draws_follow_the_generator(tmp_path: Path) -> None:
    sampling = _sampling(_database(tmp_path / "a"))
    views = [sampling.paste(_empty(), np.random.default_rng(s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(views[0].points, views[1].points)
    assert not np.array_equal(views[0].boxes, views[2].boxes)


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    database = _database(tmp_path / "a")
    with pytest.raises(ValueError, match="counts Tram, but the classes are"):
        _sampling(database, counts={"Tram": 1})
    with pytest.raises(ValueError, match="0 or more"):
        _sampling(database, counts={"Car": -1})
    with pytest.raises(ValueError, match="no Car with 21 or more points"):
        _sampling(database, counts={"Car": 1}, min_points=21)
    with pytest.raises(ValueError, match="no class Tram in this ground-truth database"):
        _sampling(database, classes=("Tram",), counts={"Tram": 1})
    with pytest.raises(ValueError, match="4 columns, those of the scene 5"):
        _sampling(database).paste(_empty(columns=5), np.random.default_rng(0))
