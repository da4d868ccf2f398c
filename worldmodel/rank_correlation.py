"""Spearman's rank correlation with a permutation p-value and a bootstrap interval."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Spearman's rank correlation of n pairs.

    Attributes:
        value: -1 to 1; NaN with fewer than three pairs or where one side is constant.
        p_value: two-sided, by random permutations.
        low, high: 95 % percentile interval, by resampling the pairs.
    """

    value: float
    p_value: float
    low: float
    high: float


def rank_correlation(
    a: Array, b: Array, *, resamples: int, generator: np.random.Generator
) -> RankCorrelation:
    """Rank correlation of a and b, both [n].

    Args:
        resamples: number of permutations, and of bootstrap samples.
        generator: draws both.
    """
    value = float(spearman(a, b)) if len(a) >= 3 else float("nan")
    if np.isnan(value):
        return RankCorrelation(value=value, p_value=value, low=value, high=value)
    shuffled = generator.permuted(np.tile(a, (resamples, 1)), axis=1)
    as_extreme = np.abs(spearman(shuffled, b)) >= abs(value) - 1e-12
    drawn = generator.integers(len(a), size=(resamples, len(a)))
    low, high = np.nanpercentile(spearman(a[drawn], b[drawn]), [2.5, 97.5])
    p_value = (1 + int(as_extreme.sum())) / (1 + resamples)
    return RankCorrelation(value=value, p_value=p_value, low=float(low), high=float(high))


def spearman(a: Array, b: Array) -> Array:
    """Pearson correlation of the mid-ranks along the last axis; NaN where one side is constant."""
    a, b = (rankdata(v, axis=-1) - (v.shape[-1] + 1) / 2 for v in (a, b))
    product, norm = (a * b).sum(-1), np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.where(norm > 0, product / np.where(norm > 0, norm, 1.0), np.nan)
