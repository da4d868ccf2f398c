"""Do labels and points belong together? Wrong conventions train without an error and give an average precision of 0.

Every box is tried as given and as it would be if its file followed another convention (z at the bottom, heading from
another axis or clockwise, degrees, sizes in another order). A right box holds the points near it; a wrong one leaves
many of them just outside. Where one other convention fits clearly better, over many boxes, that is the finding.

A heading that is off by half a turn leaves the box as it is: only velocities can show it.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import wilcoxon

from lidar.datasets.errors import FrameError
from lidar.datasets.sources import FrameRef
from lidar.detection.labels import LARGEST_HEADING, BoxLabels, LabelledSource, checked_labels
from lidar.detection.scene import membership

NEAR = 40.0  # metres; further objects have too few points to tell
_ENOUGH = 10  # points around a box that says something
_SHELL = 0.8  # metres around a box, beside it and above
_GROUND = 0.3  # metres above and below the bottom face that are not looked at: there is the road
_CLEAR = 0.02  # difference in fit between two conventions that a single box counts for
_LEAST_POOR, _POOR_FIT = (
    3,
    0.6,
)  # boxes with a mean fit so low are wrong, even if they are few; right ones have 0.8
# For another convention to be the finding: boxes that fit differently, mean gain in fit, and chance of seeing that.
_LEAST_BOXES, _LEAST_GAIN, _LEAST_ODDS = 7, 0.03, 0.01
_LEAST_GAIN_OF_ORDERS = 0.15
_SHARE_EMPTY = 0.3  # of near boxes that may be empty


@dataclass(frozen=True, kw_only=True)
class Convention:
    """A way of writing boxes that is not ours.

    Attributes:
        name: for reports.
        fix: what to do about it, a full sentence.
        corrected: from boxes [M, 7] so written to ours.
    """

    name: str
    fix: str
    corrected: Callable[[np.ndarray], np.ndarray]


def _reordered(boxes: np.ndarray, order: Sequence[int]) -> np.ndarray:
    moved = boxes.copy()
    moved[:, 3:6] = boxes[:, order]
    return moved


def _turned(boxes: np.ndarray, heading: np.ndarray) -> np.ndarray:
    moved = boxes.copy()
    moved[:, 6] = heading
    return moved


def _raised(boxes: np.ndarray) -> np.ndarray:
    moved = boxes.copy()
    moved[:, 2] += boxes[:, 5] / 2
    return moved


# Seen from above a box with length and width exchanged is the box turned by a quarter: which of the two it is, the
# vehicles tell, which are longer than wide. Hence two lists, and the fitting one of each pair is tried.
HEADINGS = (
    Convention(
        name="headings are off by a quarter turn (counted from the y axis)",
        fix="Add pi / 2 to the headings: 0 is along +x, counter-clockwise.",
        corrected=lambda b: _turned(b, b[:, 6] + math.pi / 2),
    ),
    Convention(
        name="headings have the wrong sign (clockwise)",
        fix="Negate the headings: they are counter-clockwise from +x, seen from above.",
        corrected=lambda b: _turned(b, -b[:, 6]),
    ),
    Convention(
        name="headings are rotations about a camera's y axis, as KITTI's rotation_y",
        fix="Replace the headings by -(rotation_y + pi / 2).",
        corrected=lambda b: _turned(b, -b[:, 6] - math.pi / 2),
    ),
    Convention(
        name="headings are in degrees",
        fix="Multiply the headings by pi / 180.",
        corrected=lambda b: _turned(b, np.radians(b[:, 6])),
    ),
)
SIZES = (
    Convention(
        name="length and width are exchanged (w, l, h)",
        fix="Write the sizes as length, width, height: the length lies along the heading.",
        corrected=lambda b: _reordered(b, (4, 3, 5)),
    ),
    Convention(
        name="length and width are exchanged and headings run clockwise from -y, as in mmdetection3d before 1.0",
        fix="Write the sizes as length, width, height and replace the headings by -heading - pi / 2.",
        corrected=lambda b: _turned(_reordered(b, (4, 3, 5)), -b[:, 6] - math.pi / 2),
    ),
)
# Place of length, width and height in the other orders of sizes.
ORDERS = tuple(
    Convention(
        name=f"sizes are in the order {order}",
        fix="Write the sizes as length, width, height.",
        corrected=lambda b, places=places: _reordered(b, places),  # type: ignore[misc]
    )
    for order, places in (
        ("(h, w, l), as KITTI writes them", (5, 4, 3)),
        ("(l, h, w)", (3, 5, 4)),
        ("(w, h, l)", (5, 3, 4)),
        ("(h, l, w)", (4, 5, 3)),
    )
)
AS_GIVEN = Convention(name="", fix="", corrected=lambda b: b)
BOTTOM = Convention(
    name="z is the middle of the bottom face",
    fix="Add half the height to z: (x, y, z) is the centre of the box.",
    corrected=_raised,
)


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """What was found.

    Attributes:
        frames: number of frames looked at.
        boxes: number of objects of each class name.
        near, empty: boxes nearer than 40 m, and those of them without a point.
        fit: mean share of the points around a near box that it holds, between 0 and 1; NaN where there are none.
        findings: what is wrong and how to mend it, one full text each; empty if nothing is.
        notes: what could not be told.
    """

    frames: int
    boxes: dict[str, int]
    near: int
    empty: int
    fit: float
    findings: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def text(self) -> str:
        """Some lines for the console."""
        classes = ", ".join(f"{name} {count}" for name, count in self.boxes.items()) or "none"
        held = "" if math.isnan(self.fit) else f"; they hold {self.fit:.0%} of the points around them"
        lines = [
            f"{self.frames} frames, objects: {classes}",
            f"{self.near} boxes nearer than {NEAR:g} m: {self.empty} without a point{held}",
        ]
        lines += [f"WRONG: {finding}" for finding in self.findings]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(
            [*lines, "verdict: " + ("labels fit the points" if self.good else "do not train on this")]
        )


@dataclass
class _Evidence:
    """What the frames told so far; `fits` has one row per near box and one column per convention tried."""

    conventions: tuple[tuple[Convention, Convention], ...]
    fits: list[np.ndarray] = field(default_factory=list)
    names: Counter[str] = field(default_factory=Counter)
    errors: dict[str, FrameError] = field(default_factory=dict)
    near: int = 0
    empty: int = 0
    backwards: int = 0
    moving: int = 0
    counted: int = 0
    miscounted: int = 0
    brightest: float = 0.0
    darkest: float = math.inf


def check_labels(source: LabelledSource, refs: Sequence[FrameRef], *, frames: int = 50) -> LabelReport:
    """Compare the labels of evenly spaced frames with their points.

    Frames that cannot be read, or whose labels cannot, are findings too, not exceptions.

    Args:
        frames: at most so many are read.

    Raises:
        ValueError: if there are no frames.
    """
    if not refs:
        raise ValueError(f"{source.name}: no frames to check")
    chosen = [refs[i] for i in np.unique(np.linspace(0, len(refs) - 1, min(frames, len(refs))).astype(int))]
    labels: dict[FrameRef, BoxLabels] = {}
    errors: dict[str, FrameError] = {}
    for ref in chosen:
        try:
            labels[ref] = source.labels(ref)
        except FrameError as error:
            errors.setdefault(error.problem, error)
    boxes = np.concatenate([np.empty((0, 7), np.float32), *(found.boxes[:, :7] for found in labels.values())])
    degrees = bool((np.abs(boxes[:, 6]) > LARGEST_HEADING).any())
    evidence = _Evidence(conventions=_candidates(boxes), errors=errors)
    for ref, found in labels.items():
        evidence.names.update(found.names)
        try:
            points = source.read(ref)
            if not degrees:
                checked_labels(ref.path, found)
            _look(points, found, evidence)
        except FrameError as error:
            evidence.errors.setdefault(error.problem, error)
    return _report(evidence, frames=len(chosen), degrees=degrees)


def _candidates(boxes: np.ndarray) -> tuple[tuple[Convention, Convention], ...]:
    """What to try, as (order of sizes or headings, place of z), as given first."""
    length, width = boxes[:, 3], boxes[:, 4]
    vehicles = (np.maximum(length, width) > 3) & (np.maximum(length, width) > 1.3 * np.minimum(length, width))
    swapped = bool((length < width)[vehicles].mean() > 0.5) if vehicles.any() else False
    shapes = (AS_GIVEN, *(SIZES if swapped else HEADINGS), *ORDERS)
    return tuple((shape, place) for place in (AS_GIVEN, BOTTOM) for shape in shapes)


def _look(points: np.ndarray, found: BoxLabels, evidence: _Evidence) -> None:
    boxes = found.boxes[:, :7].astype(np.float64)
    evidence.brightest = max(evidence.brightest, float(points[:, 3].max()))
    evidence.darkest = min(evidence.darkest, float(points[:, 3].min()))
    if points.shape[1] > 4:
        points = points[points[:, 4] == 0]  # one sweep: what moves is smeared in the others
    near = np.hypot(boxes[:, 0], boxes[:, 1]) < NEAR
    counts = membership(points, found.boxes).sum(axis=1)
    evidence.near += int(near.sum())
    evidence.empty += int((near & (counts == 0)).sum())
    if found.counts is not None:
        evidence.counted += len(counts)
        evidence.miscounted += int((np.abs(counts - found.counts) > 1).sum())
    if found.boxes.shape[1] > 7:
        velocity = found.boxes[:, 7:9].astype(np.float64)
        moving = np.hypot(*velocity.T) > 1.0  # not so for NaN
        ahead = velocity[:, 0] * np.cos(boxes[:, 6]) + velocity[:, 1] * np.sin(boxes[:, 6])
        evidence.moving += int(moving.sum())
        evidence.backwards += int((moving & (ahead < 0)).sum())
    x, y = np.ascontiguousarray(points[:, :2].T)
    for box in boxes[near]:
        reach = np.linalg.norm(box[3:6]) + _SHELL
        strip = np.flatnonzero(np.abs(x - box[0]) <= reach)
        around = points[strip[np.abs(y[strip] - box[1]) <= reach], :3].astype(np.float64)
        row = np.array(list(_fits(around, box, evidence.conventions)))
        if not np.isnan(row).any():
            evidence.fits.append(row)


def _fits(
    points: np.ndarray, box: np.ndarray, conventions: tuple[tuple[Convention, Convention], ...]
) -> Iterator[float]:
    """How well each convention fits one box: share of the points around that are inside, times the points inside over
    the most that any convention has inside. NaN for all where there are too few points."""
    tried = [place.corrected(shape.corrected(box[None]))[0] for shape, place in conventions]
    found = [_inside_and_around(points, b) for b in tried]
    most = max(inside for inside, _ in found)
    for inside, around in found:
        yield math.nan if most < _ENOUGH else inside / max(inside + around, 1) * inside / most


def _inside_and_around(points: np.ndarray, box: np.ndarray) -> tuple[int, int]:
    """Points well above the bottom face that are inside, and those in the shell beside, above and below."""
    offset = points - box[:3]
    cos, sin = math.cos(box[6]), math.sin(box[6])
    aside = np.abs(
        np.stack([offset[:, 0] * cos + offset[:, 1] * sin, offset[:, 1] * cos - offset[:, 0] * sin])
    )
    half = box[3:6] / 2
    height = offset[:, 2] + half[2]
    ground = min(_GROUND, half[2] / 2)
    within = (aside <= half[:2, None] + 0.05).all(axis=0)
    beside = (aside <= half[:2, None] + _SHELL).all(axis=0)
    inside = within & (height > ground) & (height <= box[5] + 0.05)
    above = beside & (height > ground) & (height <= box[5] + _SHELL) & ~inside
    below = beside & (height < -ground) & (height >= -_SHELL - ground)
    return int(inside.sum()), int(above.sum() + below.sum())


def _report(evidence: _Evidence, *, frames: int, degrees: bool) -> LabelReport:
    findings = [f"{error} (and maybe further frames)" for error in evidence.errors.values()]
    notes = []
    fits = np.array(evidence.fits).reshape(len(evidence.fits), len(evidence.conventions))
    better = _better(fits, evidence.conventions)
    if better is not None:
        wrong = [c for c in evidence.conventions[better] if c is not AS_GIVEN]
        gain = (
            f"they would hold {fits[:, better].mean():.0%} instead of {fits[:, 0].mean():.0%} of their points"
        )
        findings += [f"{c.name} ({gain}). {c.fix}" for c in wrong]
        if not wrong:
            notes.append(
                f"boxes hold only {fits[:, 0].mean():.0%} of the points around them, and no known convention is better"
            )
    if degrees and not any("degrees" in finding for finding in findings):
        findings.append(f"{HEADINGS[-1].name}: they reach beyond two turns. {HEADINGS[-1].fix}")
    if better is None and evidence.near >= _LEAST_BOXES and evidence.empty > _SHARE_EMPTY * evidence.near:
        findings.append(
            f"{evidence.empty} of {evidence.near} boxes nearer than {NEAR:g} m are empty, and no known convention "
            f"explains it. Check that boxes are in the frame of the sensor (not of a camera, the vehicle or the world) "
            f"and belong to the point file of their name."
        )
    if evidence.counted and evidence.miscounted > 0.3 * evidence.counted:
        findings.append(
            f"{evidence.miscounted} of {evidence.counted} boxes hold another number of points than their labels say. "
            f"Check that labels and point files are of one release, and that the points are not cropped."
        )
    if evidence.moving >= _LEAST_BOXES and evidence.backwards > 0.5 * evidence.moving:
        findings.append(
            f"{evidence.backwards} of {evidence.moving} moving objects drive backwards: headings are off by half a "
            f"turn, or velocities have the wrong sign. Add pi to the headings, or negate the velocities."
        )
    if evidence.brightest > 1 or evidence.darkest < 0:
        findings.append(
            f"intensity spans {evidence.darkest:g} to {evidence.brightest:g}, expected 0 to 1. Set "
            f"data.intensity_scale to the sensor's largest value (255 for 8 bits)."
        )
    elif 0 < evidence.brightest <= 1.001 / 255:
        findings.append(
            f"intensity reaches only {evidence.brightest:g}: it was scaled twice. Set data.intensity_scale=1."
        )
    elif evidence.brightest == 0 and math.isfinite(evidence.darkest):
        notes.append("points have no intensity: it is 0 everywhere")
    if len(fits) < _LEAST_BOXES:
        notes.append(
            f"only {len(fits)} boxes have {_ENOUGH} or more points around them: too few to tell conventions apart"
        )
    elif better is None and not _tells(fits, evidence.conventions, HEADINGS[1]) and not degrees:
        notes.append("too few objects stand askew to tell headings that are counted clockwise")
    return LabelReport(
        frames=frames,
        boxes=dict(evidence.names.most_common()),
        near=evidence.near,
        empty=evidence.empty,
        fit=float(fits[:, 0].mean()) if len(fits) else math.nan,
        findings=tuple(findings),
        notes=tuple(notes),
    )


def _better(fits: np.ndarray, conventions: tuple[tuple[Convention, Convention], ...]) -> int | None:
    """The convention that fits best, if it clearly beats the one given: a signed-rank test over boxes."""
    if len(fits) < _LEAST_BOXES:
        return None
    best = int(fits.mean(axis=0).argmax())
    gain = fits[:, best] - fits[:, 0]
    differ = gain[np.abs(gain) > _CLEAR]
    # Cars are nearly as high as wide: an exchange of these two changes little, and has to be plain.
    least = _LEAST_GAIN_OF_ORDERS if conventions[best][0] in ORDERS else _LEAST_GAIN
    if len(differ) < _LEAST_BOXES or gain.mean() < least:
        return None
    return best if wilcoxon(differ, alternative="greater").pvalue < _LEAST_ODDS else None


def _tells(
    fits: np.ndarray, conventions: tuple[tuple[Convention, Convention], ...], wanted: Convention
) -> bool:
    """Whether enough boxes fit differently under a convention."""
    places = [i for i, (shape, place) in enumerate(conventions) if shape is wanted and place is AS_GIVEN]
    return any(int((np.abs(fits[:, i] - fits[:, 0]) > _CLEAR).sum()) >= _LEAST_BOXES for i in places)
