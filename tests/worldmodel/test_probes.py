"""Average precision by its definition; the linear probe against the optimality condition and another optimiser."""

import math

import pytest
import torch
import torch.nn.functional as F

from worldmodel.probes import average_precision, fit_linear_probe, mean_average_precision


def brute_average_precision(scores: list[float], positives: list[bool]) -> float:
    """Sum over thresholds, from high to low, of the gain in recall times the precision there."""
    total, recall, area = sum(positives), 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [p for s, p in zip(scores, positives, strict=True) if s >= threshold]
        gained = sum(chosen) / total - recall
        area += gained * sum(chosen) / len(chosen)
        recall += gained
    return area


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("levels", [3, 1000])
def test_average_precision_against_the_definition(seed: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (40,), generator=generator).double() / levels  # few levels: many ties
    positives = torch.rand(40, generator=generator) < 0.3
    positives[seed] = True
    expected = brute_average_precision(scores.tolist(), positives.tolist())
    assert average_precision(scores, positives) == pytest.approx(expected, abs=1e-12)
    order = torch.randperm(40, generator=generator)
    assert average_precision(scores[order], positives[order]) == pytest.approx(expected, abs=1e-12)


def test_average_precision_by_hand() -> None:
    scores, positives = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([True, False, True, False])
    assert average_precision(scores, positives) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision(scores, torch.tensor([True, True, False, False])) == 1.0


def test_constant_scores_give_the_prevalence() -> None:
    positives = torch.arange(10) < 3
    assert average_precision(torch.zeros(10), positives) == pytest.approx(0.3)


def test_average_precision_without_positives_is_nan() -> None:
    assert math.isnan(average_precision(torch.rand(5), torch.zeros(5, dtype=torch.bool)))


def test_average_precision_errors() -> None:
    with pytest.raises(ValueError, match="NaN"):
        average_precision(torch.tensor([0.0, torch.nan]), torch.tensor([True, False]))
    with pytest.raises(ValueError, match=r"\[N\]"):
        average_precision(torch.zeros(3), torch.zeros(4, dtype=torch.bool))


def test_mean_average_precision_skips_absent_classes() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    scores = torch.eye(3)[labels]
    assert mean_average_precision(scores, labels, classes=(0, 1, 2)) == 1.0
    assert math.isnan(mean_average_precision(scores, labels, classes=(2,)))


def clusters(
    count: int = 300, dim: int = 6, classes: int = 3, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, dim, generator=generator)
    noise = torch.randn(count, dim, generator=generator) * torch.logspace(0, -1, dim)
    return centres[labels] + noise, labels


def objective(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, l2: float
) -> torch.Tensor:
    x = x.double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    return F.cross_entropy(x @ weight + bias, y) + 0.5 * l2 * weight.square().sum()


@pytest.mark.parametrize("collinear", [False, True])
@pytest.mark.parametrize("l2", [1e-3, 1.0])
def test_the_gradient_vanishes_at_the_probe(l2: float, collinear: bool) -> None:
    x, y = clusters()
    if collinear:  # as the features of a collapsed encoder
        x = x @ torch.randn(6, 6, generator=torch.Generator().manual_seed(1)) * 0.01 + x[:, :1]
    probe = fit_linear_probe(x, y, num_classes=3, l2=l2)
    weight, bias = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    objective(x, y, weight, bias, l2).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert float(weight.grad.norm()) < 1e-6
    assert float(bias.grad.norm()) < 1e-6


def test_agrees_with_gradient_descent() -> None:
    x, y = clusters()
    probe = fit_linear_probe(x, y, num_classes=3, l2=0.1)
    weight, bias = (torch.zeros(*shape, dtype=torch.float64, requires_grad=True) for shape in ((6, 3), (3,)))
    optimizer = torch.optim.SGD([weight, bias], lr=0.5, momentum=0.9)
    for _ in range(500):
        optimizer.zero_grad()
        objective(x, y, weight, bias, 0.1).backward()
        optimizer.step()
    torch.testing.assert_close(probe.weight, weight.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        probe.bias - probe.bias.mean(), (bias - bias.mean()).detach(), atol=1e-5, rtol=0
    )


def test_scores_are_probabilities_and_separate_clusters() -> None:
    x, y = clusters()
    scores = fit_linear_probe(x, y, num_classes=3).scores(x)
    torch.testing.assert_close(scores.sum(1), torch.ones(300, dtype=torch.float64))
    assert float((scores.argmax(1) == y).double().mean()) > 0.9


def test_an_absent_class_gets_no_probability_to_speak_of() -> None:
    x, y = clusters()
    scores = fit_linear_probe(x, y, num_classes=4).scores(x)
    assert bool(scores.isfinite().all())
    assert float(scores[:, 3].max()) < 1e-3


def test_a_constant_feature_is_harmless() -> None:
    x, y = clusters()
    x = torch.cat([x, torch.full((300, 1), 0.1)], 1)
    shifted = x.clone()
    shifted[:, -1] += 1e-9
    probe = fit_linear_probe(x, y, num_classes=3)
    assert bool(probe.scores(x).isfinite().all())
    torch.testing.assert_close(probe.scores(shifted), probe.scores(x))


def test_works_where_gradients_are_off() -> None:
    x, y = clusters()
    with torch.no_grad():
        probe = fit_linear_probe(x, y, num_classes=3)
    assert torch.equal(probe.weight, fit_linear_probe(x, y, num_classes=3).weight)


def test_probe_errors() -> None:
    x, y = clusters()
    with pytest.raises(ValueError, match=r"features \[N, D\]"):
        fit_linear_probe(x, y[:-1], num_classes=3)
    with pytest.raises(ValueError, match=r"features \[N, D\]"):
        fit_linear_probe(x[:0], y[:0], num_classes=3)
    with pytest.raises(ValueError, match="l2 must be positive"):
        fit_linear_probe(x, y, num_classes=3, l2=0.0)
