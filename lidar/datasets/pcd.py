"""Reader for the PCD format of the Point Cloud Library, versions 0.5 to 0.7, all three encodings.

Own code because the maintained readers on PyPI need compiled or GPL packages. Format: the PCL tutorial "The
PCD (Point Cloud Data) file format"; the compressed encoding is LZF over the fields stored one after the
other.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lidar.datasets.errors import FrameError, reason

_KINDS = {"F": "f", "I": "i", "U": "u"}
_REMEDY = "Export the file again, or set data.on_error=skip."


@dataclass(frozen=True)
class _Header:
    dtype: np.dtype
    points: int
    organised: bool
    encoding: str
    size: int  # bytes of the header itself


def read_pcd(path: str | Path) -> np.ndarray:
    """All fields of a PCD file.

    Returns:
        Structured array [N] with the file's field names. In an organised cloud (HEIGHT > 1) NaN coordinates
        are the format's mark for "no return"; these entries are dropped.

    Raises:
        FrameError: if the header is not that of a PCD file or promises more points than the file holds.
        OSError: if the file cannot be opened.
    """
    path = Path(path)
    raw = path.read_bytes()
    header = _parse_header(path, raw)
    body = raw[header.size :]
    if header.encoding == "ascii":
        points = _ascii(path, header, body)
    elif header.encoding == "binary":
        points = _binary(path, header, body)
    else:
        points = _compressed(path, header, body)
    if header.organised and {"x", "y", "z"} <= set(points.dtype.names or ()):
        returned = ~(np.isnan(points["x"]) & np.isnan(points["y"]) & np.isnan(points["z"]))
        points = points[returned]
    return points


def _parse_header(path: Path, raw: bytes) -> _Header:
    entries: dict[str, list[str]] = {}
    position = 0
    while "DATA" not in entries:
        end = raw.find(b"\n", position)
        if end < 0 or end - position > 10_000:
            raise FrameError(path, "not a PCD file: no DATA line in its header", _REMEDY)
        words = raw[position:end].decode("ascii", "replace").split()
        position = end + 1
        if words and not words[0].startswith("#"):
            entries[words[0]] = words[1:]
    try:
        names = entries["FIELDS"]
        if not names:
            raise ValueError("no fields")
        sizes = [int(v) for v in entries["SIZE"]]
        kinds = [_KINDS[v] for v in entries["TYPE"]]
        counts = [int(v) for v in entries.get("COUNT", ["1"] * len(names))]
        width, height = int(entries["WIDTH"][0]), int(entries["HEIGHT"][0])
        points = int(entries.get("POINTS", [str(width * height)])[0])
        encoding = entries["DATA"][0]
        # "_" is padding and may occur more than once: every field gets a name of its own.
        unique = [
            f"{name}_{i}" if names.count(name) > 1 or name == "_" else name for i, name in enumerate(names)
        ]
        fields = zip(unique, kinds, sizes, counts, strict=True)
        dtype = np.dtype([(n, f"<{k}{s}") if c == 1 else (n, f"<{k}{s}", (c,)) for n, k, s, c in fields])
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise FrameError(path, f"its PCD header is incomplete or wrong ({reason(error)})", _REMEDY) from error
    if points != width * height or points < 0:
        raise FrameError(path, f"its PCD header says {points} points but {width} x {height}", _REMEDY)
    if encoding not in ("ascii", "binary", "binary_compressed"):
        raise FrameError(
            path, f"PCD encoding {encoding!r} is not known", "Save as ascii, binary or binary_compressed."
        )
    return _Header(dtype, points, height > 1, encoding, position)


def _promised(path: Path, header: _Header, found: int) -> FrameError:
    return FrameError(
        path, f"truncated: its PCD header promises {header.points} points, {found} are there", _REMEDY
    )


def _ascii(path: Path, header: _Header, body: bytes) -> np.ndarray:
    lines = [line for line in body.decode("ascii", "replace").splitlines() if line.strip()]
    if len(lines) < header.points:
        raise _promised(path, header, len(lines))
    points = np.zeros(header.points, header.dtype)
    if header.points == 0:
        return points
    try:
        table = np.loadtxt(lines[: header.points], dtype=np.float64, ndmin=2, comments=None)
    except ValueError as error:
        raise FrameError(path, f"its ascii points cannot be read ({reason(error)})", _REMEDY) from error
    column = 0
    for name in header.dtype.names or ():
        count = int(np.prod(header.dtype[name].shape, dtype=int))
        values = table[:, column : column + count]
        if values.shape[1] != count:
            raise FrameError(
                path, f"its ascii lines hold {table.shape[1]} values, too few for the fields", _REMEDY
            )
        points[name] = values.reshape(points[name].shape)
        column += count
    return points


def _binary(path: Path, header: _Header, body: bytes) -> np.ndarray:
    found = len(body) // header.dtype.itemsize
    if found < header.points:
        raise _promised(path, header, found)
    return np.frombuffer(body, header.dtype, header.points)


def _compressed(path: Path, header: _Header, body: bytes) -> np.ndarray:
    if header.points == 0:
        return np.zeros(0, header.dtype)
    if len(body) < 8:
        raise _promised(path, header, 0)
    packed, full = struct.unpack("<II", body[:8])
    if len(body) < 8 + packed:
        raise FrameError(
            path, f"truncated: {packed} compressed bytes promised, {len(body) - 8} are there", _REMEDY
        )
    if full < header.points * header.dtype.itemsize:
        raise _promised(path, header, full // header.dtype.itemsize)
    try:
        data = lzf_decompress(body[8 : 8 + packed], full)
    except (ValueError, IndexError) as error:
        raise FrameError(path, f"its compressed data are damaged ({reason(error)})", _REMEDY) from error
    points = np.zeros(header.points, header.dtype)
    offset = 0
    for name in header.dtype.names or ():
        field = header.dtype[name]
        base = np.frombuffer(
            data, field.base, header.points * (field.itemsize // field.base.itemsize), offset
        )
        points[name] = base.reshape(points[name].shape)
        offset += field.itemsize * header.points
    return points


def lzf_decompress(data: bytes, size: int) -> bytes:
    """Decompress one LZF block (Marc Lehmann's liblzf format) of `size` bytes.

    Plain Python: about 0.3 s for a scan of 120,000 points. For training, convert compressed clouds to .npy
    once.

    Raises:
        ValueError: if the block does not decompress to exactly `size` bytes.
        IndexError: if the block ends in the middle of a token.
    """
    out = bytearray()
    i, end = 0, len(data)
    while i < end:
        control = data[i]
        i += 1
        if control < 32:  # a run of control + 1 literal bytes
            out += data[i : i + control + 1]
            i += control + 1
            continue
        length = control >> 5  # a copy of length + 2 earlier bytes
        if length == 7:
            length += data[i]
            i += 1
        start = len(out) - ((control & 31) << 8) - data[i] - 1
        i += 1
        if start < 0:
            raise ValueError("a reference points before the start")
        length += 2
        piece = out[start : start + length]
        while len(piece) < length:  # the copy overlaps what it writes
            piece += piece[: length - len(piece)]
        out += piece
    if len(out) != size:
        raise ValueError(f"{len(out)} bytes instead of {size}")
    return bytes(out)
