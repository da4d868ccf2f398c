"""LiDAR data of one's own, without camera or calibration: a folder of point files, and boxes beside them.

Two forms of labels, both in the sensor frame, metres and radians, (x, y, z) the box CENTRE:

* a folder of text files, one per point file of the same name: a line per object, `class x y z dx dy dz heading`, or
  with `vx vy` after it; the class may also stand last. An empty file is a frame without objects.
* one JSON-lines file, a line per frame: {"frame": "a/000017.pcd", "objects": [{"class": "Car", "box": [x, y, z, dx, dy,
  dz, heading], "velocity": [vx, vy]}, ...]}. The velocity may be left out, and so may the suffix of the frame.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lidar.datasets.errors import DatasetError, FrameError, reason
from lidar.datasets.folder import PointFolder
from lidar.datasets.points import SUFFIXES
from lidar.datasets.sources import FrameRef
from lidar.detection.labels import BoxLabels

_TEXT_FORM = "Expected: class x y z dx dy dz heading, and perhaps vx vy; metres, radians, the box centre."
_JSON_FORM = (
    'Expected: {"frame": NAME, "objects": [{"class": NAME, "box": [x, y, z, dx, dy, dz, heading]}, ...]}.'
)


@dataclass(frozen=True, kw_only=True)
class LabelledFolder:
    """Point files of any supported format with labels beside them; a `LabelledSource`.

    Args:
        points: the point files; their format, columns and intensity scale are its matter.
        labels: folder of text files, or JSON-lines file.
        velocity: give boxes a velocity, NaN where the labels have none; otherwise velocities are left unread.

    Attributes:
        frames: the point files that have labels. A frame without objects has labels that say so.
        unlabelled: number of point files without.

    Raises:
        DatasetError: if there are no labels, or none belongs to a point file, or one belongs to a file that is missing.
        FrameError: if a line of the JSON-lines file is malformed.
    """

    points: PointFolder
    labels_at: str | Path
    velocities: bool = False
    frames: tuple[FrameRef, ...] = field(init=False, repr=False)
    unlabelled: int = field(init=False)
    _line_at: dict[str, int] = field(init=False, repr=False)

    columns = 4

    def __post_init__(self) -> None:
        path = Path(self.labels_at).expanduser()
        object.__setattr__(self, "labels_at", path)
        if not path.exists():
            raise DatasetError(
                f"{path}: there are no labels. Name a folder of .txt files or a .jsonl file (docs/detection_data.md)."
            )
        lines = {} if path.is_dir() else _index_of(path)
        known = {p.relative_to(path).with_suffix("").as_posix() for p in path.rglob("*.txt")} or set(lines)
        keys = {_key(ref.frame_id): ref for ref in self.points.frames}
        stray = sorted(known - set(keys))
        if stray or not known:
            have = next(iter(keys))
            what = (
                f"{len(stray)} of {len(known)} labels have no point file, the first is {stray[0]}"
                if stray
                else ""
            )
            raise DatasetError(
                f"{path}: {what or 'no labels in it'}. Labels are found by the name of the point file below "
                f"{self.points.root} without its suffix, e.g. {have}."
            )
        object.__setattr__(self, "frames", tuple(ref for key, ref in keys.items() if key in known))
        object.__setattr__(self, "unlabelled", len(keys) - len(known))
        object.__setattr__(self, "_line_at", lines)

    @property
    def name(self) -> str:
        return f"labelled {self.points.name}"

    def read(self, ref: FrameRef) -> np.ndarray:
        return self.points.read(ref)

    def labels(self, ref: FrameRef) -> BoxLabels:
        path, key = Path(self.labels_at), _key(ref.frame_id)
        if path.is_dir():
            names, rows = _read_text(path / f"{key}.txt")
        else:
            with path.open("rb") as file:
                file.seek(self._line_at[key])
                names, rows = _objects(path, json.loads(file.readline()), f"frame {key}")
        boxes = np.full((len(rows), 9), np.nan, np.float32)
        for box, row in zip(boxes, rows, strict=True):
            box[: len(row)] = row
        return BoxLabels(boxes=boxes if self.velocities else boxes[:, :7].copy(), names=tuple(names))

    def road(self, ref: FrameRef) -> None:
        return None


def json_line(frame: str, *, boxes: np.ndarray, names: Sequence[str]) -> str:
    """One line of a JSON-lines label file, for whoever converts labels.

    Args:
        frame: name of the point file below its folder.
        boxes: [M, 7], or [M, 9] with velocities, NaN where unknown.
        names: M class names.
    """
    objects: list[dict[str, Any]] = []
    for box, name in zip(boxes.astype(float), names, strict=True):
        objects.append({"class": name, "box": box[:7].tolist()})
        if len(box) == 9 and np.isfinite(box[7:]).all():
            objects[-1]["velocity"] = box[7:].tolist()
    return json.dumps({"frame": frame, "objects": objects}) + "\n"


def _key(frame: str) -> str:
    """A frame's name without the suffix of its point file."""
    for suffix in (".pcd.bin", *SUFFIXES):
        if frame.lower().endswith(suffix):
            return frame[: -len(suffix)]
    return frame


def _read_text(path: Path) -> tuple[list[str], list[list[float]]]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise FrameError(path, f"cannot be read ({reason(error)})", "Restore the label file.") from error
    names, rows = [], []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if _is_number(words[0]):
            words = [words[-1], *words[:-1]]
        if len(words) not in (8, 10) or _is_number(words[0]) or not all(map(_is_number, words[1:])):
            raise FrameError(path, f"line {number} is not a label: {line.strip()[:80]!r}", _TEXT_FORM)
        names.append(words[0])
        rows.append([float(word) for word in words[1:]])
    return names, rows


def _index_of(path: Path) -> dict[str, int]:
    """Where the line of each frame starts; every line is looked at once."""
    places: dict[str, int] = {}
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"line {number}"
                try:
                    record = json.loads(line)
                    key = _key(record["frame"])
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise FrameError(path, f"{where} is not a label ({reason(error)})", _JSON_FORM) from error
                _objects(path, record, where)
                if key in places:
                    raise FrameError(path, f"{where} labels frame {key} again", "Keep one line per frame.")
                places[key] = position
            position += len(line)
    return places


def _objects(path: Path, record: dict[str, Any], where: str) -> tuple[list[str], list[list[float]]]:
    names, rows = [], []
    try:
        for found in record["objects"]:
            row = [float(v) for v in [*found["box"], *(found.get("velocity") or ())]]
            if len(found["box"]) != 7 or len(row) not in (7, 9):
                raise ValueError(f"a box has 7 numbers and a velocity 2, got {len(row)}")
            names.append(str(found["class"]))
            rows.append(row)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FrameError(path, f"{where} is not a label ({reason(error)})", _JSON_FORM) from error
    return names, rows


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
