"""When each mode was learnt, and whether covariance or regression says so.

Reading a `ModeReport`: order is a time, so a *negative* rank correlation means "higher is earlier".

- MAE-like: high-lambda / low-rho modes come first. Spearman(order, lambda) is clearly negative, Spearman(order, rho)
  is not.
- JEPA-like: Spearman(order, rho) is negative beyond what lambda explains.
- Neither: where lambda and rho rank the modes alike (`covariance_with_regression` near 1) the data cannot tell them
  apart, whatever the other two say. This is the first number to look at.

The caveats of `worldmodel.theory.mode_diagnostic` hold: EMA targets, nonlinear encoders and SIGReg are outside the
theory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from worldmodel.theory.mode_diagnostic import Array, Modes


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Spearman's rank correlation over modes.

    Attributes:
        value: -1 to 1; NaN with fewer than three modes or where one side is constant.
        p_value: two-sided, by random permutations of the modes.
        low, high: 95 % percentile interval, by resampling the modes.
    """

    value: float
    p_value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ModeReport:
    """What the learning order goes with.

    Attributes:
        with_regression: Spearman(order, rho).
        with_covariance: Spearman(order, lambda).
        covariance_with_regression: Spearman(lambda, rho) of the modes compared.
        order: [K] step at which each mode was half learnt, as given; NaN: it did not move.
        compared: how many modes entered.
        unmoved: how many of the K did not move.
    """

    with_regression: RankCorrelation
    with_covariance: RankCorrelation
    covariance_with_regression: RankCorrelation
    order: Array
    compared: int
    unmoved: int


def learning_order(
    energies: ArrayLike, steps: ArrayLike | Sequence[float], *, min_change: float = 0.05
) -> Array:
    """Step at which each mode first covered half of the way from its initial to its final energy, [K].

    Linear between checkpoints. A mode that shrinks is treated alike: half of its way down. A mode whose energy changes
    by less than min_change of the larger of the two ends has no order: NaN.

    Args:
        energies: [T, K], one row per checkpoint, from `mode_energy`; the first row is the untrained model.
        steps: [T], rising.

    Raises:
        ValueError: if shapes do not fit, T < 2, steps do not rise, or an energy is negative or not finite.
    """
    energy, at = np.asarray(energies, float), np.asarray(steps, float)
    if energy.ndim != 2 or len(energy) < 2 or at.shape != (len(energy),):
        raise ValueError(
            f"expected energies [T, K] and steps [T] with T >= 2, got {energy.shape} and {at.shape}"
        )
    if not (np.diff(at) > 0).all():
        raise ValueError("steps must rise from checkpoint to checkpoint: sort them and drop duplicates")
    if not (np.isfinite(energy).all() and (energy >= 0).all()):
        raise ValueError("energies must be finite and not negative: a checkpoint's features are broken")
    first, last = energy[0], energy[-1]
    moved = np.abs(last - first) > min_change * np.maximum(first, last)
    way = (energy - first) / np.where(moved, last - first, 1.0)  # [T, K], 0 to 1 from first to last
    after = np.argmax(way >= 0.5, axis=0)  # never 0 for a mode that moved
    before, mode = np.maximum(after - 1, 0), np.arange(energy.shape[1])
    rise = np.where(moved, way[after, mode] - way[before, mode], 1.0)
    part = (0.5 - way[before, mode]) / rise
    return np.where(moved, at[before] + part * (at[after] - at[before]), np.nan)


def mode_report(
    *,
    order: ArrayLike,
    modes: Modes,
    unmoved: Literal["drop", "last"] = "drop",
    resamples: int = 2000,
    seed: int = 0,
) -> ModeReport:
    """Rank correlation of the learning order with rho and with lambda.

    Args:
        order: [K] from `learning_order`, in the order of the modes.
        modes: the modes the energies were computed with.
        unmoved: a mode without an order is left out ("drop": it may have been there from the start), or counts as
            later than all others ("last": right if training plainly stopped before it).
        resamples: number of permutations, and of bootstrap samples.
        seed: of both.

    Raises:
        ValueError: if there is not one order per mode, or resamples < 1.
    """
    times = np.asarray(order, float)
    if times.shape != modes.regression.shape:
        raise ValueError(
            f"expected one order for each of the {len(modes.regression)} modes, got shape {times.shape}"
        )
    if resamples < 1:
        raise ValueError(f"resamples must be 1 or more, got {resamples}")
    still = np.isnan(times)
    kept = np.ones_like(still) if unmoved == "last" else ~still
    late = np.where(still, np.inf, times)[kept]
    rho, covariance = modes.regression[kept], modes.covariance[kept]
    generator = np.random.default_rng(seed)
    return ModeReport(
        with_regression=_spearman(late, rho, resamples, generator),
        with_covariance=_spearman(late, covariance, resamples, generator),
        covariance_with_regression=_spearman(covariance, rho, resamples, generator),
        order=times,
        compared=int(kept.sum()),
        unmoved=int(still.sum()),
    )


def _spearman(a: Array, b: Array, resamples: int, generator: np.random.Generator) -> RankCorrelation:
    value = float(_rank_correlation(a, b)) if len(a) >= 3 else float("nan")
    if np.isnan(value):
        return RankCorrelation(value=value, p_value=value, low=value, high=value)
    shuffled = generator.permuted(np.tile(a, (resamples, 1)), axis=1)
    as_extreme = np.abs(_rank_correlation(shuffled, b)) >= abs(value) - 1e-12
    drawn = generator.integers(len(a), size=(resamples, len(a)))
    low, high = np.nanpercentile(_rank_correlation(a[drawn], b[drawn]), [2.5, 97.5])
    p_value = (1 + int(as_extreme.sum())) / (1 + resamples)
    return RankCorrelation(value=value, p_value=p_value, low=float(low), high=float(high))


def _rank_correlation(a: Array, b: Array) -> Array:
    """Pearson correlation of the mid-ranks along the last axis; NaN where one side is constant."""
    a, b = (rankdata(v, axis=-1) - (v.shape[-1] + 1) / 2 for v in (a, b))
    product, norm = (a * b).sum(-1), np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.where(norm > 0, product / np.where(norm > 0, norm, 1.0), np.nan)
