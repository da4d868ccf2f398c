"""The KITTI export: genuine layout, true labels, the same bytes always, resume, errors."""

import json
from pathlib import Path

import numpy as np
import pytest

from envs.driving import kitti_export
from envs.driving.kitti_export import DatasetSpec, build_dataset, simulate
from envs.driving.kitti_labels import KittiCamera, label_line, label_text, wrap
from envs.driving.statistics import labelled_objects, read_velo_to_camera
from envs.sensors.lidar import KITTI_HDL_64E
from envs.sensors.world import Box

SPEC = DatasetSpec(train=3, probe=1, val=2, seed=5)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_dataset(tmp_path_factory.mktemp("simulated"), spec=SPEC, workers=1, progress=False)


def test_layout(dataset: Path) -> None:
    assert dataset.name == f"HDL-64E-{SPEC.fingerprint()}"
    names = [f"{n:06d}" for n in range(6)]
    for folder, suffix in (("velodyne", "bin"), ("calib", "txt"), ("label_2", "txt")):
        found = sorted(p.name for p in (dataset / "training" / folder).iterdir())
        assert found == [f"{n}.{suffix}" for n in names]
    splits = {s: (dataset / "ImageSets" / f"{s}.txt").read_text().split() for s in ("train", "probe", "val")}
    assert splits == {"train": names[:3], "probe": names[3:4], "val": names[4:]}
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["complete"] is True
    assert description["frames"] == 6
    assert description["spec"]["seed"] == 5


def test_points_are_a_sector_of_floats(dataset: Path) -> None:
    for path in (dataset / "training" / "velodyne").iterdir():
        points = np.fromfile(path, "<f4").reshape(-1, 4)
        assert 20_000 < len(points) < 36_000
        assert np.isfinite(points).all()
        assert np.abs(np.degrees(np.arctan2(points[:, 1], points[:, 0]))).max() < 45.5
        assert 0 <= points[:, 3].min() <= points[:, 3].max() <= 1


def test_every_label_holds_the_points_it_claims() -> None:
    spec = DatasetSpec(train=6, probe=0, val=0, seed=1)
    labelled, inside, tagged = 0, 0, 0
    for frame in range(6):
        world, sweep = simulate(spec, frame)
        text = label_text(
            sweep, world=world, sensor=KITTI_HDL_64E, camera=KittiCamera(), azimuth_range=(-45, 45)
        )
        points = sweep.points[:, :3] + np.array([0, 0, KITTI_HDL_64E.mount_height], np.float32)
        returns = np.bincount(sweep.object_id[sweep.object_id >= 0], minlength=len(world.boxes))
        ahead = [b for b in world.boxes if b.center[0] > 0.37 and returns[b.object_id] >= 5]
        assert len(text.splitlines()) == len(ahead)
        for b in ahead:
            own = sweep.object_id == b.object_id
            labelled += 1
            tagged += int(own.sum())
            inside += int(b.inside(points[own], margin=0.05).sum())
            assert b.inside(points[own], margin=0.05).sum() >= 5
    assert labelled > 30
    assert inside / tagged > 0.99


def test_written_labels_hold_points(dataset: Path) -> None:
    """The label files alone, read back through calib, find their points."""
    counts = []
    for path in sorted((dataset / "training" / "velodyne").iterdir()):
        points = np.fromfile(path, "<f4").reshape(-1, 4)
        label, calib = (dataset / "training" / k / f"{path.stem}.txt" for k in ("label_2", "calib"))
        counts += [o.points for o in labelled_objects(points, label=label, calib=calib)]
    assert len(counts) > 20
    assert np.mean(np.array(counts) >= 4) > 0.97  # rounding to centimetres and range noise may cost one


def test_label_columns(dataset: Path) -> None:
    lines = [
        line.split()
        for p in (dataset / "training" / "label_2").iterdir()
        for line in p.read_text().splitlines()
    ]
    assert all(len(line) == 15 for line in lines)
    assert {line[0] for line in lines} <= {"Car", "Van", "Truck", "Pedestrian", "Cyclist"}
    numbers = np.array([[float(v) for v in line[1:]] for line in lines])
    truncated, occluded, alpha = numbers[:, 0], numbers[:, 1], numbers[:, 2]
    assert ((truncated >= 0) & (truncated <= 1)).all()
    assert set(occluded) <= {0, 1, 2}
    assert len(set(occluded)) > 1
    x1, y1, x2, y2 = numbers[:, 3:7].T
    assert ((x1 >= 0) & (x2 <= 1241) & (y1 >= 0) & (y2 <= 374) & (x2 >= x1) & (y2 >= y1)).all()
    assert (numbers[:, 12] > 0).all()
    expected = numbers[:, 13] - np.arctan2(numbers[:, 10], numbers[:, 12])
    assert np.abs((alpha - expected + np.pi) % (2 * np.pi) - np.pi).max() < 0.03


def test_calibration_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "calib.txt"
    path.write_text(KittiCamera().calib_text())
    names = [line.split(":")[0] for line in path.read_text().splitlines()]
    assert names == ["P0", "P1", "P2", "P3", "R0_rect", "Tr_velo_to_cam", "Tr_imu_to_velo"]
    matrix = read_velo_to_camera(path)
    points = np.random.default_rng(0).uniform(-50, 50, (100, 3))
    camera = points @ matrix[:, :3].T + matrix[:, 3]
    np.testing.assert_allclose(camera, KittiCamera().from_velo(points))
    np.testing.assert_allclose((camera - matrix[:, 3]) @ np.linalg.inv(matrix[:, :3]).T, points, atol=1e-9)
    np.testing.assert_allclose(KittiCamera().from_velo(np.array([[10.0, 2, 1]])), [[-2, -1.08, 9.73]])


def test_label_of_a_known_box() -> None:
    """A car straight ahead, driving away: ry = -pi/2, bottom at the camera's height below the LiDAR."""
    car = Box(category="Car", center=(20, 0, 0.75), size=(4, 1.6, 1.5), yaw=0.0, object_id=0)
    field = label_line(car, mount_height=1.73, camera=KittiCamera(), visible=0.5).split()
    assert field[:3] == ["Car", "0.00", "1"]
    assert [float(v) for v in field[8:]] == [1.5, 1.6, 4.0, 0.0, 1.65, 19.73, -1.57]
    u = 609.5593 + 721.5377 * np.array([-0.8, 0.8]) / 17.73
    assert [float(field[4]), float(field[6])] == pytest.approx(u, abs=0.01)
    assert float(field[7]) == pytest.approx(172.854 + 721.5377 * 1.65 / 17.73, abs=0.01)


def test_boxes_across_and_beside_the_image() -> None:
    camera = KittiCamera()

    def truncation(y: float, x: float = 10.0) -> float:
        car = Box(category="Car", center=(x, y, 0.75), size=(4, 1.6, 1.5), yaw=0.0, object_id=0)
        return camera.image_box(camera.from_velo(car.corners() - [0, 0, 1.73]))[1]

    assert truncation(0.0) == pytest.approx(0)
    assert 0.1 < truncation(8.0) < 0.9
    assert truncation(14.0) == 1
    assert 0 < truncation(2.0, x=1.5) <= 1  # a box that reaches behind the camera


@pytest.mark.parametrize("angle", [0.0, 3.1, -3.1, 3.2, 9.0, -9.0])
def test_wrap(angle: float) -> None:
    assert -np.pi <= wrap(angle) < np.pi
    assert np.exp(1j * wrap(angle)) == pytest.approx(np.exp(1j * angle))


def test_same_bytes_for_any_number_of_workers(dataset: Path, tmp_path: Path) -> None:
    parallel = build_dataset(tmp_path, spec=SPEC, workers=2, progress=False)
    assert contents(parallel) == contents(dataset)


def test_splits_and_seeds_share_no_scene(dataset: Path) -> None:
    frames = [p.read_bytes() for p in (dataset / "training" / "velodyne").iterdir()]
    assert len(set(frames)) == 6
    more = DatasetSpec(
        train=4, probe=1, val=2, seed=5
    )  # a split grows without changing its frames or the others
    assert simulate(more, 0)[1].points.tobytes() == simulate(SPEC, 0)[1].points.tobytes()
    assert simulate(more, 4)[1].points.tobytes() == simulate(SPEC, 3)[1].points.tobytes()
    assert DatasetSpec(seed=1).fingerprint() != DatasetSpec(seed=2).fingerprint()


def test_complete_set_is_returned_untouched(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kitti_export, "simulate", None)
    assert build_dataset(dataset.parent, spec=SPEC, workers=1, progress=False) == dataset


def test_interrupted_build_goes_on(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def stop_after_two(spec: DatasetSpec, frame: int):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(frame)
        return simulate(spec, frame)

    monkeypatch.setattr(kitti_export, "simulate", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        build_dataset(tmp_path, spec=SPEC, workers=1, progress=False)
    folder = tmp_path / dataset.name
    assert len(list((folder / "training" / "velodyne").iterdir())) == 2
    assert not (folder / "dataset.json").exists()
    (folder / "dataset.json").write_text(
        '{"complete": tr'
    )  # not even half a file is taken for a finished set

    remade: list[int] = []
    monkeypatch.setattr(kitti_export, "simulate", lambda s, f: remade.append(f) or simulate(s, f))
    assert contents(build_dataset(tmp_path, spec=SPEC, workers=1, progress=False)) == contents(dataset)
    assert remade == [2, 3, 4, 5]


def test_other_sensor_and_full_turn(tmp_path: Path) -> None:
    spec = DatasetSpec(sensor="HDL-32E", azimuth_range=None, train=1, probe=0, val=0)
    folder = build_dataset(tmp_path, spec=spec, workers=3, progress=False)
    points = np.fromfile(folder / "training" / "velodyne" / "000000.bin", "<f4").reshape(-1, 4)
    assert 20_000 < len(points) < 34_688
    assert points[:, 0].min() < -3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sensor": "HDL-65E"}, "HDL-64E, HDL-32E"),
        ({"train": -1}, "split counts"),
        ({"train": 0, "probe": 0, "val": 0}, "split counts"),
        ({"seed": -3}, "seed"),
        ({"azimuth_range": (30, 30)}, "azimuth_range"),
    ],
)
def test_bad_specs(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetSpec(**changes)


def test_bad_worker_count(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers"):
        build_dataset(tmp_path, spec=SPEC, workers=0)


def test_dead_worker_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class DeadPool:
        def __init__(self, *args: object, **kwargs: object) -> None: ...

        def submit(self, *args: object) -> None:
            raise kitti_export.BrokenProcessPool

        def shutdown(self, **kwargs: object) -> None: ...

    monkeypatch.setattr(kitti_export, "ProcessPoolExecutor", DeadPool)
    with pytest.raises(RuntimeError, match="call again"):
        build_dataset(tmp_path, spec=SPEC, workers=2, progress=False)
