"""Reader for the vertices of PLY files (Stanford polygon format 1.0): ascii, binary little and big endian.

Own code because the PLY reader on PyPI is GPL and refuses numpy 1.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lidar.datasets.errors import FrameError, reason

_REMEDY = "Export the file again, or set data.on_error=skip."
_TYPES = {
    name: kind
    for names, kind in (
        ("char int8", "i1"),
        ("uchar uint8", "u1"),
        ("short int16", "i2"),
        ("ushort uint16", "u2"),
        ("int int32", "i4"),
        ("uint uint32", "u4"),
        ("float float32", "f4"),
        ("double float64", "f8"),
    )
    for name in names.split()
}
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "<"}


@dataclass
class _Element:
    name: str
    count: int
    properties: list[tuple[str, str]] = field(default_factory=list)  # (name, numpy type without byte order)
    has_list: bool = False


def read_ply(path: str | Path) -> np.ndarray:
    """The vertex element of a PLY file as a structured array [N] with the file's property names.

    Raises:
        FrameError: if the header is not that of a PLY file, has no usable vertices, or promises more than
            there is.
        OSError: if the file cannot be opened.
    """
    path = Path(path)
    raw = path.read_bytes()
    encoding, elements, start = _parse_header(path, raw)
    position = next((i for i, element in enumerate(elements) if element.name == "vertex"), None)
    if position is None:
        raise FrameError(
            path, "this PLY file has no vertex element", "Save the cloud as vertices with x, y, z."
        )
    if not elements[position].properties:
        raise FrameError(path, "the vertices of this PLY file have no properties", _REMEDY)
    if any(element.has_list for element in elements[: position + 1]):
        raise FrameError(
            path, "list properties stand before or in its vertices", "Save the vertices first and alone."
        )
    vertex, before = elements[position], elements[:position]
    order = _BYTE_ORDERS[encoding]
    dtype = np.dtype([(name, order + kind) for name, kind in vertex.properties])
    body = raw[start:]
    if encoding == "ascii":
        return _ascii(path, vertex, dtype, body, skip=sum(element.count for element in before))
    offset = sum(e.count * sum(np.dtype(kind).itemsize for _, kind in e.properties) for e in before)
    found = max(len(body) - offset, 0) // dtype.itemsize
    if found < vertex.count:
        raise _promised(path, vertex, found)
    return np.frombuffer(body, dtype, vertex.count, offset)


def _parse_header(path: Path, raw: bytes) -> tuple[str, list[_Element], int]:
    if raw[:3] != b"ply":
        raise FrameError(path, "not a PLY file: its first line is not 'ply'", _REMEDY)
    end = raw.find(b"end_header")
    stop = raw.find(b"\n", end)
    if end < 0 or stop < 0:
        raise FrameError(path, "truncated: its PLY header has no end_header line", _REMEDY)
    encoding, elements = "", list[_Element]()
    try:
        for line in raw[:end].decode("ascii", "replace").splitlines()[1:]:
            words = line.split()
            if not words or words[0] in ("comment", "obj_info"):
                continue
            if words[0] == "format":
                encoding = words[1]
            elif words[0] == "element":
                elements.append(_Element(words[1], int(words[2])))
            elif words[:2] == ["property", "list"]:
                elements[-1].has_list = True
            elif words[0] == "property":
                elements[-1].properties.append((words[2], _TYPES[words[1]]))
            else:
                raise ValueError(f"unknown line {line!r}")
    except (KeyError, IndexError, ValueError) as error:
        raise FrameError(path, f"its PLY header is wrong ({reason(error)})", _REMEDY) from error
    if encoding not in _BYTE_ORDERS:
        raise FrameError(path, f"PLY format {encoding!r} is not known", f"Save as {', '.join(_BYTE_ORDERS)}.")
    return encoding, elements, stop + 1


def _promised(path: Path, vertex: _Element, found: int) -> FrameError:
    return FrameError(
        path, f"truncated: its PLY header promises {vertex.count} points, {found} are there", _REMEDY
    )


def _ascii(path: Path, vertex: _Element, dtype: np.dtype, body: bytes, *, skip: int) -> np.ndarray:
    lines = [line for line in body.decode("ascii", "replace").splitlines() if line.strip()][skip:]
    if len(lines) < vertex.count:
        raise _promised(path, vertex, len(lines))
    points = np.zeros(vertex.count, dtype)
    if vertex.count == 0:
        return points
    try:
        table = np.loadtxt(lines[: vertex.count], dtype=np.float64, ndmin=2, comments=None)
    except ValueError as error:
        raise FrameError(path, f"its ascii points cannot be read ({reason(error)})", _REMEDY) from error
    names = dtype.names or ()
    if table.shape[1] != len(names):
        raise FrameError(
            path, f"its ascii lines hold {table.shape[1]} values for {len(names)} properties", _REMEDY
        )
    for column, name in enumerate(names):
        points[name] = table[:, column]
    return points
