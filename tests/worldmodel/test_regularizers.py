"""Variance hinge and VICReg terms against plain loops, and over two processes."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process
from worldmodel.regularizers import covariance_term, variance_hinge, variance_term

GAMMA = 1 / 16


def loop_hinge(features: torch.Tensor, mask: torch.Tensor, *, gamma: float) -> float:
    values = []
    for sample, cells in zip(features.double(), mask, strict=True):
        z = sample[:, cells]  # [D, n]
        if z.shape[1] >= 2:
            values.append(float(torch.relu(gamma - (z.var(dim=1) + 1e-4).sqrt()).mean()))
    return sum(values) / len(values) if values else 0.0


def hinge_case(batch: int = 4, dim: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, dim, 5, 6, generator=generator, dtype=torch.float64) * 0.05
    share = torch.linspace(0.1, 0.9, batch).view(-1, 1, 1)
    return features, torch.rand(batch, 5, 6, generator=generator) < share


def test_hinge_at_collapse() -> None:
    features = torch.nn.functional.normalize(torch.ones(2, 256, 4, 4), dim=1)
    value = variance_hinge(features, torch.ones(2, 4, 4, dtype=torch.bool), gamma=GAMMA)
    assert float(value) == pytest.approx(0.0525, abs=1e-6)


@pytest.mark.parametrize(("excess", "expected"), [(1e-7, 0.0), (1.0, 0.0), (-1e-4, None)])
def test_hinge_ends_where_the_deviation_reaches_gamma(excess: float, expected: float | None) -> None:
    deviation = math.sqrt(1 / 256 - 1e-4 + excess)
    column = torch.tensor([1.0, -1.0]).double() * deviation / math.sqrt(2)  # unbiased variance deviation^2
    features = column.view(1, 1, 1, 2).expand(1, 8, 1, 2)
    value = float(variance_hinge(features, torch.ones(1, 1, 2, dtype=torch.bool), gamma=GAMMA))
    assert value == expected if expected is not None else 0 < value < 1e-3


def test_hinge_is_per_sample() -> None:
    features, mask = hinge_case()
    assert float(variance_hinge(features, mask, gamma=GAMMA)) == pytest.approx(
        loop_hinge(features, mask, gamma=GAMMA), abs=1e-12
    )


def test_samples_with_fewer_than_two_cells_are_left_out() -> None:
    features, mask = hinge_case()
    mask[0] = False
    mask[1] = False
    mask[1, 2, 3] = True
    value = float(variance_hinge(features, mask, gamma=GAMMA))
    assert value == pytest.approx(float(variance_hinge(features[2:], mask[2:], gamma=GAMMA)), abs=1e-12)


def test_hinge_without_any_cell_is_zero_with_zero_gradient() -> None:
    features = hinge_case()[0].requires_grad_()
    value = variance_hinge(features, torch.zeros(4, 5, 6, dtype=torch.bool), gamma=GAMMA)
    value.backward()
    assert float(value.detach()) == 0.0
    assert features.grad is not None
    assert not features.grad.any()


def test_values_outside_the_mask_do_not_matter_not_even_nan() -> None:
    features, mask = hinge_case()
    expected = variance_hinge(features, mask, gamma=GAMMA)
    spoilt = torch.where(mask.unsqueeze(1), features, torch.nan).requires_grad_()
    value = variance_hinge(spoilt, mask, gamma=GAMMA)
    value.backward()
    torch.testing.assert_close(value.detach(), expected)
    assert spoilt.grad is not None
    assert bool(spoilt.grad.isfinite().all())


def test_hinge_gradient_against_finite_differences_and_finite_at_collapse() -> None:
    features, mask = hinge_case(batch=2, dim=3)
    assert torch.autograd.gradcheck(
        lambda z: variance_hinge(z, mask, gamma=GAMMA), (features.requires_grad_(),)
    )
    constant = torch.full((1, 4, 2, 2), 0.5, requires_grad=True)
    variance_hinge(constant, torch.ones(1, 2, 2, dtype=torch.bool), gamma=GAMMA).backward()
    assert constant.grad is not None
    assert bool(constant.grad.isfinite().all())


def _hinge_loss(parameters: Sequence[torch.Tensor], batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    features, mask = batch
    mixed = torch.einsum("bdhw,de->behw", features, parameters[0])
    return variance_hinge(mixed, mask, gamma=GAMMA)


@pytest.mark.parametrize("sizes", [(2, 2), (1, 3)])
def test_hinge_over_two_processes(two_processes: TwoProcesses, sizes: tuple[int, int]) -> None:
    features, mask = hinge_case(dim=6)
    mask[1] = False  # ranks then also differ in usable samples
    assert_equals_one_process(
        two_processes,
        _hinge_loss,
        parameters=[torch.eye(6, dtype=torch.float64) * 0.9],
        shares=list(zip(features.split(list(sizes)), mask.split(list(sizes)), strict=True)),
        joined=(features, mask),
        atol=1e-12,
    )


# VICReg.


def three_tests(seed: int = 0) -> torch.Tensor:
    """[3 tests, 20 samples, 5 features], correlated."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(3, 20, 5, generator=generator, dtype=torch.float64)
    return z @ torch.randn(5, 5, generator=generator, dtype=torch.float64) * 0.4 + 1.0


def test_vicreg_terms_against_torch_cov() -> None:
    z = three_tests()
    variances, covariances = [], []
    for samples in z:
        matrix = torch.cov(samples.T)
        variances.append(float(torch.relu(1 - (matrix.diagonal() + 1e-4).sqrt()).mean()))
        covariances.append(float((matrix - torch.diag(matrix.diagonal())).square().sum()) / 5)
    assert float(variance_term(z)) == pytest.approx(sum(variances) / 3, rel=1e-12)
    assert float(covariance_term(z)) == pytest.approx(sum(covariances) / 3, rel=1e-12)


def test_vicreg_of_white_and_of_collapsed_embeddings() -> None:
    white = torch.linalg.qr(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).double())[0]
    white = torch.linalg.qr(white - white.mean(0))[0] * math.sqrt(63)  # exactly unit covariance
    assert float(covariance_term(white)) == pytest.approx(0, abs=1e-20)
    assert float(variance_term(white)) == 0.0
    collapsed = torch.ones(64, 8, dtype=torch.float64)
    assert float(variance_term(collapsed)) == pytest.approx(1 - 0.01)
    assert float(covariance_term(collapsed)) == 0.0


@pytest.mark.parametrize("term", [variance_term, covariance_term])
def test_vicreg_counts_only_what_the_mask_names(term: Callable[..., torch.Tensor]) -> None:
    z = three_tests()[:1]
    mask = torch.arange(20).unsqueeze(0) % 3 > 0
    spoilt = torch.where(mask.unsqueeze(-1), z, torch.nan).requires_grad_()
    value = term(spoilt, mask=mask)
    value.backward()
    torch.testing.assert_close(value.detach(), term(z[:, mask[0]]))
    assert spoilt.grad is not None
    assert bool(spoilt.grad.isfinite().all())
    nothing = term(z, mask=torch.zeros_like(mask))
    assert float(nothing) == 0.0


@pytest.mark.parametrize("term", [variance_term, covariance_term])
def test_vicreg_gradients_and_precision(term: Callable[..., torch.Tensor]) -> None:
    z = three_tests()[:2, :6]
    assert torch.autograd.gradcheck(term, (z.requires_grad_(),))


@pytest.mark.parametrize("term", [variance_term, covariance_term])
def test_vicreg_inside_autocast_is_computed_in_fp32(term: Callable[..., torch.Tensor]) -> None:
    z = three_tests()[0].float()
    outside, inside = z.clone().requires_grad_(), z.clone().requires_grad_()
    expected = term(outside)
    expected.backward()
    with torch.autocast("cpu", torch.bfloat16):
        value = term(inside)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
    assert outside.grad is not None
    assert inside.grad is not None
    torch.testing.assert_close(inside.grad, outside.grad)


def test_small_covariances_beside_a_large_variance() -> None:
    """Squares of the diagonal are 1e8 times those of the rest: fp32 has no room for both in one sum."""
    white = torch.linalg.qr(torch.randn(512, 4, generator=torch.Generator().manual_seed(0)).double())[0]
    z = torch.linalg.qr(white - white.mean(0))[0] * math.sqrt(511) * 100
    z[:, 1] += 1e-4 * z[:, 0]
    assert float(covariance_term(z)) == pytest.approx(2 * (1e4 * 1e-4) ** 2 / 4, rel=1e-6)
    assert float(covariance_term(z.float())) == pytest.approx(0.5, rel=0.01)


def test_vicreg_errors() -> None:
    with pytest.raises(ValueError, match=r"z \[\.\.\., N, D\]"):
        variance_term(torch.zeros(4))
    with pytest.raises(ValueError, match=r"mask \[\.\.\., N\]"):
        covariance_term(torch.zeros(4, 3), mask=torch.ones(3, dtype=torch.bool))


def _vicreg(parameters: Sequence[torch.Tensor], batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    z, mask = batch
    z = z @ parameters[0]
    return variance_term(z, mask=mask, gamma=3.0) + covariance_term(z, mask=mask)


@pytest.mark.parametrize("sizes", [(10, 10), (1, 19), (0, 20)])
def test_vicreg_over_two_processes(two_processes: TwoProcesses, sizes: tuple[int, int]) -> None:
    z = three_tests()
    mask = torch.arange(60).view(3, 20) % 4 > 0
    assert_equals_one_process(
        two_processes,
        _vicreg,
        parameters=[torch.eye(5, dtype=torch.float64) * 0.9],
        shares=list(zip(z.split(list(sizes), dim=1), mask.split(list(sizes), dim=1), strict=True)),
        joined=(z, mask),
        atol=1e-14,
    )
