"""Masked means and cosine distances against plain loops; the mean over two processes."""

from collections.abc import Sequence

import pytest
import torch

from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process
from worldmodel.objectives import cosine_distance, masked_mean, unit


def case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(6, 5, generator=generator) < torch.linspace(0.1, 0.9, 6).unsqueeze(1)
    return values, mask


def test_masked_mean_is_pooled_over_the_batch() -> None:
    values, mask = case()
    picked = [float(v) for v, m in zip(values.flatten(), mask.flatten(), strict=True) if m]
    assert float(masked_mean(values, mask)) == pytest.approx(sum(picked) / len(picked), abs=1e-14)


def test_masked_mean_ignores_nan_outside_the_mask() -> None:
    values, mask = case()
    spoilt = torch.where(mask, values, torch.nan).requires_grad_()
    mean = masked_mean(spoilt, mask)
    mean.backward()
    torch.testing.assert_close(mean.detach(), masked_mean(values, mask))
    torch.testing.assert_close(spoilt.grad, mask / mask.sum(dtype=torch.float64))


def test_masked_mean_of_nothing_is_zero() -> None:
    values, mask = case()
    assert float(masked_mean(values, torch.zeros_like(mask))) == 0.0


def test_masked_mean_of_bf16_is_computed_in_fp32() -> None:
    values = torch.full((4096,), 1.0, dtype=torch.bfloat16)
    mean = masked_mean(values, torch.arange(4096) < 4095)  # bf16 can count to 256 only
    assert mean.dtype == torch.float32
    assert float(mean) == 1.0


def test_cosine_distance() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(2, 7, 3, 4, generator=generator) for _ in range(2))
    expected = 1 - torch.cosine_similarity(a.double(), b.double(), dim=1)
    value = cosine_distance(prediction=unit(a), target=unit(b))
    torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(cosine_distance(prediction=unit(a), target=unit(a)), torch.zeros(2, 3, 4))
    assert cosine_distance(prediction=unit(a.bfloat16()), target=unit(b.bfloat16())).dtype == torch.float32


def test_unit_of_a_zero_vector_is_zero_with_a_finite_gradient() -> None:
    z = torch.zeros(1, 4, requires_grad=True)
    unit(z).sum().backward()
    assert not unit(z).any()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())


def _masked_loss(
    parameters: Sequence[torch.Tensor], batch: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    values, mask = batch
    return masked_mean((values @ parameters[0]).square(), mask)


@pytest.mark.parametrize("sizes", [(3, 3), (1, 5), (0, 6)])
def test_masked_mean_over_two_processes(two_processes: TwoProcesses, sizes: tuple[int, int]) -> None:
    values, mask = case()
    assert_equals_one_process(
        two_processes,
        _masked_loss,
        parameters=[torch.eye(5, dtype=torch.float64) + 0.1],
        shares=list(zip(values.split(list(sizes)), mask.split(list(sizes)), strict=True)),
        joined=(values, mask),
        atol=1e-12,
    )
