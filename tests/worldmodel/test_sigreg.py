"""SIGReg against the closed form of its integral and of its expectations, and over two processes."""

import math
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch

from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process
from worldmodel.regularizers import SIGReg


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
    sigreg = SIGReg(num_slices=6, block=8)
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


def test_backward_inside_autocast_is_computed_in_fp32() -> None:
    z, sigreg = gaussian(64, 8), SIGReg(num_slices=16)
    outside, inside = z.clone().requires_grad_(), z.clone().requires_grad_()
    sigreg(outside, step=0).backward()
    with torch.autocast("cpu", torch.bfloat16):
        sigreg(inside, step=0).backward()
    assert outside.grad is not None
    assert inside.grad is not None
    torch.testing.assert_close(inside.grad, outside.grad, atol=0, rtol=1e-6)


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


@pytest.mark.parametrize("block", [1, 5, 40, 10_000])
def test_block_size_changes_nothing(block: int) -> None:
    z = gaussian(192, 8).double().view(3, 64, 8)
    whole, parts = (SIGReg(num_slices=16, block=b, reduction="none") for b in (None, block))
    first, second = z.clone().requires_grad_(), z.clone().requires_grad_()
    torch.testing.assert_close(parts(second, step=0), whole(first, step=0), atol=1e-12, rtol=0)
    parts(second, step=0).sum().backward()
    whole(first, step=0).sum().backward()
    torch.testing.assert_close(second.grad, first.grad, atol=1e-13, rtol=0)


def test_without_samples_it_is_zero_and_has_no_nan() -> None:
    z = torch.zeros(0, 8, requires_grad=True)
    for scale_by_n in (True, False):
        value = SIGReg(num_slices=4, scale_by_n=scale_by_n)(z, step=0)
        value.backward()
        assert float(value.detach()) == 0.0


@pytest.mark.parametrize("options", [{"num_slices": 0}, {"num_points": 1}, {"t_max": 0.0}, {"block": 0}])
def test_bad_settings(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="SIGReg needs"):
        SIGReg(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3,), (3, 0)])
def test_bad_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[\.\.\., N, D\]"):
        SIGReg()(torch.zeros(shape), step=0)


def test_bad_type_and_reduction() -> None:
    with pytest.raises(ValueError, match="floating-point"):
        SIGReg()(torch.zeros(3, 2, dtype=torch.int64), step=0)
    with pytest.raises(ValueError, match="the last axis holds the features"):
        SIGReg(sample_axis=-1)
    with pytest.raises(ValueError, match="sample_axis 1"):
        SIGReg(sample_axis=1)(torch.zeros(3, 2), step=0)
    with pytest.raises(ValueError, match="one of them is empty"):
        SIGReg()(torch.zeros(0, 3, 2), step=0)
    with pytest.raises(ValueError, match="reduction"):
        SIGReg(reduction="max")  # type: ignore[arg-type]


def _sigreg_loss(parameters: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return SIGReg(num_slices=32, block=40)(x @ parameters[0], step=11)


@pytest.mark.parametrize("sizes", [(8, 8), (3, 13), (0, 16)])
def test_sigreg_over_two_processes(two_processes: TwoProcesses, sizes: tuple[int, int]) -> None:
    x = gaussian(16, 4).double()
    assert_equals_one_process(
        two_processes,
        _sigreg_loss,
        parameters=[gaussian(4, 4, seed=1).double()],
        shares=x.split(list(sizes)),
        joined=x,
        atol=2e-15,
    )


def _sum_of_views(parameters: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """x [N, V, D]."""
    return SIGReg(num_slices=8, sample_axis=0, reduction="sum")(x @ parameters[0], step=1)


def test_sample_axis_over_two_processes(two_processes: TwoProcesses) -> None:
    x = gaussian(16, 4).double().view(1, 16, 4).expand(2, 16, 4) * torch.tensor([[[1.0]], [[0.5]]])
    assert_equals_one_process(
        two_processes,
        _sum_of_views,
        parameters=[gaussian(4, 4, seed=1).double()],
        shares=[part.transpose(0, 1) for part in x.split([5, 11], dim=1)],
        joined=x.transpose(0, 1),
        atol=2e-15,
    )


def _directions(rank: int, step: int) -> torch.Tensor:
    torch.manual_seed(rank)  # what a rank drew before must not matter
    return SIGReg(num_slices=4, seed=3).directions(
        8, step=step, device=torch.device("cpu"), dtype=torch.float64
    )


def test_all_ranks_and_a_resumed_run_draw_the_same_directions(two_processes: TwoProcesses) -> None:
    for directions in two_processes.run(_directions, 17):
        assert torch.equal(directions, _directions(2, 17))


def test_sample_axis_and_reduction() -> None:
    views = torch.stack([gaussian(32, 8, seed=s) * (1 + s) for s in range(3)])
    each = torch.stack([SIGReg(num_slices=16)(view, step=5) for view in views])
    options = {"num_slices": 16, "sample_axis": 0}
    swapped = views.transpose(0, 1)
    torch.testing.assert_close(SIGReg(**options, reduction="none")(swapped, step=5), each)  # type: ignore[arg-type]
    torch.testing.assert_close(SIGReg(**options, reduction="sum")(swapped, step=5), each.sum())  # type: ignore[arg-type]
    torch.testing.assert_close(SIGReg(**options)(swapped, step=5), each.mean())  # type: ignore[arg-type]


def test_identical_views_flattened_into_the_samples_double_the_floor() -> None:
    """Why correlated samples belong on a leading axis: the factor N grows and the information does not."""
    z, sigreg = gaussian(512, 192), SIGReg(num_slices=256)
    views = torch.stack([z, z])
    assert float(sigreg(views, step=0)) == pytest.approx(1.05, rel=0.1)
    assert float(sigreg(views.flatten(0, 1), step=0)) == pytest.approx(2.1, rel=0.1)


def textbook(z: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """The statistic with every cosine and sine in one table, as public implementations compute it."""
    t = torch.linspace(0, 3, 17, dtype=z.dtype)
    weights = torch.full((17,), 2 * 3 / 16, dtype=z.dtype)
    weights[[0, -1]] = 3 / 16
    gaussian_cf = torch.exp(-t.square() / 2)
    table = (z @ a).unsqueeze(-1) * t
    square = (table.cos().mean(0) - gaussian_cf).square() + table.sin().mean(0).square()
    return len(z) * (square @ (weights * gaussian_cf)).mean()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_powers_of_one_exponential_equal_the_table(
    dtype: torch.dtype, tolerance: float, scale: float
) -> None:
    sigreg = SIGReg(num_slices=64, block=1000)
    z = gaussian(300, 16).double() * scale + 0.1
    a = sigreg.directions(16, step=2, device=z.device, dtype=torch.float64)
    exact, own = z.clone().requires_grad_(), z.to(dtype).requires_grad_()
    reference, value = textbook(exact, a), sigreg(own, step=2)
    reference.backward()
    value.backward()
    assert exact.grad is not None
    assert own.grad is not None
    # An angle of z t carries the rounding of z: fp32 has 1e-7 of 90 at scale 30.
    slack = tolerance * max(1.0, scale)
    assert float(value.detach()) == pytest.approx(float(reference.detach()), rel=slack)
    assert float((own.grad - exact.grad).norm()) < 3 * slack * float(exact.grad.norm())


MEMORY = """
import sys, torch
from pathlib import Path
from worldmodel.regularizers import SIGReg

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))

torch.set_num_threads(1)
n, d = int(sys.argv[1]), int(sys.argv[2])
sigreg = SIGReg()
sigreg(torch.randn(256, d, requires_grad=True), step=0).backward()  # what torch itself needs
z = torch.randn(n, d, requires_grad=True)
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here, not at the imports
before = status("VmRSS")
value = sigreg(z, step=0)
value.backward()
assert bool(z.grad.isfinite().all()) and abs(float(value.detach()) - sigreg.floor) < 0.3
print((status("VmHWM") - before) / 1024)
"""


def extra_memory(samples: int, dim: int) -> float:
    """Peak MiB of one forward and backward pass on top of the input; its gradient is part of it."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("peak memory is read from Linux's /proc")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(samples), str(dim)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def test_memory_does_not_grow_with_the_table() -> None:
    """20,000 x 1,024 x 17 numbers are 1.4 GB; the gradient itself is 20 MiB."""
    assert extra_memory(20_000, 256) < 100


@pytest.mark.slow
def test_100k_by_256_fits_in_one_gigabyte() -> None:
    assert extra_memory(100_000, 256) + 100_000 * 256 * 4 / 2**20 < 1000


def test_period() -> None:
    assert SIGReg().period == pytest.approx(33.51, abs=0.01)
    assert SIGReg(t_max=5.0).period == pytest.approx(20.1, abs=0.01)
    assert univariate([33.5103] * 8) == pytest.approx(univariate([0.0] * 8), rel=1e-4)
