import shutil
from pathlib import Path

import numpy as np
import pytest

from lidar.datasets.errors import DatasetError, FrameError
from lidar.datasets.kitti import KittiObject, KittiSequences
from lidar.datasets.kitti_calib import KittiCalib, png_size
from tests.lidar.datasets.writers import (
    CALIB,
    cloud,
    write_bin,
    write_calib,
    write_kitti_object,
    write_png_header,
)


def _ids(source: KittiObject) -> list[str]:
    return [ref.frame_id for ref in source.frames]


def test_all_frames_of_the_root_or_of_the_training_folder(tmp_path: Path) -> None:
    write_kitti_object(tmp_path, 3)
    for root in (tmp_path, tmp_path / "training", str(tmp_path)):
        source = KittiObject(root=root)
        assert _ids(source) == ["000000", "000001", "000002"]
        assert [ref.scene for ref in source.frames] == _ids(source)
        np.testing.assert_array_equal(source.read(source.frames[1]), cloud(41, seed=1))
        source.check_size(source.frames[1])
        assert source.name == "kitti object all frames, full view"


def test_splits_are_read_from_image_sets(tmp_path: Path) -> None:
    write_kitti_object(tmp_path, 5, splits={"train": [0, 3], "val": [4]})
    assert _ids(KittiObject(root=tmp_path, split="train")) == ["000000", "000003"]
    assert _ids(KittiObject(root=tmp_path / "training", split="val")) == ["000004"]
    with pytest.raises(DatasetError, match=r"no ImageSets/probe\.txt \(there are train, val\)\. Choose one"):
        KittiObject(root=tmp_path, split="probe")
    (tmp_path / "ImageSets/empty.txt").write_text("\n")
    with pytest.raises(DatasetError, match="the split is empty"):
        KittiObject(root=tmp_path, split="empty")
    shutil.rmtree(tmp_path / "ImageSets")
    with pytest.raises(DatasetError, match=r"there is no ImageSets folder.*data\.split=null"):
        KittiObject(root=tmp_path, split="train")


def test_the_test_split_lies_in_testing(tmp_path: Path) -> None:
    write_kitti_object(tmp_path, 1, splits={"test": [7]})
    write_bin(tmp_path / "testing/velodyne/000007.bin", cloud())
    assert _ids(KittiObject(root=tmp_path, split="test")) == ["000007"]


def test_a_listed_frame_that_is_missing_is_a_frame_error(tmp_path: Path) -> None:
    source = KittiObject(root=write_kitti_object(tmp_path, 2, splits={"train": [0, 9]}), split="train")
    with pytest.raises(FrameError, match=r"000009\.bin: there is no such file"):
        source.read(source.frames[1])
    (tmp_path / "ImageSets/none.txt").write_text("000008\n")
    with pytest.raises(DatasetError, match=r"listed in none\.txt"):
        KittiObject(root=tmp_path, split="none")


def test_frames_of_one_drive_are_one_scene_where_the_mapping_is_there(tmp_path: Path) -> None:
    write_kitti_object(tmp_path, 3)
    mapping = tmp_path / "devkit_object/mapping"
    mapping.mkdir(parents=True)
    (mapping / "train_rand.txt").write_text("3,1,2\n")
    (mapping / "train_mapping.txt").write_text(
        "2011_09_26 drive_0001 0000000001\n2011_09_26 drive_0005 0000000007\n2011_09_26 drive_0001 0000000002\n"
    )
    scenes = [ref.scene for ref in KittiObject(root=tmp_path).frames]
    assert scenes == ["drive_0001", "drive_0001", "drive_0005"]
    (mapping / "train_rand.txt").write_text("9\n")
    with pytest.raises(DatasetError, match="mapping files cannot be read"):
        KittiObject(root=tmp_path)


def _seen_by_definition(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Point by point, in float64, from the lines of the calibration file."""
    lines = {line.split(":")[0]: np.array(line.split(":")[1].split(), float) for line in CALIB.splitlines()}
    projection, rectify = lines["P2"].reshape(3, 4), lines["R0_rect"].reshape(3, 3)
    to_camera = lines["Tr_velo_to_cam"].reshape(3, 4)
    seen = []
    for point in points[:, :3].astype(float):
        camera = rectify @ (to_camera @ [*point, 1])
        u, v, _ = projection @ [*camera, 1] / camera[2]
        seen.append(camera[2] >= 0 and 0 <= u < size[0] and 0 <= v < size[1])
    return np.array(seen)


def test_the_camera_view_follows_its_definition(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-60, 60, (4000, 2)), rng.uniform(-3, 3, 4000), rng.random(4000)])
    points = points.astype(np.float32)
    write_bin(tmp_path / "training/velodyne/000000.bin", points)
    write_calib(tmp_path / "training/calib/000000.txt")

    def view() -> np.ndarray:
        source = KittiObject(root=tmp_path, view="camera")
        return source.read(source.frames[0])

    for size, prepare in (
        ((1242, 375), lambda: None),
        (
            (800, 200),
            lambda: (tmp_path / "image_sizes.csv").write_text("frame,width,height\n000000,800,200\n"),
        ),
        ((400, 300), lambda: write_png_header(tmp_path / "training/image_2/000000.png", 400, 300)),
    ):
        prepare()
        expected = _seen_by_definition(points, size)
        assert 100 < expected.sum() < 3000
        np.testing.assert_array_equal(view(), points[expected])


def test_the_camera_view_names_what_it_misses(tmp_path: Path) -> None:
    write_kitti_object(tmp_path, 1)
    source = KittiObject(root=tmp_path, view="camera")
    with pytest.raises(
        FrameError, match=r"no such calibration file\. Restore calib/, or set data\.view=full"
    ):
        source.read(source.frames[0])
    calib = write_calib(tmp_path / "training/calib/000000.txt", CALIB.replace("R0_rect", "R_rect"))
    with pytest.raises(FrameError, match="line R0_rect is missing or wrong"):
        source.read(source.frames[0])
    calib.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FrameError, match="line P2 is missing or wrong"):
        source.read(source.frames[0])
    write_calib(calib, CALIB.replace("P2: 700 0", "P2: 700"))
    with pytest.raises(FrameError, match="line P2 is missing or wrong"):
        source.read(source.frames[0])
    write_calib(calib)
    write_bin(source.frames[0].path, cloud() * np.float32([-1, 1, 1, 1]))
    with pytest.raises(FrameError, match=r"none of its 50 points is in the camera's view.*data\.view=full"):
        source.read(source.frames[0])
    (tmp_path / "image_sizes.csv").write_text("id,w,h\n0,1,2\n")
    with pytest.raises(DatasetError, match="expected the columns frame,width,height"):
        KittiObject(root=tmp_path, view="camera")


def test_broken_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"JFIF")
    with pytest.raises(FrameError, match="not a PNG"):
        png_size(tmp_path / "a.png")


def test_reduced_frames_are_camera_views(tmp_path: Path) -> None:
    write_bin(tmp_path / "training/velodyne_reduced/000134.bin", cloud())
    source = KittiObject(root=tmp_path, view="camera")
    np.testing.assert_array_equal(source.read(source.frames[0]), cloud())
    with pytest.raises(DatasetError, match=r"What is there fits data=kitti data\.view=camera"):
        KittiObject(root=tmp_path, view="full")


def test_a_wrong_view_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.view is one of full, camera, got 'front'"):
        KittiObject(root=tmp_path, view="front")


RAW = "2011_09_26/2011_09_26_drive_0005_sync/velodyne_points/data"


@pytest.mark.parametrize(
    ("layout", "folders", "scenes", "roots"),
    [
        (
            "raw",
            [RAW],
            ["2011_09_26_drive_0005_sync"],
            [".", "2011_09_26", "2011_09_26/2011_09_26_drive_0005_sync"],
        ),
        ("odometry", ["sequences/00/velodyne", "sequences/07/velodyne"], ["00", "07"], [".", "sequences"]),
        ("odometry", ["dataset/sequences/00/velodyne"], ["00"], [".", "dataset"]),
        (
            "tracking",
            ["training/velodyne/0000", "training/velodyne/0001"],
            ["0000", "0001"],
            [".", "training"],
        ),
    ],
)
def test_sequence_layouts_are_found_out(
    tmp_path: Path, layout: str, folders: list[str], scenes: list[str], roots: list[str]
) -> None:
    for folder in folders:
        for index in (1, 0):
            write_bin(tmp_path / folder / f"{index:010d}.bin", cloud(seed=index))
    for root in roots:
        source = KittiSequences(root=tmp_path / root)
        assert source.layout == layout
        assert source.name == f"kitti {layout} sequences"
        assert [ref.frame_id for ref in source.frames] == [f"{s}/{i:010d}" for s in scenes for i in (0, 1)]
        assert [ref.scene for ref in source.frames] == [s for s in scenes for _ in (0, 1)]
        np.testing.assert_array_equal(source.read(source.frames[1]), cloud(seed=1))
        source.check_size(source.frames[0])


def test_a_wrong_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"does not exist\. Set data\.root"):
        KittiSequences(root=tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"looked for \*?.*sequences.*No point file was found there"):
        KittiSequences(root=tmp_path)
    write_kitti_object(tmp_path, 1)
    with pytest.raises(DatasetError, match=r"What is there fits data=kitti\."):
        KittiSequences(root=tmp_path)


def test_calib_inverts_itself(tmp_path: Path) -> None:
    calib = KittiCalib.read(write_calib(tmp_path / "a.txt"))
    xyz = cloud()[:, :3].astype(float)
    np.testing.assert_allclose(calib.to_velodyne(calib.to_camera(xyz)), xyz, atol=1e-9)
