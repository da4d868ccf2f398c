"""How well a label-free score chooses among pretraining runs, judged by a score that needs labels."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from worldmodel.rank_correlation import RankCorrelation, rank_correlation


@dataclass(frozen=True, kw_only=True)
class Selector:
    """A label-free score over the runs of one sweep, held against their labelled score.

    Attributes:
        spearman: with the labelled score; positive if the score orders the runs rightly.
        kendall: the same as Kendall's tau.
        chosen: index of the run the score picks, the first of several with the same best score.
        loss: labelled score of the best run minus that of the chosen one: what choosing without labels costs. The
            mean over the runs that share the best score.
        random_loss: the same for a run picked at random, on average; a selector above it is worse than none.
    """

    spearman: RankCorrelation
    kendall: float
    chosen: int
    loss: float
    random_loss: float


def judge(
    score: np.ndarray,
    labelled: np.ndarray,
    *,
    higher_is_better: bool = True,
    resamples: int = 2000,
    seed: int = 0,
) -> Selector:
    """Judge a label-free score of n runs by their labelled score, higher being better.

    RankMe's use (Garrido et al. 2023): within one method's sweep, take the run with the highest score.

    Args:
        score: [n] label-free score.
        labelled: [n] e.g. accuracy of a frozen probe.
        higher_is_better: of `score`; False for losses and SIGReg.
        resamples: of the permutation test and of the bootstrap.
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
    best = s == s.max()
    return Selector(
        spearman=rank_correlation(s, y, resamples=resamples, generator=np.random.default_rng(seed)),
        kendall=float(kendalltau(s, y).statistic),
        chosen=int(np.argmax(best)),
        loss=float(y.max() - y[best].mean()),
        random_loss=float(y.max() - y.mean()),
    )
