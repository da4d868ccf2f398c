"""Objects cut out of labelled scans, in one memory-mapped file that all loader processes share.

File: a 64-byte header, then the points of all objects one after another, relative to their box centre, then the tables
(offsets, boxes, labels, difficulty, frame), the frame names and a JSON note. Numbers are little-endian. The header
holds the file's size, so that a truncated file is known at once; it is written last, under a temporary name.
"""

import json
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lidar.datasets.errors import DatasetError

MAGIC, VERSION = b"GTSAMPLE", 1
# Magic, version, columns, box width, frame-name width, objects, frames, points, note's bytes, file size.
_HEADER = struct.Struct("<8s4I5Q")


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """Objects of one frame.

    Attributes:
        frame: its name.
        boxes: [k, 7 or 9] float32 in the sensor frame.
        labels, difficulty, counts: [k] class, difficulty and number of points.
        points: [sum of counts, C] float32, object after object, x, y, z relative to the box centre.
    """

    frame: str
    boxes: np.ndarray
    labels: np.ndarray
    difficulty: np.ndarray
    counts: np.ndarray
    points: np.ndarray


class GroundTruthDatabase:
    """Recorded objects, read in place: a process holds the pages it touches, and shares them with the others.

    Pickled, it is its path.

    Args:
        path: file written by `write_database`.

    Attributes:
        classes: names, whose place is the label.
        columns: numbers per point.
        boxes: [K, 7 or 9] float32 in the sensor frame of their scan.
        labels, difficulty, frame: [K] int32: class, difficulty (-1: not to be pasted), place in `frame_names`.
        counts: [K] int64 points of each object.

    Raises:
        DatasetError: if the file is missing, truncated, of another version or not such a file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                head = file.read(_HEADER.size)
                size = os.fstat(file.fileno()).st_size
                _check_header(self.path, head, size)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise DatasetError(
                f"{self.path}: no ground-truth database ({error.strerror}). Build one with "
                f"scripts/build_gt_database.py, or train without gt-sampling."
            ) from error
        _, _, self.columns, width, name_width, objects, frames, points, note, _ = _HEADER.unpack(head)
        start = _HEADER.size

        def table(dtype: str, *shape: int) -> np.ndarray:
            nonlocal start
            start = _aligned(start)
            count = int(np.prod(shape))
            array = np.frombuffer(self._map, dtype, count, start).reshape(shape)
            start += array.nbytes
            return array

        self._points = table("<f4", points, self.columns)
        self._offsets = table("<i8", objects + 1)
        self.boxes = table("<f4", objects, width)
        self.labels = table("<i4", objects)
        self.difficulty = table("<i4", objects)
        self.frame = table("<i4", objects)
        self.frame_names = table(f"S{name_width}", frames)
        self.note: dict[str, Any] = json.loads(table("u1", note).tobytes())
        self.classes: tuple[str, ...] = tuple(self.note["classes"])

    def __len__(self) -> int:
        return len(self.boxes)

    def __reduce__(self) -> tuple[type["GroundTruthDatabase"], tuple[Path]]:
        return type(self), (self.path,)

    @property
    def counts(self) -> np.ndarray:
        return np.diff(self._offsets)

    def points(self, entry: int) -> np.ndarray:
        """Points [n, C] of one object, relative to its box centre; read-only."""
        return self._points[self._offsets[entry] : self._offsets[entry + 1]]

    def pool(self, name: str, *, min_points: int) -> np.ndarray:
        """Objects [k] of a class with at least so many points and a known difficulty.

        Raises:
            ValueError: if the database does not have the class.
        """
        if name not in self.classes:
            raise ValueError(
                f"{self.path}: no class {name} in this ground-truth database, it has {', '.join(self.classes)}. "
                f"Build it again with the classes of the detector."
            )
        usable = (self.labels == self.classes.index(name)) & (self.counts >= min_points)
        return np.flatnonzero(usable & (self.difficulty >= 0))

    def per_class(self) -> dict[str, int]:
        """Number of objects of each class."""
        found = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(n) for name, n in zip(self.classes, found, strict=True)}

    def summary(self) -> str:
        """Number of objects of each class, for messages."""
        return ", ".join(f"{name} {count}" for name, count in self.per_class().items())


def write_database(
    path: str | Path, cuts: Iterator[Cut], *, classes: Sequence[str], note: dict[str, Any]
) -> GroundTruthDatabase:
    """Write objects as they come, in one pass, and open the result. A file that is there is replaced at the end.

    Args:
        cuts: objects of each frame, in the order in which they are to lie.
        classes: names, whose place is the label.
        note: what else to keep: the name of the source, and so on.

    Raises:
        DatasetError: if there is not a single object.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write(temporary, cuts, classes=classes, note=note, shown=path)
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    return GroundTruthDatabase(path)


def _write(
    path: Path, cuts: Iterator[Cut], *, classes: Sequence[str], note: dict[str, Any], shown: Path
) -> None:
    boxes, labels, difficulty, counts, frames = [], [], [], [], []
    names: list[bytes] = []
    columns = looked_at = labelled = 0
    with path.open("wb") as file:
        file.write(bytes(_HEADER.size))
        for cut in cuts:
            looked_at += 1
            labelled += len(cut.counts) > 0
            if len(cut.points) == 0:
                continue
            columns = cut.points.shape[1]
            filled = cut.counts > 0
            boxes.append(cut.boxes[filled])
            labels.append(cut.labels[filled])
            difficulty.append(cut.difficulty[filled])
            counts.append(cut.counts[filled])
            frames.append(np.full(int(filled.sum()), len(names)))
            names.append(cut.frame.encode())
            file.write(cut.points.astype("<f4", copy=False).tobytes())
        if not names:
            raise DatasetError(_empty(shown, looked_at=looked_at, labelled=labelled, classes=classes))
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        text = np.frombuffer(json.dumps({**note, "classes": list(classes)}).encode(), "u1")
        frame_names = np.array(names)
        table = np.concatenate(boxes)
        for array, dtype in (
            (offsets, "<i8"), (table, "<f4"), (np.concatenate(labels), "<i4"), (np.concatenate(difficulty), "<i4"),
            (np.concatenate(frames), "<i4"), (frame_names, frame_names.dtype), (text, "u1"),
        ):  # fmt: skip
            file.write(bytes(_aligned(file.tell()) - file.tell()))
            file.write(array.astype(dtype, copy=False).tobytes())
        size = file.tell()
        file.seek(0)
        file.write(
            _HEADER.pack(
                MAGIC, VERSION, columns, table.shape[1], frame_names.dtype.itemsize,
                len(table), len(names), offsets[-1], len(text), size,
            )
        )  # fmt: skip
        file.flush()
        os.fsync(file.fileno())


def _empty(path: Path, *, looked_at: int, labelled: int, classes: Sequence[str]) -> str:
    what = f"{path}: no ground-truth database written: {looked_at} frames"
    if labelled == 0:
        return (
            f"{what} hold no labelled {', '.join(classes)}. Check the class names and where the labels are."
        )
    return (
        f"{what} with labelled {', '.join(classes)}, but no point lies in any box. Boxes and points do not belong "
        f"together: scripts/check_labels.py finds out why."
    )


def _check_header(path: Path, head: bytes, size: int) -> None:
    if head[: len(MAGIC)] != MAGIC:
        # An interrupted write leaves no such file; an empty or half copied one may.
        problem = "is not a ground-truth database" if head else "is empty (0 bytes)"
    elif len(head) < _HEADER.size:
        problem = f"is truncated ({size} bytes)"
    elif (version := _HEADER.unpack(head)[1]) != VERSION:
        problem = f"is of version {version}, this program reads version {VERSION}"
    elif (expected := _HEADER.unpack(head)[-1]) != size:
        problem = f"is truncated or damaged: {size} bytes of {expected}"
    else:
        return
    raise DatasetError(f"{path}: {problem}. Build it again with scripts/build_gt_database.py.")


def _aligned(position: int) -> int:
    return -(-position // 8) * 8
