from pathlib import Path

import numpy as np
import pytest

from lidar.datasets import layouts
from lidar.datasets.errors import DatasetError
from lidar.datasets.folder import NuScenesSweeps, PointFolder
from lidar.datasets.kitti import KittiObject
from tests.lidar.datasets.writers import cloud, write_bin, write_kitti_object, write_pcd, write_ply


def test_a_mixed_folder(tmp_path: Path) -> None:
    write_bin(tmp_path / "a.bin", cloud())
    np.save(tmp_path / "b.npy", cloud())
    np.savez(tmp_path / "c.npz", points=cloud())
    write_pcd(tmp_path / "d.PCD", cloud(), "ascii")
    write_ply(tmp_path / "e.ply", cloud(), "ascii")
    (tmp_path / "notes.txt").write_text("not a cloud")
    source = PointFolder(root=tmp_path)
    assert [ref.frame_id for ref in source.frames] == ["a.bin", "b.npy", "c.npz", "d.PCD", "e.ply"]
    assert source.name == f"folder {tmp_path.name}"
    for ref in source.frames:
        source.check_size(ref)
        np.testing.assert_array_equal(source.read(ref), cloud())


def test_pattern_suffixes_and_recursion_choose_files(tmp_path: Path) -> None:
    for name in ("a_front.bin", "a_rear.bin", "deep/b_front.bin"):
        write_bin(tmp_path / name, cloud())
    np.save(tmp_path / "c_front.npy", cloud())

    def names(**options: object) -> list[str]:
        return [ref.frame_id for ref in PointFolder(root=tmp_path, **options).frames]

    assert names(pattern="*_front*") == ["a_front.bin", "c_front.npy", "deep/b_front.bin"]
    assert names(pattern="*_front*", recursive=False) == ["a_front.bin", "c_front.npy"]
    assert names(suffixes=[".npy"]) == ["c_front.npy"]


def test_scenes_are_subfolders_or_blocks(tmp_path: Path) -> None:
    for index in range(5):
        write_bin(tmp_path / f"one/{index}.bin", cloud())
    blocks = PointFolder(root=tmp_path, frames_per_scene=2)
    assert [ref.scene for ref in blocks.frames] == [f"block_000{i}" for i in (0, 0, 1, 1, 2)]
    write_bin(tmp_path / "two/0.bin", cloud())
    assert [ref.scene for ref in PointFolder(root=tmp_path).frames] == ["one"] * 5 + ["two"]


def test_columns_and_scale_reach_the_reader(tmp_path: Path) -> None:
    raw = np.column_stack([cloud() * np.float32([1, 1, 1, 200]), np.ones((50, 2))])
    write_bin(tmp_path / "a.bin", raw)
    source = PointFolder(root=tmp_path, columns=6, intensity_scale=200)
    np.testing.assert_allclose(source.read(source.frames[0]), cloud(), rtol=1e-6)
    source.check_size(source.frames[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suffixes": [".las"]}, r"suffixes are among .bin"),
        ({"suffixes": []}, r"suffixes are among .bin"),
        ({"columns": 2}, r"data\.columns .* 3 or more, got 2"),
        ({"intensity_scale": 0}, r"data\.intensity_scale must be above 0"),
        ({"frames_per_scene": 0}, r"frames_per_scene must be 1 or more"),
    ],
)
def test_arguments_are_validated(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PointFolder(root=tmp_path, **options)


LOG = "n015-2018-07-24-11-22-45+0800"


def _nuscenes_bin() -> np.ndarray:
    return np.column_stack([cloud() * np.float32([1, 1, 1, 255]), np.arange(50) % 32])


def test_nuscenes_sweeps_are_in_time_order(tmp_path: Path) -> None:
    for part, time in (("samples", 20), ("sweeps", 30), ("sweeps", 10)):
        write_bin(tmp_path / f"{part}/LIDAR_TOP/{LOG}__LIDAR_TOP__{time}.pcd.bin", _nuscenes_bin())
    write_bin(tmp_path / "samples/LIDAR_TOP/n008-x__LIDAR_TOP__05.pcd.bin", _nuscenes_bin())
    write_bin(tmp_path / "samples/RADAR/r.pcd.bin", _nuscenes_bin())
    source = NuScenesSweeps(root=tmp_path)
    assert [ref.frame_id.rsplit("__")[-1] for ref in source.frames] == ["05", "10", "20", "30"]
    assert [ref.scene for ref in source.frames] == ["n008-x", LOG, LOG, LOG]
    np.testing.assert_allclose(source.read(source.frames[1]), cloud(), rtol=1e-6)
    source.check_size(source.frames[1])
    assert source.name == "nuscenes sweeps"


def test_loose_nuscenes_sweeps_are_found(tmp_path: Path) -> None:
    write_bin(tmp_path / f"a/{LOG}__LIDAR_TOP__1.pcd.bin", _nuscenes_bin())
    assert len(NuScenesSweeps(root=tmp_path).frames) == 1


@pytest.mark.parametrize(
    ("files", "setting"),
    [
        (["training/velodyne/000000.bin"], "data=kitti"),
        (["velodyne/000000.bin"], "data=kitti"),
        (["kitti/training/velodyne/000000.bin"], "data=kitti data.root={root}/kitti"),
        (["training/velodyne_reduced/000000.bin"], "data=kitti data.view=camera (camera-view crops only)"),
        (["velodyne/0000000000.bin"], "data=folder"),
        (["sequences/00/velodyne/000000.bin"], "data=kitti_sequences"),
        (["training/velodyne/0000/000000.bin"], "data=kitti_sequences"),
        (["day/drive/velodyne_points/data/0000000000.bin"], "data=kitti_sequences"),
        (["samples/LIDAR_TOP/a.pcd.bin"], "data=nuscenes_sweeps"),
        (["a/b/scan.ply"], "data=folder"),
        (["a/b/notes.txt"], None),
    ],
)
def test_the_fitting_setting_is_found(tmp_path: Path, files: list[str], setting: str | None) -> None:
    for name in files:
        write_bin(tmp_path / name, cloud())
    expected = setting.format(root=tmp_path) if setting else None
    assert layouts.fitting_setting(tmp_path) == expected


@pytest.mark.parametrize("source", [KittiObject, PointFolder, NuScenesSweeps])
def test_wrong_roots_say_what_fits(tmp_path: Path, source: type) -> None:
    for root, problem in ((None, "needs a folder of frames"), (tmp_path / "x", "does not exist")):
        with pytest.raises(DatasetError, match=rf"{problem}\. Set data\.root"):
            source(root=root)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="is a file"):
        source(root=tmp_path / "file")
    with pytest.raises(DatasetError, match=r"no frames for .*looked for .*No point file was found"):
        source(root=tmp_path)
    if source is not PointFolder:
        write_bin(tmp_path / "scans/0000000000.bin", cloud())
        with pytest.raises(DatasetError, match=r"What is there fits data=folder\."):
            source(root=tmp_path)
    else:
        with pytest.raises(DatasetError, match=r"What is there fits data=kitti\."):
            source(root=write_kitti_object(tmp_path, 1), suffixes=[".pcd"])
