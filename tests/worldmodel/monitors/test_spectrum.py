"""Numbers of a spectrum against closed forms and an independent quadrature."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from tests.worldmodel.monitors.samples import gaussian
from worldmodel.monitors import (
    alpha_req,
    effective_rank,
    marchenko_pastur_rankme,
    participation_ratio,
    rankme,
    stable_rank,
)

ALL = [effective_rank, participation_ratio, stable_rank]


def power_law(alpha: float, size: int) -> torch.Tensor:
    return torch.arange(1.0, size + 1, dtype=torch.float64) ** -alpha


def test_slow_geometric_spectrum() -> None:
    values = (0.99 ** torch.arange(4000.0).double()).square()
    assert effective_rank(values) == pytest.approx(270.468, rel=1e-4)


@pytest.mark.parametrize("rank", [effective_rank, participation_ratio, stable_rank])
def test_equal_eigenvalues_count_and_order_or_scale_do_not_matter(rank) -> None:
    values = torch.tensor([0.0, 2.0, 0.0, 2.0, 2.0, 0.0])
    assert rank(values) == pytest.approx(3, rel=1e-12)
    values = power_law(1.3, 40)
    assert rank(values.flip(0) * 1e-30) == pytest.approx(rank(values), rel=1e-12)
    assert rank(torch.cat([values, torch.full((500,), -1e-20, dtype=torch.float64)])) == pytest.approx(
        rank(values), rel=1e-12
    )


def test_closed_forms() -> None:
    values = torch.tensor([3.0, 2.0, 1.0])
    assert participation_ratio(values) == pytest.approx(36 / 14)
    assert stable_rank(values) == pytest.approx(2.0)
    assert effective_rank(values.square()) == pytest.approx(2.74946, abs=1e-4)


@pytest.mark.parametrize("rank", ALL)
def test_defined_values(rank) -> None:
    assert rank(torch.zeros(5)) == 1.0
    assert rank(torch.tensor([1.0, 1e-3]), negligible=2.0) == 1.0
    for bad in (math.nan, math.inf):
        assert math.isnan(rank(torch.tensor([1.0, bad])))


def test_rounding_as_an_eigenvalue_solver_leaves_it_is_no_rank() -> None:
    """An epsilon of 1e-5 in the entropy would read 10.1."""
    values = torch.cat([torch.ones(8), torch.zeros(2040)]).double()
    assert effective_rank(values + 1e-16) == pytest.approx(8.0, abs=1e-9)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
def test_alpha_req_of_a_power_law(alpha: float) -> None:
    assert alpha_req(7 * power_law(alpha, 300)) == pytest.approx(alpha, rel=1e-10)
    assert alpha_req(power_law(alpha, 20).flip(0)) == pytest.approx(alpha, rel=1e-10)


def test_alpha_req_against_polyfit_on_its_range() -> None:
    values = power_law(1.1, 150) * torch.exp(0.3 * gaussian(150).double())
    values = values.sort(descending=True).values
    index = np.arange(4, 101)
    slope, _ = np.polyfit(np.log(index), values.log().numpy()[3:100], 1, w=np.sqrt(1 / index))
    assert alpha_req(values) == pytest.approx(-slope, rel=1e-9)
    changed = torch.cat([values[:3] * 50, values[3:100], values[100:] * 0.01])
    assert alpha_req(changed) == pytest.approx(-slope, rel=1e-9)
    assert alpha_req(values, first=1, last=150) != pytest.approx(-slope, rel=1e-3)


def test_alpha_req_is_nan_where_no_power_law_can_be_fitted() -> None:
    rank_deficient = torch.cat([power_law(1, 50), torch.zeros(50).double()])
    assert math.isnan(alpha_req(rank_deficient))
    assert math.isnan(alpha_req(power_law(1, 4)))  # one eigenvalue in the range
    assert math.isnan(alpha_req(torch.full((50,), math.nan)))
    assert math.isfinite(alpha_req(torch.cat([power_law(1, 120), torch.zeros(50).double()])))


@pytest.mark.parametrize(
    ("samples_per_dimension", "expected"),
    [(0.5, 0.4630), (1, 0.8050), (2, 0.9261), (4, 0.9662), (10, 0.9871), (20, 0.9937), (50, 0.9975), (100, 0.9987)],
)  # fmt: skip
def test_marchenko_pastur_values(samples_per_dimension: float, expected: float) -> None:
    assert marchenko_pastur_rankme(1 / samples_per_dimension) == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize("y", [0.003, 0.3, 0.97, 1.0])
def test_marchenko_pastur_against_adaptive_quadrature_of_the_density(y: float) -> None:
    low, high = 1 - math.sqrt(y), 1 + math.sqrt(y)

    def expectation(f):
        def integrand(s):  # over s = sqrt(x): dx = 2 s ds
            x = s * s
            return f(s) * math.sqrt(max(0.0, (high**2 - x) * (x - low**2))) / (2 * math.pi * y * x) * 2 * s

        return quad(integrand, max(low, 1e-300), high, limit=400)[0]

    assert expectation(lambda s: 1.0) == pytest.approx(1, abs=1e-6)
    mean = expectation(lambda s: s)
    expected = mean * math.exp(-expectation(lambda s: s * math.log(s)) / mean)
    assert marchenko_pastur_rankme(y) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("samples_per_dimension", [0.5, 1, 2, 4, 10])
def test_isotropic_data_follow_marchenko_pastur(samples_per_dimension: float) -> None:
    z = gaussian(int(256 * samples_per_dimension), 256)
    assert rankme(z) / 256 == pytest.approx(marchenko_pastur_rankme(1 / samples_per_dimension), rel=0.01)


def test_the_ratio_is_positive() -> None:
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="K/N, a positive number"):
            marchenko_pastur_rankme(bad)
