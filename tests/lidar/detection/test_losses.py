"""The elements of detection losses against their formulas, at their limits, and their gradients."""

import math

import pytest
import torch

from lidar.detection.losses import gaussian_focal, known_l1, residual_smooth_l1, sigmoid_focal


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_focal_by_formula():
    logits = normal(50).requires_grad_()
    target = (normal(50, seed=1) > 0).double()
    p = logits.sigmoid()
    expected = torch.where(target == 1, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())
    torch.testing.assert_close(sigmoid_focal(logits, target), expected)
    assert torch.autograd.gradcheck(lambda x: sigmoid_focal(x, target), (logits,))


def test_focal_is_finite_for_any_logit():
    logits = torch.tensor([-1e4, 1e4, -1e4, 1e4], requires_grad=True)
    loss = sigmoid_focal(logits, torch.tensor([0, 1, 1, 0]))
    torch.testing.assert_close(loss, torch.tensor([0, 0, 0.25e4, 0.75e4]))
    loss.sum().backward()
    assert logits.grad.isfinite().all()


def test_smooth_l1_of_codes():
    prediction, target = normal(40, 7).requires_grad_(), normal(40, 7, seed=1)
    error = (prediction - target).abs()
    p, t = prediction[:, 6], target[:, 6]
    error = torch.cat([error[:, :6], (p.sin() * t.cos() - p.cos() * t.sin()).abs()[:, None]], dim=1)
    expected = torch.where(error < 1 / 9, 4.5 * error**2, error - 1 / 18)
    torch.testing.assert_close(residual_smooth_l1(prediction, target), expected)
    assert torch.autograd.gradcheck(lambda x: residual_smooth_l1(x, target), (prediction,))


def test_a_half_turn_costs_nothing():
    target = normal(5, 7)
    turned = target + torch.tensor([0, 0, 0, 0, 0, 0, math.pi])
    assert residual_smooth_l1(turned, target).max() < 1e-12


def test_gaussian_focal_by_formula():
    logits = normal(60).requires_grad_()
    target = torch.rand(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target[::7] = 1.0
    p = logits.sigmoid()
    expected = torch.where(target == 1, -p.log() * (1 - p) ** 2, -(1 - p).log() * p**2 * (1 - target) ** 4)
    torch.testing.assert_close(gaussian_focal(logits, target), expected)
    assert torch.autograd.gradcheck(lambda x: gaussian_focal(x, target), (logits,))


def test_gaussian_focal_is_clamped():
    loss = gaussian_focal(torch.tensor([-50.0, 50.0]), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(loss, torch.full((2,), -math.log(1e-4) * (1 - 1e-4) ** 2), rtol=1e-3, atol=0)


def test_what_is_not_known_costs_nothing():
    prediction = torch.tensor([1.0, 2.0, 5.0], requires_grad=True)
    loss = known_l1(prediction, torch.tensor([0.5, float("nan"), 6.0]))
    assert loss.tolist() == [0.5, 0.0, 1.0]
    loss.sum().backward()
    assert prediction.grad.tolist() == [1.0, 0.0, -1.0]


@pytest.mark.parametrize("loss", [sigmoid_focal, gaussian_focal, known_l1])
def test_half_precision_is_summed_in_fp32(loss):
    assert loss(torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3)).dtype == torch.float32
