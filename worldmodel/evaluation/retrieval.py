"""Retrieval of the next view by its predicted embedding (the protocol of SIE, as in arXiv 2505.03176, table 10)."""

from dataclasses import dataclass

import torch

from worldmodel.objectives import unit


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Mean over queries of the reciprocal rank and of being among the first 1 and 5, and what chance gives."""

    mrr: float
    hit1: float
    hit5: float
    chance_mrr: float
    chance_hit1: float
    chance_hit5: float
    candidates: int


def retrieval(prediction: torch.Tensor, candidates: torch.Tensor, answer: torch.Tensor) -> Retrieval:
    """Rank each query's own candidates by their cosine with the prediction.

    Ties are broken as by a coin: a prediction equally close to all candidates scores exactly chance.

    Args:
        prediction: [N, D].
        candidates: [N, K, D]: the other views of the same object.
        answer: [N] int64, which candidate is the predicted view.

    Raises:
        ValueError: if the shapes do not fit or a feature is not finite.
    """
    if (
        candidates.ndim != 3
        or prediction.shape != (len(candidates), candidates.shape[-1])
        or answer.shape != prediction.shape[:1]
        or candidates.numel() == 0
    ):
        raise ValueError(
            f"expected predictions [N, D], candidates [N, K, D] and answers [N], got {tuple(prediction.shape)}, "
            f"{tuple(candidates.shape)} and {tuple(answer.shape)}"
        )
    if not bool(prediction.isfinite().all() and candidates.isfinite().all()):
        raise ValueError("a prediction or candidate holds NaN or infinite numbers: it has no rank")
    scores = torch.einsum("nd,nkd->nk", unit(prediction, -1), unit(candidates, -1))
    right = scores.gather(1, answer.unsqueeze(1))
    count = scores.shape[1]
    above = (scores > right).sum(1)
    tied = (scores == right).sum(1)  # with the answer itself
    harmonic = torch.cat([torch.zeros(1), 1 / torch.arange(1, count + 1)]).double().cumsum(0)
    reciprocal = (harmonic[above + tied] - harmonic[above]) / tied

    def hit(k: int) -> float:
        return float(((k - above).clamp_min(0).minimum(tied) / tied).double().mean())

    return Retrieval(
        mrr=float(reciprocal.mean()),
        hit1=hit(1),
        hit5=hit(5),
        chance_mrr=float(harmonic[count]) / count,
        chance_hit1=1 / count,
        chance_hit5=min(5, count) / count,
        candidates=count,
    )
