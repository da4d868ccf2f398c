from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lidar.datasets.errors import FrameError
from lidar.datasets.pcd import lzf_decompress, read_pcd
from lidar.datasets.points import read_points
from tests.lidar.datasets.writers import cloud, literal_lzf, pcd_header, write_pcd

POINTS = cloud(60)
ENCODINGS = ["ascii", "binary", "binary_compressed"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_reads_back(tmp_path: Path, encoding: str) -> None:
    np.testing.assert_array_equal(read_points(write_pcd(tmp_path / "a.pcd", POINTS, encoding)), POINTS)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_organised_clouds_drop_missing_returns(tmp_path: Path, encoding: str) -> None:
    points = POINTS.copy()
    points[5, :3] = np.nan
    path = write_pcd(tmp_path / "a.pcd", points, encoding, height=4)
    np.testing.assert_array_equal(read_points(path), np.delete(points, 5, axis=0))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_truncation_says_how_much_is_there(tmp_path: Path, encoding: str) -> None:
    path = write_pcd(tmp_path / "a.pcd", POINTS, encoding)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(FrameError, match=r"truncated: .*\. Export the file again"):
        read_pcd(path)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_open3d_agrees(tmp_path: Path, encoding: str) -> None:
    o3d = pytest.importorskip("open3d", exc_type=ImportError)
    path = tmp_path / "a.pcd"
    theirs = o3d.t.geometry.PointCloud(o3d.core.Tensor(POINTS[:, :3]))
    theirs.point["intensity"] = o3d.core.Tensor(POINTS[:, 3:])
    assert o3d.t.io.write_point_cloud(
        str(path), theirs, write_ascii=encoding == "ascii", compressed=encoding == "binary_compressed"
    )
    assert f"DATA {encoding}\n".encode() in path.read_bytes()
    np.testing.assert_allclose(read_points(path), POINTS, rtol=1e-6, atol=1e-6)
    back = o3d.t.io.read_point_cloud(str(write_pcd(tmp_path / "b.pcd", POINTS, encoding)))
    np.testing.assert_allclose(back.point.positions.numpy(), POINTS[:, :3], rtol=1e-6)


def test_padding_counts_and_integer_fields(tmp_path: Path) -> None:
    dtype = np.dtype(
        [
            ("x", "<f4"),
            ("y", "<f4"),
            ("z", "<f4"),
            ("_", "u1", (4,)),
            ("intensity", "<u2"),
            ("t", "<f8"),
            ("__", "u1"),
        ]
    )
    table = np.zeros(60, dtype)
    table["x"], table["y"], table["z"] = POINTS[:, :3].T
    table["intensity"] = np.arange(60)
    (tmp_path / "a.pcd").write_bytes(
        b"VERSION .7\nFIELDS x y z _ intensity t _\nSIZE 4 4 4 1 2 8 1\nTYPE F F F U U F U\nCOUNT 1 1 1 4 1 1 1\n"
        b"WIDTH 60\nHEIGHT 1\nPOINTS 60\nDATA binary\n" + table.tobytes()
    )
    read = read_points(tmp_path / "a.pcd", intensity_scale=100)
    np.testing.assert_array_equal(read[:, :3], POINTS[:, :3])
    np.testing.assert_allclose(read[:, 3], np.arange(60) / 100, rtol=1e-6)


def _header(**changes: str) -> bytes:
    lines = pcd_header(POINTS, "binary").decode().splitlines()
    for key, value in changes.items():
        lines = [value if line.startswith(key) else line for line in lines]
    return "\n".join(line for line in lines if line).encode() + b"\n" + POINTS.tobytes()


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"\x00" * 40, "no DATA line"),
        (b"", "no DATA line"),
        (_header(FIELDS="FIELDS"), "header is incomplete or wrong .*no fields"),
        (_header(FIELDS="FIELDS x y z"), "header is incomplete or wrong"),
        (_header(SIZE=""), "header is incomplete or wrong .*SIZE"),
        (_header(TYPE="TYPE F F F Q"), "header is incomplete or wrong"),
        (_header(WIDTH="WIDTH 61"), "says 60 points but 61 x 1"),
        (_header(DATA="DATA zipped"), "encoding 'zipped' is not known"),
        (_header(DATA="DATA binary_compressed"), "truncated: .* compressed bytes promised"),
        (_header(DATA="DATA binary_compressed")[:250], "truncated|header"),
        (pcd_header(POINTS, "ascii") + b"1 2 three 4\n" * 60, "ascii points cannot be read"),
        (pcd_header(POINTS, "ascii") + b"1 2 3\n" * 60, "hold 3 values, too few"),
        (pcd_header(POINTS, "binary_compressed") + b"\x01", "promises 60 points, 0 are there"),
        (
            pcd_header(POINTS, "binary_compressed") + b"\x02\0\0\0\x10\0\0\0ab",
            "promises 60 points, 1 are there",
        ),
        (pcd_header(POINTS, "binary_compressed") + b"\x02\0\0\0\xc0\x03\0\0\x20\x00", "data are damaged"),
        (pcd_header(POINTS, "binary_compressed") + b"\x02\0\0\0\xc0\x03\0\0\x00\x00", "data are damaged"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, raw: bytes, problem: str) -> None:
    path = tmp_path / "broken.pcd"
    path.write_bytes(raw)
    with pytest.raises(FrameError, match=rf"broken\.pcd: .*({problem})"):
        read_pcd(path)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_zero_points_are_an_empty_cloud(tmp_path: Path, encoding: str) -> None:
    assert len(read_pcd(write_pcd(tmp_path / "a.pcd", POINTS[:0], encoding))) == 0


@given(st.binary(max_size=300))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_lzf_literals_round_trip(data: bytes) -> None:
    assert lzf_decompress(literal_lzf(data), len(data)) == data


@pytest.mark.parametrize(
    ("tokens", "plain"),
    [
        (b"\x02abc\x20\x02", b"abcabc"),  # copy 3 from 3 back
        (b"\x00a\xe0\x07\x00", b"a" * 17),  # long copy, overlapping itself: 7 + 7 + 2 more
        (b"\x01ab\x60\x01", b"abababa"),  # copy 5 from 2 back, an odd overlap
    ],
)
def test_lzf_references(tokens: bytes, plain: bytes) -> None:
    assert lzf_decompress(tokens, len(plain)) == plain
