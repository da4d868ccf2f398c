"""Rows of KITTI object files: labels and results read, checked and written, and their boxes in the velodyne frame.

A label row is `type truncated occluded alpha x1 y1 x2 y2 h w l x y z ry`; a result row adds `score`. (x, y, z) is the
middle of the bottom face in the rectified camera frame (x right, y down, z forward), ry the rotation about y.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lidar.datasets.errors import DatasetError, FrameError, reason
from lidar.datasets.kitti_calib import KittiCalib

# What the benchmark calls things; "Person" is the tracking benchmark's word for Person_sitting.
KITTI_TYPES = (
    "Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", "DontCare", "Person",
)  # fmt: skip
LABEL_FIELDS = "type truncated occluded alpha x1 y1 x2 y2 h w l x y z ry"
DONT_CARE = "DontCare"

# Numbers of a DontCare row that stand for "there is none", by column of `ObjectRows.values`.
_ABSENT = {
    0: -1.0,
    1: -1.0,
    2: -10.0,
    7: -1.0,
    8: -1.0,
    9: -1.0,
    10: -1000.0,
    11: -1000.0,
    12: -1000.0,
    13: -10.0,
}
_NEAR = 0.1  # metres before the camera; what lies behind is drawn from there


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectRows:
    """The rows of one file, in its order.

    Attributes:
        names: [N] class names.
        values: [N, 14] float64 of a label file: truncated, occluded, alpha, x1, y1, x2, y2, h, w, l, x, y, z, ry;
            [N, 15] of a result file, with the score.
    """

    names: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    @property
    def truncated(self) -> np.ndarray:
        """[N]: 0 to 1; -1 in results."""
        return self.values[:, 0]

    @property
    def occluded(self) -> np.ndarray:
        """[N]: 0 visible, 1 partly, 2 largely, 3 unknown; -1 in results."""
        return self.values[:, 1]

    @property
    def alpha(self) -> np.ndarray:
        """[N] radians: angle at which the object is seen; -10 where there is none."""
        return self.values[:, 2]

    @property
    def image_boxes(self) -> np.ndarray:
        """[N, 4] pixels: left, top, right, bottom."""
        return self.values[:, 3:7]

    @property
    def sizes(self) -> np.ndarray:
        """[N, 3] metres: height, width, length."""
        return self.values[:, 7:10]

    @property
    def locations(self) -> np.ndarray:
        """[N, 3] metres: middle of the bottom face, rectified camera frame."""
        return self.values[:, 10:13]

    @property
    def rotations(self) -> np.ndarray:
        """[N] radians about the camera's y axis."""
        return self.values[:, 13]

    @property
    def scores(self) -> np.ndarray:
        """[N] of a result file."""
        return self.values[:, 14]

    @staticmethod
    def none(*, scores: bool) -> "ObjectRows":
        """No rows at all."""
        return ObjectRows(names=np.zeros(0, "<U8"), values=np.zeros((0, 15 if scores else 14)))


def read_labels(path: str | Path) -> ObjectRows:
    """Read a label file.

    Raises:
        FrameError: if the file is missing, or naming the line that is malformed or of an unknown class.
    """
    return _read(Path(path), fields=15, kind="label")


def read_results(path: str | Path) -> ObjectRows:
    """Read a result file; an empty one holds no detections.

    Raises:
        FrameError: if the file is missing, or naming the line that is malformed or of an unknown class.
    """
    return _read(Path(path), fields=16, kind="result")


def read_tracking_labels(path: str | Path) -> dict[int, ObjectRows]:
    """Labels of a tracking sequence (`frame track type ...`) as object labels, by frame.

    DontCare rows get the object benchmark's absent values: tracking gives them a box of size -1000 before the sensor,
    which an evaluator seen from above would take for one that forgives every false positive. "Person" becomes
    Person_sitting; truncation keeps its three levels.

    Raises:
        FrameError: if the file is missing, or naming the line that is malformed.
    """
    path = Path(path)
    frames: dict[int, list[tuple[str, list[float]]]] = {}
    for number, words in _lines(path, "tracking label"):
        if len(words) != 17 or not words[0].isdigit():
            raise _malformed(
                path, number, f"{len(words)} fields", f"Expected: frame track {LABEL_FIELDS} (17 fields)."
            )
        row = _row(path, number, words[2:], f"frame track {LABEL_FIELDS}")
        frames.setdefault(int(words[0]), []).append(row)
    tables = {}
    for frame, rows in frames.items():
        table = _table(rows, width=14)
        names = np.where(table.names == "Person", "Person_sitting", table.names)
        values = table.values.copy()
        for column, value in _ABSENT.items():
            values[names == DONT_CARE, column] = value
        tables[frame] = ObjectRows(names=names, values=values)
    return tables


def write_rows(path: str | Path, rows: ObjectRows) -> None:
    """Write a label file, or a result file where there are scores. No rows make an empty file, which is needed too."""
    lines = []
    for name, values in zip(rows.names, rows.values, strict=True):
        words = [str(name), *(f"{v:g}" for v in values[:2]), *(f"{v:.6f}" for v in values[2:14])]
        # Nine digits tell float32 scores apart: rounding would make ties.
        lines.append(" ".join([*words, *(f"{v:.9g}" for v in values[14:])]))
    Path(path).write_text("".join(f"{line}\n" for line in lines))


def boxes_of(rows: ObjectRows, calib: KittiCalib) -> np.ndarray:
    """Boxes [N, 7] float64 in the velodyne frame: centre, length, width, height, heading in [-pi, pi).

    DontCare rows have none; leave them out before.
    """
    height, width, length = rows.sizes.T
    centre = calib.to_velodyne(rows.locations)
    centre[:, 2] += height / 2
    heading = _wrapped(-rows.rotations - np.pi / 2)
    return np.column_stack([centre, length, width, height, heading])


def result_rows(
    boxes: np.ndarray,
    *,
    names: Sequence[str],
    scores: np.ndarray,
    calib: KittiCalib,
    image_size: tuple[int, int],
) -> ObjectRows:
    """Result rows of boxes in the velodyne frame: the inverse of `boxes_of`, with the box in the image.

    Args:
        boxes: [N, 7+]: centre, length, width, height, heading.
        names: N class names.
        scores: [N].
        calib: of the frame.
        image_size: width, height in pixels; boxes in the image are cut off there.

    Raises:
        ValueError: if there are not as many names and scores as boxes, or on numbers that are not finite.
    """
    boxes, scores = np.asarray(boxes, np.float64), np.asarray(scores, np.float64)
    if len(boxes) == 0:
        return ObjectRows.none(scores=True)
    if boxes.ndim != 2 or boxes.shape[1] < 7 or len(names) != len(boxes) or scores.shape != (len(boxes),):
        raise ValueError(
            f"boxes are [N, 7] or wider with N names and N scores, got {boxes.shape}, {len(names)} and {scores.shape}"
        )
    if not (np.isfinite(boxes[:, :7]).all() and np.isfinite(scores).all()):
        raise ValueError("boxes or scores hold NaN or infinity: the detector's output is broken")
    bottom = boxes[:, :3] - np.array([0, 0, 0.5]) * boxes[:, 5:6]
    rotation = _wrapped(-boxes[:, 6] - np.pi / 2)
    alpha = _wrapped(-np.arctan2(-boxes[:, 1], boxes[:, 0]) + rotation)
    location, size = calib.to_camera(bottom), boxes[:, [5, 4, 3]]
    image = _image_boxes(location, size, rotation, calib.projection, image_size)
    absent = np.full((len(boxes), 2), -1.0)
    values = np.column_stack([absent, alpha, image, size, location, rotation, scores])
    return ObjectRows(names=np.array(names, dtype=str), values=values)


def row_files(folder: str | Path, inside: str) -> dict[str, Path]:
    """Files FRAME.txt of a folder, or of the folder `inside` it, by frame in order.

    Raises:
        DatasetError: if there is no such folder or no such file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder. Name the folder of FRAME.txt files.")
    for place in (folder, folder / inside):
        found = {path.stem: path for path in sorted(place.glob("*.txt")) if path.stem.isdigit()}
        if found:
            return found
    raise DatasetError(
        f"{folder}: no files like 000000.txt in it or in {inside}/. Name the folder of FRAME.txt files."
    )


def _image_boxes(
    location: np.ndarray,
    size: np.ndarray,
    rotation: np.ndarray,
    projection: np.ndarray,
    image_size: tuple[int, int],
) -> np.ndarray:
    """Smallest boxes [N, 4] around the eight projected corners, cut off at the edges of the image."""
    height, width, length = size.T[:, :, None]
    along = np.array([1, 1, -1, -1, 1, 1, -1, -1]) / 2 * length
    across = np.array([1, -1, -1, 1, 1, -1, -1, 1]) / 2 * width
    up = np.array([0, 0, 0, 0, 1, 1, 1, 1]) * height
    cos, sin = np.cos(rotation)[:, None], np.sin(rotation)[:, None]
    turned = np.stack([cos * along + sin * across, -up, -sin * along + cos * across], axis=-1)
    corners = location[:, None] + turned
    corners[..., 2] = np.maximum(corners[..., 2], _NEAR)
    pixels = corners @ projection[:, :3].T + projection[:, 3]
    pixels = pixels[..., :2] / pixels[..., 2:]
    limits = np.array(image_size) - 1
    low, high = (np.clip(p, 0, limits) for p in (pixels.min(axis=1), pixels.max(axis=1)))
    return np.column_stack([low, high])


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _read(path: Path, *, fields: int, kind: str) -> ObjectRows:
    expected = LABEL_FIELDS if fields == 15 else f"{LABEL_FIELDS} score"
    rows = []
    for number, words in _lines(path, kind):
        if len(words) != fields:
            other = {15: "a label", 16: "a result"}.get(len(words), "neither a label nor a result")
            raise _malformed(
                path,
                number,
                f"{len(words)} fields: {other}, where a {kind} is wanted",
                f"Expected: {expected} ({fields} fields).",
            )
        rows.append(_row(path, number, words, expected))
    return _table(rows, width=fields - 1)


def _lines(path: Path, kind: str) -> list[tuple[int, list[str]]]:
    """Numbered lines, split into words; blank ones are left out."""
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        raise FrameError(
            path, f"there is no such {kind} file", "Restore it, or correct the folder."
        ) from error
    except UnicodeDecodeError as error:
        raise FrameError(
            path, f"not a text file ({reason(error)})", f"Expected KITTI {kind} rows."
        ) from error
    return [(n, words) for n, line in enumerate(text.splitlines(), start=1) if (words := line.split())]


def _row(path: Path, number: int, words: list[str], expected: str) -> tuple[str, list[float]]:
    name = _TYPES.get(words[0].lower())
    if name is None:
        raise _malformed(path, number, f"unknown class {words[0]!r}", f"KITTI has {', '.join(KITTI_TYPES)}.")
    try:
        values = [float(word) for word in words[1:]]
    except ValueError as error:
        raise _malformed(path, number, reason(error), f"Expected: {expected}.") from error
    # NaN and infinity both make NaN here.
    if (total := sum(v * 0 for v in values)) != total:
        raise _malformed(path, number, "NaN or infinity", "Leave broken detections out, or correct them.")
    return name, values


def _table(rows: list[tuple[str, list[float]]], *, width: int) -> ObjectRows:
    if not rows:
        return ObjectRows.none(scores=width == 15)
    return ObjectRows(names=np.array([name for name, _ in rows]), values=np.array([v for _, v in rows]))


def _malformed(path: Path, number: int, what: str, remedy: str) -> FrameError:
    return FrameError(path, f"line {number} is not usable ({what})", remedy)


_TYPES = {name.lower(): name for name in KITTI_TYPES}
