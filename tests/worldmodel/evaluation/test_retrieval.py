"""Ranks by hand, chance for ties and for noise."""

import pytest
import torch

from worldmodel.evaluation.retrieval import retrieval


def test_by_hand() -> None:
    """Cosines with the prediction: 0.8, 1 and 0.6; the answers are ranked 2, 1 and 3."""
    candidates = torch.tensor([[0.8, 0.6], [3.0, 0.0], [0.6, 0.8]]).expand(3, 3, 2)
    found = retrieval(torch.tensor([[2.0, 0.0]]).expand(3, 2), candidates, torch.tensor([0, 1, 2]))
    assert found.mrr == pytest.approx((1 / 2 + 1 + 1 / 3) / 3)
    assert found.hit1 == pytest.approx(1 / 3)
    assert found.hit5 == 1.0
    assert found.chance_mrr == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert found.chance_hit1 == pytest.approx(1 / 3)
    assert found.candidates == 3


def test_equal_candidates_score_chance() -> None:
    candidates = torch.ones(4, 10, 3)
    found = retrieval(torch.randn(4, 3), candidates, torch.tensor([0, 3, 5, 9]))
    assert found.mrr == pytest.approx(found.chance_mrr)
    assert found.hit1 == pytest.approx(found.chance_hit1)
    assert found.hit5 == pytest.approx(found.chance_hit5) == pytest.approx(0.5)


def test_noise_scores_chance_and_the_truth_one() -> None:
    generator = torch.Generator().manual_seed(0)
    candidates = torch.randn(2000, 8, 16, generator=generator)
    answer = torch.randint(8, (2000,), generator=generator)
    noise = retrieval(torch.randn(2000, 16, generator=generator), candidates, answer)
    assert noise.mrr == pytest.approx(noise.chance_mrr, abs=0.03)
    assert noise.hit5 == pytest.approx(noise.chance_hit5, abs=0.04)
    right = retrieval(candidates[torch.arange(2000), answer] * 3, candidates, answer)
    assert (right.mrr, right.hit1, right.hit5) == (1.0, 1.0, 1.0)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"\[N, K, D\]"):
        retrieval(torch.zeros(2, 3), torch.zeros(2, 4, 5), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="no rank"):
        retrieval(torch.full((1, 2), torch.nan), torch.ones(1, 3, 2), torch.zeros(1, dtype=torch.long))
