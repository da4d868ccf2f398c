"""Writers of point files and layouts for the tests: independent of the readers under test."""

import struct
from pathlib import Path

import numpy as np

FIELDS = ("x", "y", "z", "intensity")


def cloud(count: int = 50, *, seed: int = 0) -> np.ndarray:
    """float32 [count, 4]: x in 1..40, y in -20..20, z in -2..0.5, intensity in 0..1."""
    rng = np.random.default_rng(seed)
    low, high = (1, -20, -2, 0), (40, 20, 0.5, 1)
    return rng.uniform(low, high, (count, 4)).astype(np.float32)


def write_bin(path: Path, points: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    points.astype("<f4").tofile(path)
    return path


def pcd_header(
    points: np.ndarray, encoding: str, *, fields: tuple[str, ...] = FIELDS, height: int = 1
) -> bytes:
    n, c = points.shape
    return (
        f"# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS {' '.join(fields)}\n"
        f"SIZE{' 4' * c}\nTYPE{' F' * c}\nCOUNT{' 1' * c}\nWIDTH {n // height}\nHEIGHT {height}\n"
        f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {n}\nDATA {encoding}\n"
    ).encode()


def literal_lzf(data: bytes) -> bytes:
    """A valid LZF block that never refers back."""
    runs = [data[i : i + 32] for i in range(0, len(data), 32)]
    return b"".join(bytes([len(run) - 1]) + run for run in runs)


def write_pcd(path: Path, points: np.ndarray, encoding: str, **header: object) -> Path:
    points = points.astype("<f4")
    if encoding == "ascii":
        body = "\n".join(" ".join(repr(float(v)) for v in row) for row in points).encode() + b"\n"
    elif encoding == "binary":
        body = points.tobytes()
    else:
        fields = points.T.tobytes()
        packed = literal_lzf(fields)
        body = struct.pack("<II", len(packed), len(fields)) + packed
    path.write_bytes(pcd_header(points, encoding, **header) + body)
    return path


def ply_header(
    count: int, encoding: str, *, fields: tuple[str, ...] = FIELDS, before: str = "", after: str = ""
) -> bytes:
    properties = "".join(f"property float {name}\n" for name in fields)
    return (
        f"ply\nformat {encoding} 1.0\ncomment written by a test\n{before}element vertex {count}\n{properties}"
        f"{after}end_header\n"
    ).encode()


def write_ply(path: Path, points: np.ndarray, encoding: str, **header: object) -> Path:
    if encoding == "ascii":
        body = "\n".join(" ".join(repr(float(v)) for v in row) for row in points).encode() + b"\n"
    else:
        body = points.astype("<f4" if encoding == "binary_little_endian" else ">f4").tobytes()
    path.write_bytes(ply_header(len(points), encoding, **header) + body)
    return path


def write_kitti_object(root: Path, count: int = 6, *, splits: dict[str, list[int]] | None = None) -> Path:
    """root/training/velodyne with frames 000000 and on, and ImageSets where splits are given."""
    for index in range(count):
        write_bin(root / f"training/velodyne/{index:06d}.bin", cloud(40 + index, seed=index))
    for name, ids in (splits or {}).items():
        path = root / f"ImageSets/{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{index:06d}\n" for index in ids))
    return root


def write_png_header(path: Path, width: int, height: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + b"\x08\x02\0\0\0"
    )
    return path


CALIB = """P0: 700 0 600 0 0 700 180 0 0 0 1 0
P1: 700 0 600 0 0 700 180 0 0 0 1 0
P2: 700 0 600 45 0 700 180 0.2 0 0 1 0.003
P3: 700 0 600 0 0 700 180 0 0 0 1 0
R0_rect: 0.9999 0.0101 -0.0085 -0.0101 0.9999 -0.0040 0.0085 0.0041 1.0
Tr_velo_to_cam: 0.0069 -0.99997 -0.0028 -0.0246 -0.0012 0.0027 -0.99999 -0.0613 0.99997 0.0069 -0.0011 -0.3321
Tr_imu_to_velo: 1 0 0 0 0 1 0 0 0 0 1 0
"""


def write_calib(path: Path, text: str = CALIB) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
