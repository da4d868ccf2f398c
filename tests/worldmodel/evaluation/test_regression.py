"""R^2 against scikit-learn, and of constants."""

import pytest
import torch

from worldmodel.evaluation.regression import r2, r2_components


def case(count: int = 60, dim: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(count, dim, generator=generator) * torch.tensor([1.0, 0.1, 3.0, 0.5]) + 2.0
    return target + 0.3 * torch.randn(count, dim, generator=generator), target


def test_against_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    prediction, target = case()
    expected = metrics.r2_score(target.double(), prediction.double(), multioutput="raw_values")
    torch.testing.assert_close(r2_components(prediction, target), torch.from_numpy(expected))
    assert r2(prediction, target) == pytest.approx(metrics.r2_score(target.double(), prediction.double()))


def test_a_constant_scores_zero_or_less_whatever_the_means() -> None:
    """Pooled over components, the constant would score well here, since w has a mean of its own."""
    _, target = case()
    target[:, 3] += 10
    mean = target.mean(0).expand_as(target)
    assert r2(mean, target) == pytest.approx(0, abs=1e-10)
    assert r2(mean + 0.1, target) < 0
    pooled = 1 - (mean - target).square().sum() / (target - target.mean()).square().sum()
    assert pooled > 0.5


def test_components_without_variance_are_left_out() -> None:
    prediction, target = case()
    still = torch.cat([target[:, :2], torch.zeros(60, 1), 1e-3 * target[:, 3:]], dim=1)
    guess = torch.cat(
        [prediction[:, :2], torch.randn(60, 2, generator=torch.Generator().manual_seed(1))], dim=1
    )
    assert bool(r2_components(guess, still)[2].isnan())
    assert r2(guess, still) == pytest.approx(r2(prediction[:, :2], target[:, :2]))


def test_errors() -> None:
    prediction, target = case()
    with pytest.raises(ValueError, match=r"\[N, C\]"):
        r2(prediction[:, :2], target)
    with pytest.raises(ValueError, match="N >= 2"):
        r2(prediction[:1], target[:1])
    with pytest.raises(ValueError, match="NaN"):
        r2(prediction * torch.nan, target)
    with pytest.raises(ValueError, match="no component"):
        r2(torch.zeros(5, 2), torch.zeros(5, 2))
