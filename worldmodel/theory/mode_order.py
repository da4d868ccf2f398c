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

from worldmodel.rank_correlation import RankCorrelation, rank_correlation
from worldmodel.theory.mode_diagnostic import Array, Modes


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
        with_regression=rank_correlation(late, rho, resamples=resamples, generator=generator),
        with_covariance=rank_correlation(late, covariance, resamples=resamples, generator=generator),
        covariance_with_regression=rank_correlation(
            covariance, rho, resamples=resamples, generator=generator
        ),
        order=times,
        compared=int(kept.sum()),
        unmoved=int(still.sum()),
    )
