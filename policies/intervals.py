"""How sure a success rate is: intervals of one rate, of several training seeds, and of the difference of two agents."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its confidence interval; NaN if there is nothing to estimate it from."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Two agents on the same problems.

    Attributes:
        first_only, second_only: problems that one of them solved and the other did not.
        difference: success rate of the first minus that of the second, with its interval (Bonett and Price 2012).
        p_value: exact two-sided McNemar test, that is a sign test of the problems only one of them solved.
    """

    first_only: int
    second_only: int
    difference: Interval
    p_value: float


def wilson(successes: float, n: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a binomial rate (Wilson 1927), without continuity correction.

    Unlike rate +- z * standard error it neither leaves [0, 1] nor shrinks to a point at 0 or n successes. The number of
    successes need not be whole: it may be a mean.

    Raises:
        ValueError: unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials are impossible")
    if n == 0:
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"))
    z = float(norm.ppf((1 + confidence) / 2))
    rate, weight = successes / n, z * z / n
    centre = (rate + weight / 2) / (1 + weight)
    half = z / (1 + weight) * ((rate * (1 - rate) + weight / 4) / n) ** 0.5
    # At the ends the bound is exact; rounding would leave 1e-17 there.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(value=rate, low=low, high=high)


def seeds_and_problems(
    success: np.ndarray, *, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Mean success [S, N] of S training seeds on the same N problems, with a bootstrap interval over both.

    Seeds and problems are resampled independently of each other (crossed: every seed meets every problem), so the
    interval speaks about another training run on other problems. With one seed it knows nothing of training runs; with
    fewer than about five it is too narrow, and if all or none succeeded a point, which `policies.report.rate` widens.

    Raises:
        ValueError: if success is not [S, N] with S, N >= 1.
    """
    table = np.asarray(success, dtype=float)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"expected success [training seeds, problems], got {table.shape}")
    rng = np.random.default_rng(seed)
    rows, columns = table.shape
    # Multinomial counts in place of indices: the mean of a resample is a bilinear form.
    by_row = rng.multinomial(rows, np.full(rows, 1 / rows), resamples) / rows
    by_column = rng.multinomial(columns, np.full(columns, 1 / columns), resamples) / columns
    means = np.einsum("rs,sn,rn->r", by_row, table, by_column, optimize=True)
    low, high = np.percentile(means, [50 * (1 - confidence), 50 * (1 + confidence)])
    return Interval(value=float(table.mean()), low=float(low), high=float(high))


def compare(first: np.ndarray, second: np.ndarray, *, confidence: float = 0.95) -> PairedComparison:
    """Compare success [N] of two agents on the same problems, in the same order.

    Raises:
        ValueError: if the two are not of the same problems.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"a paired comparison needs the same problems for both, got {a.shape} and {b.shape}")
    a_only, b_only, n = int((a & ~b).sum()), int((b & ~a).sum()), len(a)
    # Bonett and Price: the Wald interval with one pair added to either discordant cell.
    p, q = (a_only + 1) / (n + 2), (b_only + 1) / (n + 2)
    half = float(norm.ppf((1 + confidence) / 2)) * ((p + q - (p - q) ** 2) / (n + 2)) ** 0.5
    difference = Interval(
        value=(a_only - b_only) / n, low=max(-1.0, p - q - half), high=min(1.0, p - q + half)
    )
    discordant = a_only + b_only
    p_value = float(binomtest(a_only, discordant).pvalue) if discordant else 1.0
    return PairedComparison(first_only=a_only, second_only=b_only, difference=difference, p_value=p_value)
