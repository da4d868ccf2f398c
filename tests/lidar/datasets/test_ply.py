from pathlib import Path

import numpy as np
import pytest

from lidar.datasets.errors import FrameError
from lidar.datasets.ply import read_ply
from lidar.datasets.points import read_points
from tests.lidar.datasets.writers import cloud, ply_header, write_ply

POINTS = cloud(60)
ENCODINGS = ["ascii", "binary_little_endian", "binary_big_endian"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_reads_back(tmp_path: Path, encoding: str) -> None:
    np.testing.assert_array_equal(read_points(write_ply(tmp_path / "a.ply", POINTS, encoding)), POINTS)


@pytest.mark.parametrize("name", ["i", "reflectance", "scalar_Intensity"])
def test_other_names_of_intensity(tmp_path: Path, name: str) -> None:
    path = write_ply(tmp_path / "a.ply", POINTS, "binary_little_endian", fields=("x", "y", "z", name))
    np.testing.assert_array_equal(read_points(path), POINTS)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_truncation_says_how_much_is_there(tmp_path: Path, encoding: str) -> None:
    path = write_ply(tmp_path / "a.ply", POINTS, encoding)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        FrameError, match=r"truncated: its PLY header promises 60 points, \d+ are there\. Export"
    ):
        read_ply(path)


@pytest.mark.parametrize("ascii_", [True, False])
def test_open3d_agrees(tmp_path: Path, ascii_: bool) -> None:
    o3d = pytest.importorskip("open3d", exc_type=ImportError)
    path = tmp_path / "a.ply"
    theirs = o3d.t.geometry.PointCloud(o3d.core.Tensor(POINTS[:, :3]))
    theirs.point["intensity"] = o3d.core.Tensor(POINTS[:, 3:])
    assert o3d.t.io.write_point_cloud(str(path), theirs, write_ascii=ascii_)
    np.testing.assert_allclose(read_points(path), POINTS, rtol=1e-5, atol=1e-5)
    ours = write_ply(tmp_path / "b.ply", POINTS, "ascii" if ascii_ else "binary_little_endian")
    back = o3d.t.io.read_point_cloud(str(ours))
    np.testing.assert_allclose(back.point.positions.numpy(), POINTS[:, :3], rtol=1e-6)


def test_elements_before_and_after_the_vertices(tmp_path: Path) -> None:
    header = ply_header(
        60,
        "binary_little_endian",
        before="element camera 1\nproperty double focal\nproperty uchar id\n",
        after="element face 1\nproperty list uchar int vertex_indices\n",
    )
    (tmp_path / "a.ply").write_bytes(header + b"\0" * 9 + POINTS.tobytes() + b"\x01\0\0\0\0")
    np.testing.assert_array_equal(read_points(tmp_path / "a.ply"), POINTS)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"hello", "its first line is not 'ply'"),
        (b"ply\nformat ascii 1.0\n", "no end_header"),
        (b"ply\nformat ascii 1.0\nelement face 0\nend_header\n", "no vertex element"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nend_header\n1\n", "have no properties"),
        (b"ply\nformat wide 1.0\nelement vertex 0\nend_header\n", "format 'wide' is not known"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty half x\nend_header\n", "header is wrong"),
        (b"ply\nformat ascii 1.0\nproperty float x\nend_header\n", "header is wrong"),
        (b"ply\nformat ascii 1.0\nsurprise\nend_header\n", "header is wrong .*unknown line"),
        (
            ply_header(60, "ascii", before="element f 1\nproperty list uchar int v\n") + b"\n",
            "list properties",
        ),
        (ply_header(1, "ascii") + b"1 2 3\n", "hold 3 values for 4 properties"),
        (ply_header(1, "ascii") + b"1 2 3 x\n", "ascii points cannot be read"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, raw: bytes, problem: str) -> None:
    path = tmp_path / "broken.ply"
    path.write_bytes(raw)
    with pytest.raises(FrameError, match=rf"broken\.ply: .*{problem}"):
        read_ply(path)


def test_zero_points_are_an_empty_cloud(tmp_path: Path) -> None:
    for encoding in ENCODINGS:
        assert len(read_ply(write_ply(tmp_path / "a.ply", POINTS[:0], encoding))) == 0
