"""KITTI's precision curve: which detections count, at which scores, and what they are matched to.

The benchmark matches one object after the other, in the order of the file, each taking the best detection that is left.
Here the objects at the same place of every frame take theirs at once, for all score thresholds at once: what an object
prefers does not depend on the threshold, only what is left does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lidar.evaluation.kitti_overlap import Pairs

POINTS = 41
VALID, IGNORED, DROPPED = 0, 1, 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Roles:
    """What counts for one class and difficulty: VALID, IGNORED (may be matched, counts neither way) or DROPPED.

    Attributes:
        truth: [G] of objects.
        detection: [D] of detections.
    """

    truth: np.ndarray
    detection: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Precision, and the orientation similarity in its place, at 41 recalls 0, 1/40, ..., 1; NaN if no object counts.

    Attributes:
        precision: [41].
        similarity: [41].
        valid: number of objects that count.
    """

    precision: np.ndarray
    similarity: np.ndarray
    valid: int


def precision_curve(
    pairs: Pairs,
    *,
    roles: Roles,
    least: float,
    frame: np.ndarray,
    scores: np.ndarray,
    alignment: np.ndarray,
    excused: np.ndarray,
) -> Curve:
    """The curve of one class, difficulty and kind of overlap.

    Args:
        pairs: of objects and detections, ordered by object.
        roles: of objects and detections.
        least: an overlap must be greater.
        frame: [G] of objects, ascending.
        scores: [D] of detections.
        alignment: [P] (1 + cos of the difference in alpha) / 2 of the pairs.
        excused: [D] detections that lie in a DontCare region: no false positives.
    """
    valid = int((roles.truth == VALID).sum())
    if valid == 0:
        nothing = np.full(POINTS, np.nan)
        return Curve(precision=nothing, similarity=nothing, valid=0)
    kept = (pairs.overlap > least) & (roles.truth != DROPPED)[pairs.truth]
    kept &= (roles.detection != DROPPED)[pairs.detection]
    truth, detection, overlap = pairs.truth[kept], pairs.detection[kept], pairs.overlap[kept]
    alignment = alignment[kept]
    ignored = (roles.detection == IGNORED)[detection]

    # First without a threshold, by score: the scores at which recall grows.
    order = np.lexsort((detection, -scores[detection], truth))
    alive = (roles.detection != DROPPED)[None]
    taken, _ = _take(truth[order], detection[order], frame, alive)
    counts = (taken[0] >= 0) & (roles.truth[truth[order][taken[0]]] == VALID) & ~ignored[order][taken[0]]
    thresholds = _thresholds(scores[detection[order][taken[0][counts]]], valid)

    # Then at each of these, by overlap; ignored detections last, as they come.
    order = np.lexsort((detection, np.where(ignored, 0, -overlap), ignored, truth))
    alive = alive & (scores >= thresholds[:, None])
    taken, left = _take(truth[order], detection[order], frame, alive)
    hit = (taken >= 0) & (roles.truth[truth[order]] == VALID)[taken] & ~ignored[order][taken]
    positives = hit.sum(axis=1)
    found = positives + (left & (roles.detection == VALID) & ~excused).sum(axis=1)
    aligned = np.where(hit, alignment[order][taken], 0).sum(axis=1)
    return Curve(precision=_monotone(positives, found), similarity=_monotone(aligned, found), valid=valid)


def _take(
    truth: np.ndarray, detection: np.ndarray, frame: np.ndarray, alive: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each object in turn takes the first detection it prefers that is left.

    Args:
        truth: [P] of the pairs, ascending.
        detection: [P] of the pairs, by preference of the object.
        frame: [G] of objects.
        alive: [T, D] detections that exist, at each of T thresholds.

    Returns:
        taken: [T, objects with pairs] place of the pair, -1 where nothing was left.
        left: [T, D] detections that nobody took.
    """
    nobody = np.zeros((len(alive), 1), bool)
    left = np.concatenate([alive, nobody], axis=1)  # and one that never exists, to fill tables up
    row = np.arange(len(alive))[:, None]
    objects, first, counts = np.unique(truth, return_index=True, return_counts=True)
    taken = np.full((len(alive), len(objects)), -1)
    for members in _rounds(frame[objects]):
        column = np.arange(counts[members].max())
        there = column < counts[members, None]
        pair = np.where(there, first[members, None] + column, 0)
        candidate = np.where(there, detection[pair], alive.shape[1])
        free = left[:, candidate]
        best = free.argmax(axis=2)
        member = np.arange(len(members))
        got = free.any(axis=2)
        taken[:, members] = np.where(got, pair[member, best], -1)
        left[row, np.where(got, candidate[member, best], alive.shape[1])] = False
    return taken, left[:, :-1]


def _rounds(frame: np.ndarray) -> Iterator[np.ndarray]:
    """Places of the first member of every frame, then of every second one, and so on; `frame` is ascending."""
    place = np.arange(len(frame)) - np.searchsorted(frame, frame)
    for number in range(place.max(initial=-1) + 1):
        yield np.flatnonzero(place == number)


def _thresholds(scores: np.ndarray, valid: int) -> np.ndarray:
    """Scores, of those recorded, that come nearest to recalls 0, 1/40, 2/40, ...; descending."""
    chosen: list[float] = []
    current = 0.0
    ranked = np.sort(scores)[::-1].tolist()
    for i, score in enumerate(ranked):
        last = i == len(ranked) - 1
        left, right = (i + 1) / valid, (i + 1 if last else i + 2) / valid
        if not last and right - current < current - left:
            continue
        chosen.append(score)
        current += 1 / (POINTS - 1)
    return np.array(chosen[:POINTS], np.float64)


def _monotone(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Shares at the thresholds, 0 beyond them, then at each recall the greatest at this or a higher one."""
    share = np.zeros(POINTS)
    share[: len(part)] = np.where(whole > 0, part / np.maximum(whole, 1), 0)
    return np.maximum.accumulate(share[::-1])[::-1]
