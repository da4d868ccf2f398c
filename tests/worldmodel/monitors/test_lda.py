"""LDA-rank against a direct computation, its measured table, and two processes."""

import math
from dataclasses import astuple

import pytest
import torch

from tests.worldmodel.monitors.samples import gaussian, orthonormal
from tests.worldmodel.two_processes import TwoProcesses
from worldmodel.monitors import LDARank, LDASummary, lda_rank, rankme

N, Q, D = 1000, 10, 64


def informative(dimensions: int) -> torch.Tensor:
    """[N, 1, D]: samples that differ in some directions only."""
    return (gaussian(N, dimensions).double() @ orthonormal(D, dimensions).T).unsqueeze(1)


def streamed(groups: torch.Tensor, *, chunk: int = 64) -> LDASummary:
    monitor = LDARank()
    for part in groups.split(chunk):
        monitor.update(part)
    return monitor.compute()


@pytest.mark.parametrize(
    ("dimensions", "noise", "raw", "expected", "signal"),
    [(8, 0.1, 34.8, 8.4, 816), (8, 1.0, 63.4, 32.3, 14.5), (0, 1.0, 63.95, 61.9, 6.4)],
    ids=["8 dimensions, little noise", "8 dimensions, much noise", "noise"],
)
def test_what_it_sees_and_what_not(
    dimensions: int, noise: float, raw: float, expected: float, signal: float
) -> None:
    """Pure view noise has a full rank: only the signal tells it."""
    groups = noise * gaussian(N, Q, D, seed=2).double()
    if dimensions:
        groups = groups + informative(dimensions)
    summary = streamed(groups)
    assert rankme(groups.flatten(0, 1)) == pytest.approx(raw, rel=0.05)
    assert summary.rank == pytest.approx(expected, rel=0.05)
    assert summary.signal == pytest.approx(signal, rel=0.05)
    assert lda_rank(groups) == pytest.approx(summary.rank, rel=1e-9)


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_against_a_direct_computation(chunk: int) -> None:
    groups = gaussian(50, 1, 6).double() * torch.logspace(0, -1, 6) + 0.3 * gaussian(50, 4, 6, seed=1) + 5
    means = groups.mean(1)
    between = torch.cov(means.T)
    deviations = (groups - means.unsqueeze(1)).flatten(0, 1)
    within = deviations.T @ deviations / (50 * 3) + 1e-4 * torch.eye(6)
    values = torch.linalg.eigvals(torch.linalg.solve(within, between)).real
    p = values / values.sum()
    summary = streamed(groups, chunk=chunk)
    assert summary.count == 50
    assert summary.rank == pytest.approx(float(torch.special.entr(p).sum().exp()), rel=1e-9)
    assert summary.signal == pytest.approx(float(values.sum()), rel=1e-9)


def test_updates_may_have_different_numbers_of_views() -> None:
    groups = gaussian(40, 1, 5).double() + 0.5 * gaussian(40, 6, 5, seed=1)
    mixed = LDARank(5)
    mixed.update(groups[:20, :3])
    mixed.update(groups[20:])
    means = torch.cat([groups[:20, :3].mean(1), groups[20:].mean(1)])
    first, second = groups[:20, :3] - means[:20, None], groups[20:] - means[20:, None]
    scatter = sum(d.flatten(0, 1).T @ d.flatten(0, 1) for d in (first, second))
    within = scatter / (20 * 2 + 20 * 5) + 1e-4 * torch.eye(5)
    signal = torch.linalg.solve(within, torch.cov(means.T)).trace()
    assert mixed.compute().signal == pytest.approx(float(signal), rel=1e-9)


def test_masked_groups_of_garbage_change_nothing() -> None:
    groups = gaussian(60, 3, 4)
    keep = gaussian(60, seed=1) > 0
    masked = LDARank()
    masked.update(torch.where(keep.view(-1, 1, 1), groups, torch.nan), keep)
    assert astuple(masked.compute())[:3] == pytest.approx(astuple(streamed(groups[keep]))[:3], rel=1e-12)


def test_the_summary_says_if_there_are_too_few_groups() -> None:
    assert "16 groups of 16 dimensions" in streamed(gaussian(16, 4, 16)).warning
    assert streamed(gaussian(17, 4, 16)).warning == ""


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_a_constant_embedding_has_rank_one_and_no_signal(scale: float, noise: float) -> None:
    constant = gaussian(1, 1, 16).expand(200, 5, 16) + noise * gaussian(200, 5, 16, seed=1)
    assert streamed(scale * constant) == LDASummary(count=200, rank=1.0, signal=0.0)


def test_equal_views_leave_the_ridge() -> None:
    groups = informative(8).expand(N, 2, D)
    summary = streamed(groups)
    assert summary.rank == pytest.approx(8, rel=0.01)
    assert summary.signal == pytest.approx(8 / 1e-4, rel=0.05)


def test_features_that_are_not_finite_give_nan() -> None:
    groups = gaussian(10, 3, 4)
    groups[2, 1, 0] = math.nan
    summary = streamed(groups)
    assert math.isnan(summary.rank)
    assert math.isnan(summary.signal)


def test_errors() -> None:
    with pytest.raises(ValueError, match="delta must be positive"):
        LDARank(delta=0.0)
    for shape in ((3, 4), (3, 1, 4)):
        with pytest.raises(ValueError, match=r"\[N, Q, D\] with Q >= 2"):
            LDARank().update(torch.zeros(shape))
    with pytest.raises(ValueError, match="never updated"):
        LDARank().compute()
    monitor = LDARank()
    monitor.update(torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="dimension 4, got 5"):
        monitor.update(torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match="at least 2 groups, got 1"):
        monitor.compute()


def _on_rank(rank: int, shares: list[torch.Tensor]) -> tuple[float, ...]:
    monitor = LDARank()
    if len(shares[rank]):
        monitor.update(shares[rank])
    return astuple(monitor.compute())[:3]


@pytest.mark.parametrize("sizes", [(30, 30), (1, 59), (0, 60)])
def test_over_two_processes(two_processes: TwoProcesses, sizes: tuple[int, int]) -> None:
    groups = gaussian(60, 1, 8).double() + 0.3 * gaussian(60, 4, 8, seed=1)
    expected = astuple(streamed(groups))[:3]
    for answer in two_processes.run(_on_rank, list(groups.split(list(sizes)))):
        assert answer == pytest.approx(expected, rel=1e-10)
