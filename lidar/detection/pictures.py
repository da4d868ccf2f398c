"""Pictures of one frame: from above and in space. Colour says the class, the line what became of the box.

| line | box |
|---|---|
| solid | detection; object, if nothing was judged |
| solid, with a cross | false detection |
| dotted, grey | object that was found |
| dashed, filled | missed object |
| dotted, light grey | counts neither way |

A stroke from the centre through the front shows the heading. matplotlib draws, without a display.
"""

from collections.abc import Iterator
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from mpl_toolkits.mplot3d.art3d import Line3DCollection

from lidar.detection.failures import Mark
from lidar.detection.marked import EDGES, MarkedFrame, box_corners, heading_strokes, thinned

_LINES = {
    Mark.FOUND: (0.9, ":"), Mark.LABELLED: (1.1, "-"), Mark.UNCOUNTED: (0.8, ":"), Mark.MISSED: (1.5, "--"),
    Mark.CORRECT: (1.3, "-"), Mark.DETECTED: (1.3, "-"), Mark.FALSE: (1.3, "-"),
}  # fmt: skip
_POINTS_IN_SPACE = 20_000  # matplotlib's pace


def draw_from_above(
    axis: Axes, frame: MarkedFrame, *, extent: tuple[float, float, float, float], scores: bool = True
) -> None:
    """The frame from above, x to the right and y upwards, within (x0, x1, y0, y1) in metres."""
    x0, x1, y0, y1 = extent
    p = frame.points
    seen = p[(p[:, 0] >= x0) & (p[:, 0] < x1) & (p[:, 1] >= y0) & (p[:, 1] < y1)]
    # Fewer points, larger dots: a pedestrian of twelve points is to be seen.
    size = float(np.clip(150 / np.sqrt(max(len(seen), 1)), 0.7, 2.5))
    for shade, band in _shades(seen):
        axis.plot(band[:, 0], band[:, 1], ".", color=shade, markersize=size, markeredgewidth=0, zorder=1)
    outline = box_corners(frame.boxes)[:, :4, :2]
    centre, reach = frame.boxes[:, :2], np.hypot(frame.boxes[:, 3], frame.boxes[:, 4]) / 2 + 0.5
    near = (centre > np.array([x0, y0]) - reach[:, None]) & (centre < np.array([x1, y1]) + reach[:, None])
    places = np.flatnonzero(near.all(axis=1))
    rings = np.concatenate([outline, outline[:, :1]], axis=1)
    headings = heading_strokes(frame.boxes)[..., :2]
    axis.add_collection(
        LineCollection([rings[k] for k in places], **_style(frame, places), zorder=3),
        autolim=False,
    )
    axis.add_collection(
        LineCollection([headings[k] for k in places], **_style(frame, places), zorder=3),
        autolim=False,
    )
    for place in places:
        colour, mark = frame.colour(place), frame.marks[place]
        if mark == Mark.MISSED:
            axis.add_patch(Polygon(outline[place], facecolor=colour, alpha=0.25, zorder=2))
        if mark == Mark.FALSE:
            axis.plot(*centre[place], marker="x", color=colour, markersize=5, mew=1.2, zorder=4)
        if scores and not np.isnan(frame.scores[place]):
            top = outline[place][outline[place, :, 1].argmax()]
            axis.annotate(
                f"{frame.scores[place]:.2f}", top, (0, 2), textcoords="offset points", fontsize=6, color=colour,
                annotation_clip=True,
            )  # fmt: skip
    axis.set(xlim=(x0, x1), ylim=(y0, y1), aspect="equal")
    axis.tick_params(labelsize=7)


def from_above(
    frame: MarkedFrame, *, extent: tuple[float, float, float, float] | None = None, title: str | None = None
) -> Figure:
    """A picture from above, with a legend.

    Args:
        extent: x0, x1, y0, y1 in metres; by default all points and boxes.
        title: by default the frame's name and how many points it has.
    """
    extent = extent_of(frame) if extent is None else extent
    wide = 7.0
    high = float(np.clip(wide * (extent[3] - extent[2]) / (extent[1] - extent[0]), 3, 10))
    figure, axis = plt.subplots(figsize=(wide + 1.8, high + 0.7), layout="constrained")
    draw_from_above(axis, frame, extent=extent)
    axis.set_xlabel("x (m)", fontsize=8)
    axis.set_ylabel("y (m)", fontsize=8)
    axis.set_title(title or f"{frame.name}: {len(frame.points):,} points", fontsize=9)
    if frame.marks:
        axis.legend(
            handles=legend(frame), fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False
        )
    return figure


def in_space(
    frame: MarkedFrame, *, title: str | None = None, elevation: float = 28, azimuth: float = -160
) -> Figure:
    """A picture in space, from behind and above the sensor by default.

    Args:
        elevation, azimuth: of the view, in degrees, as in matplotlib.
    """
    figure = plt.figure(figsize=(9, 5.5), layout="constrained")
    axis = figure.add_subplot(projection="3d", computed_zorder=False)
    p = thinned(frame.points, _POINTS_IN_SPACE)
    for shade, band in _shades(p):
        axis.plot(*band[:, :3].T, ".", color=shade, markersize=0.9, markeredgewidth=0, zorder=1)
    vertices, strokes = box_corners(frame.boxes), heading_strokes(frame.boxes)
    edges = np.concatenate([vertices[:, np.array(EDGES)], strokes[:, None]], axis=1)
    style = _style(frame, np.repeat(np.arange(len(edges)), edges.shape[1]))
    axis.add_collection(Line3DCollection(list(edges.reshape(-1, 2, 3)), **style, zorder=3))
    for place, mark in enumerate(frame.marks):
        if mark == Mark.FALSE:
            axis.plot(*frame.boxes[place, :3, None], marker="x", color=frame.colour(place), ms=5, zorder=4)
    x0, x1, y0, y1 = extent_of(frame)
    low, high = (np.percentile(p[:, 2], (1, 99)) if len(p) else (-2.0, 1.0)) + np.array([-0.5, 1.0])
    axis.set(xlim=(x0, x1), ylim=(y0, y1), zlim=(low, high), xlabel="x (m)", ylabel="y (m)", zticks=[])
    axis.set_box_aspect((x1 - x0, y1 - y0, high - low), zoom=1.25)
    axis.view_init(elev=elevation, azim=azimuth)
    axis.tick_params(labelsize=7)
    axis.set_title(title or frame.name, fontsize=9)
    if frame.marks:
        axis.legend(
            handles=legend(frame), fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 0.95), frameon=False
        )
    return figure


def legend(frame: MarkedFrame) -> list[Line2D]:
    """What the lines of a frame mean: every class and mark in it once."""
    shown = {
        (mark.value if mark == Mark.UNCOUNTED else f"{name}, {mark.value}"): place
        for place, (mark, name) in enumerate(zip(frame.marks, frame.names, strict=True))
    }
    made = []
    for text, place in sorted(shown.items()):
        mark = frame.marks[place]
        width, style = _LINES[mark]
        cross = {"marker": "x", "markersize": 5} if mark == Mark.FALSE else {}
        made.append(Line2D([], [], color=frame.colour(place), lw=width, ls=style, label=text, **cross))  # type: ignore[arg-type]
    return made


def extent_of(frame: MarkedFrame) -> tuple[float, float, float, float]:
    """x0, x1, y0, y1 around the points, but for the outermost hundredth, and the boxes that count."""
    counted = np.array([mark != Mark.UNCOUNTED for mark in frame.marks], bool)
    parts = [frame.boxes[counted, :2]]
    if len(frame.points):
        parts.append(np.percentile(frame.points[:, :2], (0.5, 99.5), axis=0))
    places = np.concatenate(parts)
    if not len(places):
        return -10.0, 10.0, -10.0, 10.0
    low, high = places.min(axis=0) - 3, places.max(axis=0) + 3
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def _style(frame: MarkedFrame, places: np.ndarray) -> dict[str, Any]:
    """How the lines of these boxes are drawn, for a collection of them."""
    lines = [_LINES[frame.marks[place]] for place in places]
    return {
        "colors": [frame.colour(place) for place in places],
        "linewidths": [width for width, _ in lines],
        "linestyles": [style for _, style in lines],
    }


def _shades(points: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Greys and the points [n, C] of that shade: light at the ground, dark two and a half metres above it.

    Four shades: matplotlib draws points of one colour many times faster than points of many.
    """
    if not len(points):
        return
    ground = np.percentile(points[:, 2], 10)
    shade = np.clip((points[:, 2] - ground) / 2.5 * 4, 0, 3).astype(int)
    for number, grey in enumerate(("0.78", "0.6", "0.4", "0.2")):
        yield grey, points[shade == number]
