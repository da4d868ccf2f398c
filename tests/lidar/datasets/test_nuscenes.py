"""nuScenes' tables and accumulated sweeps, on a made-up drive through a world that stands still."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lidar.datasets.errors import DatasetError
from lidar.datasets.nuscenes import NuScenesKeyFrames, official_scenes
from lidar.datasets.nuscenes_tables import records, velocities
from lidar.detection.benchmarks import LabelledNuScenes
from lidar.detection.labelled import LabelledFrames, collate
from lidar.detection.labels import ClassNames
from lidar.detection.scene import membership

VERSION = "v1.0-test"
SWEEPS = 7  # of each scene, every third one a key frame
STEP = 50_000  # microseconds


def _quaternion(rotation: Rotation) -> list[float]:
    return rotation.as_quat()[[3, 0, 1, 2]].tolist()


def _pose(rng: np.random.Generator, *, tilt: float) -> tuple[Rotation, np.ndarray]:
    yaw, pitch, roll = rng.uniform(-np.pi, np.pi), *rng.uniform(-tilt, tilt, 2)
    return Rotation.from_euler("zyx", (yaw, pitch, roll)), rng.uniform((-5, -5, -0.1), (5, 5, 0.1))


def _table(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(rows, indent=0))


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, dict[str, Any]]:
    """Root, 400 fixed points in the world, and what was written of the sweeps and annotations of two scenes."""
    root, rng = tmp_path_factory.mktemp("nuscenes"), np.random.default_rng(0)
    around, distance = rng.uniform(-np.pi, np.pi, 400), rng.uniform(18, 40, 400)
    world = np.column_stack(
        [1003 + distance * np.cos(around), 2000 + distance * np.sin(around), rng.uniform(-2, 2, 400)]
    )
    mount = Rotation.from_euler("zyx", (-np.pi / 2, 0.02, 0.01)), np.array([0.94, 0.0, 1.84])
    tables: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("sample", "sample_data", "ego_pose", "scene")
    }
    tables["sensor"] = [
        {"token": "lidar", "channel": "LIDAR_TOP"},
        {"token": "camera", "channel": "CAM_FRONT"},
    ]
    tables["calibrated_sensor"] = [
        {
            "token": "cl",
            "sensor_token": "lidar",
            "translation": mount[1].tolist(),
            "rotation": _quaternion(mount[0]),
        },
        {"token": "cc", "sensor_token": "camera", "translation": [0, 0, 0], "rotation": [1, 0, 0, 0]},
    ]
    tables["category"] = [
        {"token": "k0", "name": "vehicle.car"},
        {"token": "k1", "name": "human.pedestrian.adult"},
        {"token": "k2", "name": "animal"},
    ]
    tables["instance"] = [{"token": f"i{n}", "category_token": f"k{n % 3}"} for n in range(6)]
    poses = {}
    for scene in range(2):
        tables["scene"].append({"token": f"s{scene}", "name": f"scene-000{scene}"})
        for n in range(SWEEPS):
            token, key = f"d{scene}{n}", n % 3 == 0
            turn, offset = _pose(rng, tilt=0.05)
            place = np.array([1000, 2000, 0]) + offset + [n, 0, 0]
            poses[token] = turn * mount[0], turn.apply(mount[1]) + place
            tables["ego_pose"].append(
                {"token": token, "translation": place.tolist(), "rotation": _quaternion(turn)}
            )
            seen = poses[token][0].inv().apply(world - poses[token][1])
            seen = np.vstack([seen, [[0.5, -0.9, 0.3]]])  # a return of the car itself
            columns = np.column_stack([seen, np.full(len(seen), 51.0), np.zeros(len(seen))])
            folder = "samples" if key else "sweeps"
            name = f"{folder}/LIDAR_TOP/log{scene}__LIDAR_TOP__{n}.pcd.bin"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            columns.astype("<f4").tofile(root / name)
            row = {"ego_pose_token": token, "timestamp": 10**9 + n * STEP, "is_key_frame": key,
                   "sample_token": f"k{scene}{n - n % 3}"}  # fmt: skip
            previous = f"d{scene}{n - 1}" if n else ""
            tables["sample_data"].append(
                {**row, "token": token, "calibrated_sensor_token": "cl", "filename": name, "prev": previous}
            )
            tables["sample_data"].append(
                {
                    **row,
                    "token": f"c{token}",
                    "calibrated_sensor_token": "cc",
                    "filename": "x.jpg",
                    "prev": "",
                }
            )
            if key:
                tables["sample"].append(
                    {"token": f"k{scene}{n}", "scene_token": f"s{scene}", "timestamp": 10**9 + n * STEP}
                )
    annotations = []
    for instance in range(6):
        velocity = rng.normal(0, 3, 3) * (1, 1, 0)
        start = np.array([1000, 2000, 0]) + rng.uniform(-20, 20, 3) * (1, 1, 0.05)
        for k, n in enumerate(range(0, SWEEPS, 3)):
            if instance == 4 and k > 0:
                continue  # seen once: its velocity is not known
            more = instance != 4
            annotations.append(
                {
                    "token": f"a{instance}{k}", "sample_token": f"k0{n}", "instance_token": f"i{instance}",
                    "translation": (start + velocity * n * STEP * 1e-6).tolist(), "size": [1.9, 4.5, 1.6],
                    "rotation": _quaternion(Rotation.from_euler("z", 0.5 * instance)),
                    "prev": f"a{instance}{k - 1}" if k else "", "next": f"a{instance}{k + 1}" if more and k < 2 else "",
                    "num_lidar_pts": instance, "_velocity": velocity.tolist(), "_heading": 0.5 * instance,
                }
            )  # fmt: skip
    rng.shuffle(annotations)  # type: ignore[arg-type]
    for name, rows in {**tables, "sample_annotation": annotations}.items():
        _table(root / VERSION, name, rows)
    return root, world, {"poses": poses, "annotations": annotations}


Drive = tuple[Path, np.ndarray, dict[str, Any]]


def test_sweeps_of_a_still_world_coincide(drive: Drive) -> None:
    root, world, wrote = drive
    source = NuScenesKeyFrames(root=root, version=VERSION, sweeps=5)
    assert [ref.frame_id for ref in source.frames] == ["k00", "k03", "k06", "k10", "k13", "k16"]
    assert {ref.scene for ref in source.frames} == {"scene-0000", "scene-0001"}
    for ref in source.frames:
        n = int(ref.frame_id[2])
        points = source.read(ref)
        clouds = min(5, n + 1)
        assert points.shape == (400 * clouds, 5)
        turn, place = wrote["poses"][f"d{ref.frame_id[1]}{n}"]
        expected = turn.inv().apply(world - place)
        for lag in range(clouds):
            cloud = points[400 * lag : 400 * (lag + 1)]
            np.testing.assert_allclose(cloud[:, :3], expected, atol=2e-4)
            np.testing.assert_allclose(cloud[:, 3], 0.2, rtol=1e-6)
            np.testing.assert_allclose(cloud[:, 4], lag * 0.05, rtol=1e-5)


def test_one_sweep_is_the_key_frame(drive: Drive) -> None:
    source = NuScenesKeyFrames(root=drive[0], version=VERSION, sweeps=1)
    points = source.read(source.frames[2])
    recorded = np.fromfile(source.frames[2].path, "<f4").reshape(-1, 5)[:-1]
    np.testing.assert_array_equal(points[:, :3], recorded[:, :3])
    assert (points[:, 4] == 0).all()
    source.check_size(source.frames[2])


def test_boxes_are_in_the_sensor_frame(drive: Drive) -> None:
    root, _, wrote = drive
    source = LabelledNuScenes(scans=NuScenesKeyFrames(root=root, version=VERSION))
    known = 0
    for ref in source.frames[:3]:
        turn, place = wrote["poses"][f"d0{ref.frame_id[2]}"]
        labels = source.labels(ref)
        rows = {r["num_lidar_pts"]: r for r in wrote["annotations"] if r["sample_token"] == ref.frame_id}
        assert labels.counts is not None
        assert sorted(labels.counts) == sorted(rows)
        for box, name, count in zip(labels.boxes, labels.names, labels.counts, strict=True):
            row = rows[int(count)]
            np.testing.assert_allclose(box[:3], turn.inv().apply(row["translation"] - place), atol=1e-4)
            np.testing.assert_allclose(box[3:6], [4.5, 1.9, 1.6], rtol=1e-6)
            ahead = turn.inv().apply([np.cos(row["_heading"]), np.sin(row["_heading"]), 0])
            np.testing.assert_allclose(
                [np.cos(box[6]), np.sin(box[6])], ahead[:2] / np.hypot(*ahead[:2]), atol=1e-5
            )
            assert name == ("car", "pedestrian", "animal")[count % 3]
            if count == 4:
                assert np.isnan(box[7:]).all()
                continue
            known += 1
            np.testing.assert_allclose(box[7:], turn.inv().apply(row["_velocity"])[:2], atol=1e-4)
    assert known == 15
    assert source.labels(source.frames[3]).boxes.shape == (0, 9)
    assert source.road(source.frames[0]) is None


def test_batches_have_five_columns_and_velocities(drive: Drive) -> None:
    source = LabelledNuScenes(scans=NuScenesKeyFrames(root=drive[0], version=VERSION, scenes=["scene-0000"]))
    assert len(source.frames) == 3
    frames = LabelledFrames(
        source=source,
        refs=source.frames,
        point_range=(-54, -54, -5, 54, 54, 3),
        classes=ClassNames(names=("car", "pedestrian")),
        min_points=1,
    )
    batch = collate([frames[(i, 0)] for i in range(3)])
    assert batch.points.points.shape[1] == 5
    assert batch.truth is not None
    # Of instances 0, 1, 3 and 4, number 0 has no points and 4 is there once.
    assert [len(batch.truth.of(i)[0]) for i in range(3)] == [3, 2, 2]


def test_velocity_rule() -> None:
    centre = np.array([[0.0, 0, 0], [1, 0, 0], [4, 0, 0], [9, 0, 0], [0, 5, 0]])
    seconds = np.array([0.0, 1.0, 2.0, 5.0, 0.0])
    before, after = np.array([-1, 0, 1, 2, -1]), np.array([1, 2, 3, -1, -1])
    v = velocities(centre, seconds, before=before, after=after)[:, 0]
    # One-sided over 1 s; central over 2 s; central over 4 s and one-sided over 3 s are too far apart; alone.
    np.testing.assert_array_equal(v, [1.0, 2.0, np.nan, np.nan, np.nan])


def test_tables_are_read_record_by_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"token": f"t{i}", "text": '],[{"\\ é', "list": [i, [1]]} for i in range(50)]
    path = tmp_path / "t.json"
    for indent in (None, 0, 2):
        path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
        for block in (1, 7, 64, 1 << 20):
            monkeypatch.setattr("lidar.datasets.nuscenes_tables._BLOCK", block)
            assert list(records(path)) == rows
    path.write_text(" [ ] ")
    assert list(records(path)) == []


@pytest.mark.parametrize("content", ["", "[", '[{"a": 1}', '[{"a": 1}, {"b"', "{}", "3", "[nonsense]"])
def test_damaged_tables_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(DatasetError, match=r"t\.json: .*Unpack it again"):
        list(records(tmp_path / "t.json"))


def test_what_is_missing_is_named(drive: Drive, tmp_path: Path) -> None:
    root = drive[0]
    with pytest.raises(DatasetError, match=r"a nuScenes table is missing.*data\.version"):
        NuScenesKeyFrames(root=root)
    with pytest.raises(DatasetError, match="no scene scene-0009"):
        NuScenesKeyFrames(root=root, version=VERSION, scenes=["scene-0000", "scene-0009"])
    with pytest.raises(ValueError, match="1 or more"):
        NuScenesKeyFrames(root=root, version=VERSION, sweeps=0)
    with pytest.raises(DatasetError, match="does not exist"):
        NuScenesKeyFrames(root=tmp_path / "none", version=VERSION)
    for table, message in (("ego_pose", "do not belong together"), ("sample_data", "no LIDAR_TOP frames")):
        copy = tmp_path / table / VERSION
        copy.mkdir(parents=True)
        for path in (root / VERSION).iterdir():
            (copy / path.name).write_text("[]" if path.stem == table else path.read_text())
        with pytest.raises(DatasetError, match=message):
            NuScenesKeyFrames(root=copy.parent, version=VERSION)


@pytest.mark.slow  # importing the devkit takes seconds
def test_official_splits() -> None:
    pytest.importorskip("nuscenes.utils.splits", reason="nuscenes-devkit is not installed")
    assert set(official_scenes("mini_val")) == {"scene-0103", "scene-0916"}
    assert len(official_scenes("val")) == 150
    with pytest.raises(ValueError, match="no nuScenes split 'minival'"):
        official_scenes("minival")


def test_without_the_devkit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nuscenes.utils.splits", None)
    with pytest.raises(ImportError, match=r"robot-worldmodel\[nuscenes\]"):
        official_scenes("val")


def test_accumulated_points_fill_boxes_that_stand_still(drive: Drive) -> None:
    """Five times the sweeps, five times the points in a box."""
    one, five = (NuScenesKeyFrames(root=drive[0], version=VERSION, sweeps=n) for n in (1, 5))
    ref = one.frames[2]
    box = np.array([[15, 15, 0, 40, 40, 20, 0.3]], np.float32)
    counts = [membership(source.read(ref), box).sum() for source in (one, five)]
    assert counts[0] > 10
    assert counts[1] == pytest.approx(5 * counts[0], abs=5)
