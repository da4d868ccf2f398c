"""Means over seeds with Student t intervals, and paired differences of two arms run with the same seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student


@dataclass(frozen=True, kw_only=True)
class MeanOverSeeds:
    """Mean over seeds.

    Attributes:
        mean: over `count` seeds.
        sd: sample standard deviation; NaN for one seed.
        low, high: of the interval at `confidence`; NaN for one seed.
    """

    mean: float
    sd: float
    low: float
    high: float
    count: int
    confidence: float


def interval(values: Sequence[float], *, confidence: float = 0.95) -> MeanOverSeeds:
    """Mean, standard deviation and t interval of one number per seed.

    Raises:
        ValueError: without values, or if one is not finite: a failed seed is no seed to leave out silently.
    """
    if not values or not all(math.isfinite(v) for v in values):
        raise ValueError(f"an interval needs finite values, got {list(values)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    count, mean = len(values), statistics.fmean(values)
    sd = statistics.stdev(values) if count > 1 else math.nan
    half = (
        float(student.ppf((1 + confidence) / 2, count - 1)) * sd / math.sqrt(count) if count > 1 else math.nan
    )
    return MeanOverSeeds(
        mean=mean, sd=sd, low=mean - half, high=mean + half, count=count, confidence=confidence
    )


def paired(a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95) -> MeanOverSeeds:
    """Mean of a - b, where entry i of both comes from the same seed: what the seed adds to both cancels.

    Raises:
        ValueError: if the lengths differ.
    """
    if len(a) != len(b):
        raise ValueError(f"paired values need the same seeds, got {len(a)} and {len(b)}")
    return interval([x - y for x, y in zip(a, b, strict=True)], confidence=confidence)
