"""SIGReg against the closed form of its integral, the variance hinge against a plain loop, both over two processes."""

import math
from collections.abc import Sequence

import pytest
import torch

from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process
from worldmodel.regularizers import SIGReg, variance_hinge


def exact_statistic(z: torch.Tensor) -> float:
    """Epps-Pulley integral of samples z [N] without quadrature: sqrt(2 pi) times the BHEP statistic with beta = 1."""
    z = z.double()
    pairs = torch.exp(-(z[:, None] - z[None, :]).square() / 2).mean()
    single = torch.exp(-z.square() / 4).mean()
    return len(z) * float(
        math.sqrt(2 * math.pi) * pairs - 2 * math.sqrt(math.pi) * single + math.sqrt(2 * math.pi / 3)
    )


def univariate(z: Sequence[float] | torch.Tensor, **options: float) -> float:
    """SIGReg of one-dimensional samples: every direction is +1 or -1 and the statistic is even."""
    column = torch.as_tensor(z, dtype=torch.float64).unsqueeze(1)
    return float(SIGReg(num_slices=1, **options)(column, step=0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("z", "exact", "up_to_3", "up_to_5"),
    [
        ([0.0], 0.408923, 0.402048, 0.408921),
        ([0.0, 1.0], 0.615696, 0.615395, 0.615693),
        ([-1.0, 0.0, 2.0], 0.496738, 0.493723, 0.496738),
        ([-2.0, -1.0, 0.0, 1.0, 2.0], 0.930233, 0.929236, 0.930232),
    ],
)
def test_golden_values(z: list[float], exact: float, up_to_3: float, up_to_5: float) -> None:
    assert exact_statistic(torch.tensor(z)) == pytest.approx(exact, abs=1e-6)
    assert univariate(z) == pytest.approx(up_to_3, abs=1e-6)
    assert univariate(z, t_max=5.0) == pytest.approx(up_to_5, abs=1e-6)


@pytest.mark.parametrize("count", [1, 7, 64, 300])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_quadrature_is_close_to_the_integral(count: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(count)
    z = torch.randn(count, generator=generator, dtype=torch.float64) * scale + 0.2
    exact = exact_statistic(z)
    assert abs(univariate(z) - exact) < 0.06 + 0.02 * exact
    if scale <= 1:  # samples more than 10 apart see the period of that rule, 20.1
        assert abs(univariate(z, t_max=5.0) - exact) < 1e-5 * count + 2e-5


@pytest.mark.parametrize(
    ("t_max", "points", "floor"),
    [(3.0, 17, 1.05246), (5.0, 17, 1.05942), (1.0, 17, 0.38459), (3.0, 5, 1.04968), (3.0, 41, 1.05263)],
)
def test_floor_is_the_expected_statistic_of_gaussian_samples(t_max: float, points: int, floor: float) -> None:
    assert SIGReg(t_max=t_max, num_points=points).floor == pytest.approx(floor, abs=1e-5)


@pytest.mark.parametrize("count", [16, 256])
def test_gaussian_samples_sit_at_the_floor(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    sigreg = SIGReg(num_slices=1)
    draws = [
        float(sigreg(torch.randn(count, 1, generator=generator, dtype=torch.float64), step=0))
        for _ in range(4000)
    ]
    values = torch.tensor(draws)
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - 1.0525) < 3 * error
    assert 0.85 < float(values.std()) < 1.05


@pytest.mark.parametrize("constant", [0.0, 1.0, 10.0])
def test_constant_embedding(constant: float) -> None:
    closed = (
        math.sqrt(2 * math.pi)
        - 2 * math.sqrt(math.pi) * math.exp(-(constant**2) / 4)
        + math.sqrt(2 * math.pi / 3)
    )
    z = [constant] * 50
    assert exact_statistic(torch.tensor(z)) == pytest.approx(50 * closed, rel=1e-6)
    assert univariate(z, t_max=5.0) == pytest.approx(50 * closed, rel=1e-4)
    assert univariate(z) == pytest.approx(50 * closed, rel=0.02)


def test_an_outlier_at_ten_is_not_taken_for_zero() -> None:
    """The two-sided rule of the paper's listing has period 10.05 and reads 0.409 N there."""
    assert univariate([10.05] * 64) > 3 * 64


def gaussian(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("scale", "expected"), [(0.5, 78.0), (2.0, 123.0)])
def test_wrong_scale_is_far_above_the_floor(scale: float, expected: float) -> None:
    assert float(SIGReg(num_slices=256)(gaussian(512, 192) * scale, step=0)) == pytest.approx(
        expected, rel=0.05
    )


def test_zeros() -> None:
    assert float(SIGReg(num_slices=8)(torch.zeros(512, 192), step=0)) == pytest.approx(
        0.40205 * 512, rel=1e-4
    )


def test_rotation_leaves_the_floor() -> None:
    z = gaussian(512, 64)
    rotation = torch.linalg.qr(gaussian(64, 64, seed=1))[0]
    sigreg = SIGReg(num_slices=512)
    assert float(sigreg(z, step=0)) == pytest.approx(sigreg.floor, rel=0.2)
    assert float(sigreg(z @ rotation, step=0)) == pytest.approx(sigreg.floor, rel=0.2)


def test_falls_with_rank() -> None:
    count, dim, sigreg = 1024, 128, SIGReg(num_slices=256)
    basis = torch.linalg.qr(gaussian(dim, dim, seed=1))[0]
    values = []
    for rank in (1, 2, 4, 8, 16, 32, 64, 128):
        z = gaussian(count, rank, seed=2) @ basis[:rank] * math.sqrt(dim / rank)
        values.append(float(sigreg(z, step=0)))
    assert values == sorted(values, reverse=True)
    for value, expected in zip(values, [170, 100, 55, 29, 15, 7.4, 2.9, 1.08], strict=True):
        assert value == pytest.approx(expected, rel=0.25)


def test_gradient_against_finite_differences() -> None:
    z = gaussian(5, 3).double().requires_grad_()
    sigreg = SIGReg(num_slices=6, chunk=4)
    assert torch.autograd.gradcheck(lambda value: sigreg(value, step=3), (z,))


def test_descent_on_free_points_reaches_the_floor() -> None:
    """Points on a cross become Gaussian enough for the statistic."""
    side = gaussian(128, 1)
    points = torch.cat([torch.cat([side, side], 1), torch.cat([side, -side], 1)]).requires_grad_()
    sigreg = SIGReg(num_slices=64)
    optimizer = torch.optim.Adam([points], lr=0.03)
    before = float(sigreg(points.detach(), step=10_000))
    for step in range(150):
        optimizer.zero_grad()
        sigreg(points, step=step).backward()
        optimizer.step()
    assert before > 2 * sigreg.floor
    assert float(sigreg(points.detach(), step=10_000)) < sigreg.floor


def test_leading_axes_are_averaged() -> None:
    views, sigreg = torch.stack([gaussian(32, 8, seed=s) * (1 + s) for s in range(3)]), SIGReg(num_slices=16)
    expected = torch.stack([sigreg(view, step=5) for view in views]).mean()
    torch.testing.assert_close(sigreg(views, step=5), expected)
    torch.testing.assert_close(sigreg(views.unsqueeze(1), step=5), expected)


def test_bf16_is_computed_in_fp32() -> None:
    z, sigreg = gaussian(64, 8).bfloat16(), SIGReg(num_slices=16)
    with torch.autocast("cpu", torch.bfloat16):
        value = sigreg(z, step=0)
    assert value.dtype == torch.float32
    assert torch.equal(value, sigreg(z.float(), step=0))


def test_directions_are_a_function_of_seed_and_step() -> None:
    z = gaussian(64, 8)
    first = SIGReg(num_slices=16, seed=4)(z, step=7)
    assert torch.equal(first, SIGReg(num_slices=16, seed=4)(z, step=7))
    assert not torch.equal(first, SIGReg(num_slices=16, seed=4)(z, step=8))
    assert not torch.equal(first, SIGReg(num_slices=16, seed=5)(z, step=7))
    directions = SIGReg(num_slices=16).directions(8, step=0, device=z.device, dtype=torch.float64)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(16, dtype=torch.float64))


def test_global_random_state_is_untouched() -> None:
    before = torch.get_rng_state()
    SIGReg(num_slices=16)(gaussian(64, 8), step=7)
    assert torch.equal(before, torch.get_rng_state())


def test_scale_by_n() -> None:
    z = gaussian(64, 8)
    with_n, without = (SIGReg(num_slices=16, scale_by_n=flag)(z, step=0) for flag in (True, False))
    torch.testing.assert_close(with_n, 64 * without)


@pytest.mark.parametrize("chunk", [1, 5, 16, 100])
def test_chunk_size_changes_nothing(chunk: int) -> None:
    z = gaussian(64, 8).double()
    value = SIGReg(num_slices=16, chunk=chunk)(z, step=0)
    torch.testing.assert_close(value, SIGReg(num_slices=16, chunk=16)(z, step=0), atol=1e-12, rtol=0)


def test_without_samples_it_is_zero_and_has_no_nan() -> None:
    z = torch.zeros(0, 8, requires_grad=True)
    value = SIGReg(num_slices=4)(z, step=0)
    value.backward()
    assert float(value.detach()) == 0.0


@pytest.mark.parametrize("options", [{"num_slices": 0}, {"num_points": 1}, {"t_max": 0.0}, {"chunk": 0}])
def test_bad_settings(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="SIGReg needs"):
        SIGReg(**options)  # type: ignore[arg-type]


def test_bad_shape() -> None:
    with pytest.raises(ValueError, match=r"\[\.\.\., N, D\]"):
        SIGReg()(torch.zeros(3), step=0)


def _sigreg_loss(parameters: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return SIGReg(num_slices=32, chunk=10)(x @ parameters[0], step=11)


@pytest.mark.parametrize("sizes", [(8, 8), (3, 13), (0, 16)])
def test_sigreg_over_two_processes(two_processes: TwoProcesses, sizes: tuple[int, int]) -> None:
    x = gaussian(16, 4).double()
    assert_equals_one_process(
        two_processes,
        _sigreg_loss,
        parameters=[gaussian(4, 4, seed=1).double()],
        shares=x.split(list(sizes)),
        joined=x,
        atol=1e-12,
    )


# The variance hinge.

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
