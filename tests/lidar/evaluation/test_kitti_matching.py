"""Matching a whole data set at once equals the benchmark's rules, object after object, on crowded random frames."""

import numpy as np
import pytest

from lidar.evaluation.kitti_matching import DROPPED, IGNORED, VALID, Roles, precision_curve
from lidar.evaluation.kitti_overlap import Pairs

LEAST = 0.5


class Scene:
    """Frames of objects and detections with random roles, scores and overlaps; ties everywhere."""

    def __init__(self, seed: int, *, frames: int, objects: int, detections: int) -> None:
        rng = np.random.default_rng(seed)
        self.truth_frame = np.sort(rng.integers(frames, size=objects))
        self.detection_frame = np.sort(rng.integers(frames, size=detections))
        self.roles = Roles(
            truth=rng.choice([VALID, VALID, IGNORED, DROPPED], objects),
            detection=rng.choice([VALID, VALID, VALID, IGNORED, DROPPED], detections),
        )
        self.scores = rng.integers(0, 12, detections) / 12
        self.overlap = rng.integers(0, 11, (objects, detections)) / 10
        self.overlap[self.truth_frame[:, None] != self.detection_frame] = 0
        self.alignment = rng.uniform(0, 1, (objects, detections))
        self.excused = rng.random(detections) < 0.1

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        truth, detection = self.overlap.nonzero()
        pairs = Pairs(truth=truth, detection=detection, overlap=self.overlap[truth, detection])
        curve = precision_curve(
            pairs,
            roles=self.roles,
            least=LEAST,
            frame=self.truth_frame,
            scores=self.scores,
            alignment=self.alignment[truth, detection],
            excused=self.excused,
        )
        return curve.precision, curve.similarity

    def recorded_scores(self) -> list[float]:
        """The first pass: each object takes the detection of highest score."""
        left = self.roles.detection != DROPPED
        scores = []
        for g in np.flatnonzero(self.roles.truth != DROPPED):
            able = [d for d in np.flatnonzero(left) if self.overlap[g, d] > LEAST]
            if able:
                best = max(able, key=lambda d: (self.scores[d], -d))
                left[best] = False
                if self.roles.truth[g] == VALID and self.roles.detection[best] == VALID:
                    scores.append(float(self.scores[best]))
        return scores

    def counts(self, threshold: float) -> tuple[int, int, float]:
        """The second pass: true and false positives and summed similarity at a threshold."""
        left = (self.roles.detection != DROPPED) & (self.scores >= threshold)
        hits, similarity = 0, 0.0
        for g in np.flatnonzero(self.roles.truth != DROPPED):
            able = [d for d in np.flatnonzero(left) if self.overlap[g, d] > LEAST]
            valid = [d for d in able if self.roles.detection[d] == VALID]
            if valid:
                best = max(valid, key=lambda d: (self.overlap[g, d], -d))
            elif able:
                best = min(able)
            else:
                continue
            left[best] = False
            if self.roles.truth[g] == VALID and self.roles.detection[best] == VALID:
                hits += 1
                similarity += self.alignment[g, best]
        false = left & (self.roles.detection == VALID) & ~self.excused
        return hits, int(false.sum()), similarity

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        count = int((self.roles.truth == VALID).sum())
        scores = sorted(self.recorded_scores(), reverse=True)
        thresholds, recall = [], 0.0
        for i, score in enumerate(scores):
            if i < len(scores) - 1 and (i + 2) / count - recall < recall - (i + 1) / count:
                continue
            thresholds.append(score)
            recall += 1 / 40
        precision, similarity = np.zeros(41), np.zeros(41)
        for k, threshold in enumerate(thresholds[:41]):
            hits, false, summed = self.counts(threshold)
            precision[k] = hits / (hits + false) if hits + false else 0
            similarity[k] = summed / (hits + false) if hits + false else 0
        return (np.array([curve[k:].max() for k in range(41)]) for curve in (precision, similarity))  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_rules_object_by_object(seed: int) -> None:
    # From nearly one object for each detection to many that contend for few, and the other way round.
    scene = Scene(
        seed, frames=(1, 5, 30)[seed % 3], objects=(40, 120)[seed % 2], detections=(60, 150)[seed // 6]
    )
    precision, similarity = scene.curve()
    expected, expected_similarity = scene.expected()
    assert precision.max() > 0
    assert np.abs(precision - expected).max() < 1e-12
    assert np.abs(similarity - expected_similarity).max() < 1e-12


def test_no_pairs() -> None:
    nothing = np.zeros(0, np.int64)
    curve = precision_curve(
        Pairs(truth=nothing, detection=nothing, overlap=np.zeros(0)),
        roles=Roles(truth=np.array([VALID]), detection=nothing),
        least=LEAST,
        frame=np.array([0]),
        scores=np.zeros(0),
        alignment=np.zeros(0),
        excused=np.zeros(0, bool),
    )
    assert curve.valid == 1
    assert not curve.precision.any()
