"""How well a label-free score chooses among pretraining runs, judged by a score that needs labels."""

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, kw_only=True)
class Selector:
    """A label-free score over the runs of one sweep, held against their labelled score.

    Attributes:
        spearman, kendall: rank correlations with the labelled score; NaN if either is constant.
        interval: 95 % percentile bootstrap interval of spearman over runs.
        p_value: two-sided permutation test of spearman = 0.
        chosen: index of the run the score picks.
        loss: labelled score of the best run minus that of the chosen one: what choosing without labels costs.
        random_loss: the same for a run picked at random, on average; a selector above it is worse than none.
    """

    spearman: float
    kendall: float
    interval: tuple[float, float]
    p_value: float
    chosen: int
    loss: float
    random_loss: float


def judge(
    score: np.ndarray,
    labelled: np.ndarray,
    *,
    higher_is_better: bool = True,
    draws: int = 2000,
    seed: int = 0,
) -> Selector:
    """Judge a label-free score of n runs by their labelled score, higher being better.

    RankMe's use (Garrido et al. 2023): within one method's sweep, take the run with the highest score.

    Args:
        score: [n] label-free score.
        labelled: [n] e.g. accuracy of a frozen probe.
        higher_is_better: of `score`; False for losses and SIGReg.
        draws: of the bootstrap and of the permutation test.
        seed: of both.

    Raises:
        ValueError: if there are fewer than 3 runs, or a number is not finite.
    """
    s, y = np.asarray(score, float), np.asarray(labelled, float)
    if s.ndim != 1 or s.shape != y.shape or len(s) < 3:
        raise ValueError(f"expected two scores of the same 3 or more runs, got {s.shape} and {y.shape}")
    if not (np.isfinite(s).all() and np.isfinite(y).all()):
        raise ValueError("a score is not finite: leave collapsed runs out, and say so")
    s = s if higher_is_better else -s
    rng = np.random.default_rng(seed)
    rho = spearman(s, y)
    again = [spearman(s[i], y[i]) for i in rng.integers(len(s), size=(draws, len(s)))]
    low, high = np.nanpercentile(again, (2.5, 97.5)) if np.isfinite(rho) else (np.nan, np.nan)
    shuffled = np.array([spearman(rng.permutation(s), y) for _ in range(draws)])
    chosen = int(np.argmax(s))
    return Selector(
        spearman=rho,
        kendall=float(stats.kendalltau(s, y).statistic) if np.isfinite(rho) else float("nan"),
        interval=(float(low), float(high)),
        p_value=float((1 + np.sum(np.abs(shuffled) >= abs(rho) - 1e-12)) / (1 + draws)),
        chosen=chosen,
        loss=float(y.max() - y[chosen]),
        random_loss=float(y.max() - y.mean()),
    )


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the ranks of a and b [n], ties sharing their mean rank; NaN if either is constant."""
    ranks = [stats.rankdata(v) - (len(v) + 1) / 2 for v in (a, b)]
    norm = np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1])
    return float(ranks[0] @ ranks[1] / norm) if norm > 0 else float("nan")
