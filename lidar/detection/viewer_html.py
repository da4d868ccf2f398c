"""A viewer of labelled and detected frames as one HTML file: it opens in any browser, without a network."""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lidar.detection.failures import Mark
from lidar.detection.marked import EDGES, MarkedFrame, box_corners, heading_strokes, thinned
from lidar.detection.viewer_page import PAGE

MOST_POINTS = 15_000  # of a frame: 120 kB of text
_METRE = 100  # coordinates are kept as whole centimetres in 16 bits, which reach 327 m


def write_viewer(
    path: Path, frames: Sequence[MarkedFrame], *, title: str, most_points: int = MOST_POINTS
) -> None:
    """Write the page. Points are thinned evenly; every box is kept.

    Args:
        path: of the HTML file.
        frames: in the order shown.
        title: of the page.
        most_points: of a frame.

    Raises:
        ValueError: if there are no frames.
    """
    if not frames:
        raise ValueError("a viewer needs at least one frame")
    # `</` would end the script early, whatever a frame is called.
    data = json.dumps([_frame(frame, most_points) for frame in frames], separators=(",", ":")).replace(
        "</", "<\\/"
    )
    values = {"TITLE": html.escape(title), "EDGES": json.dumps([list(e) for e in EDGES]), "FRAMES": data}
    page = PAGE
    for name, value in values.items():
        page = page.replace(f"@{name}@", value)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page)
    temporary.replace(path)


def _frame(frame: MarkedFrame, most_points: int) -> dict[str, Any]:
    reach = np.iinfo(np.int16).max / _METRE
    xyz = frame.points[:, :3]
    xyz = thinned(xyz[(np.abs(xyz) < reach).all(axis=1)], most_points)
    packed = np.rint(xyz * _METRE).astype("<i2").tobytes()
    corners, strokes = box_corners(frame.boxes), heading_strokes(frame.boxes)
    boxes = [
        {
            "corners": _rounded(corners[place]),
            "heading": _rounded(strokes[place]),
            "colour": frame.colour(place),
            "cross": mark == Mark.FALSE,
            "thick": mark in (Mark.MISSED, Mark.FALSE),
            "object": bool(np.isnan(frame.scores[place])),
            "text": _text(frame, place),
        }
        for place, mark in enumerate(frame.marks)
    ]
    return {
        "name": frame.name, "total": len(frame.points), "points": base64.b64encode(packed).decode(), "boxes": boxes,
    }  # fmt: skip


def _text(frame: MarkedFrame, place: int) -> str:
    score, mark = frame.scores[place], frame.marks[place]
    told = "" if np.isnan(score) else f" {score:.2f}"
    # The many objects out of range would bury the others under their texts.
    return f"{frame.names[place]}{told}" + ("" if mark == Mark.UNCOUNTED else f", {mark.value}")


def _rounded(values: np.ndarray) -> list[Any]:
    return np.round(values.astype(float), 2).tolist()
