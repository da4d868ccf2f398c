"""The page about an evaluated detector: figures, where it fails, and how it looks. One file that can be mailed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from lidar.detection.failures import Failure, JudgedFrame, Matching, worst_false, worst_missed
from lidar.detection.failures_counted import counts, distance_names, reasons, recall_by_distance
from lidar.detection.marked import judged_picture
from lidar.detection.pictures import draw_from_above, from_above, in_space
from worldmodel.training.report import Report

FAILURES = 12  # of a kind
PICTURES = 3
AROUND = 9.0  # metres on each side of a failure
LEGEND = (
    "Colour is the class. Solid: detection, crossed out if false. Dashed and filled: missed object. Dotted: object "
    "that was found (grey), or counts neither way (light grey). The stroke shows the heading."
)
Curves = Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluated:
    """What the page is about.

    Attributes:
        title: of the page.
        rules: how the figures were computed, in a sentence.
        table: the figures as text.
        curves: by panel and line, precision at evenly spaced recalls from 0 to 1.
        frames: judged, with detections of at least `score` alone.
        score: the least score of what the pictures show.
        matching: when a detection is right.
        classes: names by label.
        points_of: reads the points [N, 3+] of the frame at a place.
        viewer: file beside the page that shows the frames of the worst failures.
        about: how it was run, a row for every entry.
    """

    title: str
    rules: str
    table: str
    curves: Curves
    frames: Sequence[JudgedFrame]
    score: float
    matching: Matching
    classes: Sequence[str]
    points_of: Callable[[int], np.ndarray]
    viewer: str
    about: Mapping[str, Any]


def write_report(path: Path, evaluated: Evaluated) -> list[int]:
    """Write the page, its figures beside it in figures/.

    Returns:
        Places of the frames that hold the worst failures, worst first.
    """
    frames, classes = evaluated.frames, evaluated.classes
    page = Report(evaluated.title, figures=path.parent / "figures")
    page.heading("Figures")
    page.paragraph(evaluated.rules)
    page.code(evaluated.table)
    if any(len(lines) for lines in evaluated.curves.values()):
        page.figure("precision_recall", precision_recall(evaluated.curves), "Precision over recall")
    least = ", ".join(f"{evaluated.matching.told(v)} ({n})" for n, v in evaluated.matching.least.items())
    page.heading(f"At a score of {evaluated.score:g}")
    page.paragraph(
        f"What follows takes detections with a score of {evaluated.score:g} or more. Best first, each takes the "
        f"closest object of its class that is left; the least closeness of a match is {least}. The averages above "
        f"are matched by the rules of their benchmark. {evaluated.viewer}, beside this page, shows the frames of the "
        f"worst failures in three dimensions."
    )
    page.table(("class", "objects", "found", "false", "recall", "precision"), counts(frames, classes))
    page.paragraph("Recall by distance from the sensor:")
    page.table(("class", *distance_names()), recall_by_distance(frames, classes))
    false, missed = worst_false(frames, classes=classes), worst_missed(frames, classes=classes)
    page.heading("False detections")
    page.paragraph(f"{len(false)} in {len(frames)} frames, those with the highest scores first.")
    if false:
        page.table(("why", "detections"), reasons(false))
    _gallery(page, "false", false[:FAILURES], evaluated)
    page.heading("Missed objects")
    page.paragraph(f"{len(missed)} in {len(frames)} frames, those with the most points first.")
    _gallery(page, "missed", missed[:FAILURES], evaluated)
    _pictures(page, evaluated)
    page.heading("How it was run")
    page.table(("", ""), list(evaluated.about.items()))
    page.write(path)
    mixed = [f for pair in zip(false, missed, strict=False) for f in pair] + false + missed
    return list(dict.fromkeys(failure.place for failure in mixed))


def precision_recall(curves: Curves, *, columns: int = 3) -> Figure:
    """Precision over recall: a panel for each entry that has a curve, a line for each of its curves."""
    shown = {
        title: {name: c for name, c in lines.items() if not np.isnan(c).all()}
        for title, lines in curves.items()
    }
    shown = {title: lines for title, lines in shown.items() if lines} or {"no object counts": {}}
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3 * columns, 2.5 * rows), sharex=True, sharey=True, layout="constrained", squeeze=False
    )  # fmt: skip
    for axis, (title, lines) in zip(axes.flat, shown.items(), strict=False):
        for name, curve in lines.items():
            axis.plot(np.linspace(0, 1, len(curve)), curve, label=name, lw=1.4)
        axis.set_title(title, fontsize=9)
        axis.set(xlim=(0, 1), ylim=(0, 1.02))
        axis.grid(alpha=0.3)
        if lines:
            axis.legend(fontsize=7, loc="upper right")
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    figure.supxlabel("recall", fontsize=9)
    figure.supylabel("precision (aos: orientation similarity)", fontsize=9)
    return figure


def _gallery(page: Report, kind: str, failures: Sequence[Failure], evaluated: Evaluated) -> None:
    if not failures:
        return
    columns = 4
    rows = -(-len(failures) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.6 * columns, 2.85 * rows), layout="constrained", squeeze=False
    )
    for number, (axis, failure) in enumerate(zip(axes.flat, failures, strict=False), start=1):
        points = evaluated.points_of(failure.place)
        frame = judged_picture(evaluated.frames[failure.place], points, classes=evaluated.classes)
        x, y = failure.box[:2]
        draw_from_above(axis, frame, extent=(x - AROUND, x + AROUND, y - AROUND, y + AROUND), scores=False)
        axis.add_patch(
            plt.Circle((x, y), 0.6 * failure.box[3:5].max() + 1, fill=False, color="#b00020", lw=0.8)
        )
        axis.set_title(f"{number}  {failure.name} {_told(failure)}\n{failure.frame_id[-24:]}", fontsize=8)
    for axis in axes.flat[len(failures) :]:
        axis.axis("off")
    page.figure(f"{kind}_worst", figure, f"Circled, in a square of {2 * AROUND:g} m. {LEGEND}")
    table = [
        (n, f.frame_id, f.name, "-" if np.isnan(f.score) else f"{f.score:.2f}", f.points, f"{f.distance:.1f}", f.reason)
        for n, f in enumerate(failures, start=1)
    ]  # fmt: skip
    page.table(("", "frame", "class", "score", "points", "distance (m)", "why"), table)


def _told(failure: Failure) -> str:
    return f"{failure.points} points" if np.isnan(failure.score) else f"{failure.score:.2f}"


def _pictures(page: Report, evaluated: Evaluated) -> None:
    page.heading("Frames")
    places = (
        np.linspace(0, len(evaluated.frames) - 1, min(PICTURES, len(evaluated.frames))).round().astype(int)
    )
    for number, place in enumerate(places.tolist()):
        frame = judged_picture(evaluated.frames[place], evaluated.points_of(place), classes=evaluated.classes)
        page.figure(f"frame_{number}", from_above(frame), f"Frame {frame.name} from above. {LEGEND}")
        if number == 0:
            page.figure("frame_0_space", in_space(frame), f"Frame {frame.name}, from behind the sensor")
