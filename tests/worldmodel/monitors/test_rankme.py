"""Streaming RankMe against closed forms, one SVD, and two processes."""

import math
from collections.abc import Callable

import pytest
import torch

from tests.worldmodel.monitors.samples import gaussian, orthonormal, svd_rankme, with_singular_values
from tests.worldmodel.two_processes import TwoProcesses
from worldmodel.distributed import on_this_rank_only
from worldmodel.monitors import RankMe, marchenko_pastur_rankme, rankme


def streamed(z: torch.Tensor, *, chunk: int = 64) -> RankMe:
    monitor = RankMe()
    for part in z.split(chunk):
        monitor.update(part)
    return monitor


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (torch.full((64,), 3.7), 64.0),
        (torch.tensor([3.0, 2.0, 1.0]), 2.74946),
        (torch.tensor([4.0, 1.0]), 1.64938),
        (0.5 ** torch.arange(512.0), 4.0),
        (0.9 ** torch.arange(512.0), 25.8117),
        (torch.arange(1.0, 513) ** -0.5, 409.555),
        (torch.arange(1.0, 513) ** -1.0, 117.231),
        (torch.arange(1.0, 513) ** -2.0, 5.0561),
    ],
)
def test_golden_values(values: torch.Tensor, expected: float) -> None:
    z = with_singular_values(values, rows=len(values) + 8)
    assert rankme(z) == pytest.approx(expected, rel=1e-4)
    assert streamed(z).compute() == pytest.approx(expected, rel=1e-4)


def test_rank_eight_in_2048_dimensions_reads_eight() -> None:
    """fp32 features; with an epsilon of 1e-5 in the entropy they would read 10.1."""
    values = torch.cat([torch.ones(8), torch.zeros(2040)])
    z = (orthonormal(2100, 8) * values[:8].double() @ orthonormal(2048, 8, seed=1).T).float()
    assert streamed(z, chunk=700).compute() == pytest.approx(8.0, abs=0.05)


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z * 7.5,
        lambda z: z @ orthonormal(16, 16, seed=3),
        lambda z: orthonormal(90, 90, seed=3) @ z,
        lambda z: torch.cat([z, z]),
    ],
    ids=["scale", "right rotation", "left rotation", "duplication"],
)
def test_invariance(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    z = gaussian(90, 16).double() * torch.linspace(0.1, 2, 16)
    assert rankme(change(z)) == pytest.approx(rankme(z), rel=1e-9)


@pytest.mark.parametrize("chunk", [1, 7, 200])
def test_streaming_equals_one_svd(chunk: int) -> None:
    z = gaussian(200, 24).double() * torch.logspace(0, -3, 24) + 0.3
    monitor = streamed(z, chunk=chunk)
    summary = monitor.summary()
    centred = z - z.mean(0)
    assert monitor.compute() == pytest.approx(svd_rankme(z), rel=1e-9)
    assert summary.rankme == pytest.approx(svd_rankme(z), rel=1e-9)
    assert summary.rankme_centered == pytest.approx(svd_rankme(centred), rel=1e-9)
    raw = torch.linalg.svdvals(z).square() / 200
    covariance = torch.linalg.svdvals(centred).square() / 199
    torch.testing.assert_close(summary.eigenvalues, raw, rtol=1e-8, atol=1e-14)
    torch.testing.assert_close(summary.eigenvalues_centered, covariance, rtol=1e-8, atol=1e-14)
    assert summary.participation_ratio == pytest.approx(
        float(covariance.sum() ** 2 / covariance.square().sum())
    )
    assert summary.stable_rank == pytest.approx(float(covariance.sum() / covariance[0]))


def test_large_updates_are_cut_into_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    z = gaussian(100, 7).double()
    mask = gaussian(100, seed=1) > 0
    monkeypatch.setattr("worldmodel.monitors.moments._CHUNK", 25)
    monitor = RankMe()
    monitor.update(z, mask)
    assert monitor.compute() == pytest.approx(svd_rankme(z[mask]), rel=1e-12)
    assert monitor.summary().count == int(mask.sum())


def test_summary_of_isotropic_data() -> None:
    summary = streamed(gaussian(640, 64)).summary()
    assert (summary.count, summary.dim, summary.warning) == (640, 64, "")
    assert summary.rankme_over_k == pytest.approx(marchenko_pastur_rankme(0.1), rel=0.01)
    assert summary.rankme_over_ceiling == pytest.approx(1, rel=0.01)
    assert summary.as_dict().keys() == {
        "rankme", "rankme_centered", "rankme_over_k", "rankme_over_ceiling",
        "participation_ratio", "stable_rank", "alpha_req",
    }  # fmt: skip


def test_the_warning_names_the_number_of_samples_needed() -> None:
    summary = streamed(gaussian(639, 64)).summary()
    assert summary.warning == "639 samples of 64 dimensions: ranks read low, use at least 640 samples"


def test_fewer_samples_than_dimensions() -> None:
    summary = streamed(gaussian(40, 64)).summary()
    assert summary.rankme_over_ceiling == pytest.approx(1, rel=0.02)
    assert summary.rankme <= 40
    assert math.isnan(summary.alpha_req)  # rank-deficient within its range


def test_masked_rows_of_garbage_change_nothing() -> None:
    z = gaussian(300, 8)
    keep = gaussian(300, seed=1) > 0
    spoilt = torch.where(keep.unsqueeze(1), z, torch.nan)
    clean, masked = RankMe(), RankMe()
    clean.update(z[keep])
    masked.update(spoilt, keep)
    masked.update(torch.full((5, 8), torch.inf), torch.zeros(5, dtype=torch.bool))
    assert masked.summary() == clean.summary()


def test_half_precision_is_upcast() -> None:
    z = with_singular_values(0.9 ** torch.arange(64.0), rows=300)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", torch.bfloat16):
            value = streamed(z.to(dtype)).compute()
        assert value == pytest.approx(svd_rankme(z.to(dtype).double()), rel=1e-6)


def test_one_vector_and_a_constant_have_rank_one() -> None:
    for rows in (1, 1000):
        summary = streamed(gaussian(1, 64).expand(rows, 64)).summary()
        assert summary.rankme == pytest.approx(1, abs=1e-9)
        ranks = (summary.rankme_centered, summary.participation_ratio, summary.stable_rank)
        assert ranks == (1, 1, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_give_nan(bad: float) -> None:
    z = gaussian(20, 4)
    z[3, 2] = bad
    monitor = streamed(z)
    assert math.isnan(monitor.compute())
    assert math.isnan(rankme(z))
    assert all(math.isnan(value) for value in monitor.summary().as_dict().values())


def test_errors() -> None:
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        RankMe(0)
    with pytest.raises(ValueError, match="never updated"):
        RankMe().compute()
    monitor = RankMe(4)
    for read in (monitor.compute, monitor.summary):
        with pytest.raises(ValueError, match="at least 1 vector, got 0"):
            read()
    with pytest.raises(ValueError, match=r"\[N, 4\], got \(3, 5\)"):
        monitor.update(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"\[N, K\], got \(3,\)"):
        RankMe().update(torch.zeros(3))
    for mask in (torch.ones(3), torch.ones(2, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"bool mask of shape \[3\]"):
            monitor.update(torch.zeros(3, 4), mask)


def _on_rank(rank: int, shares: list[torch.Tensor]) -> tuple[float, dict[str, float], int, float]:
    monitor = RankMe()
    for part in shares[rank].split(13):
        monitor.update(part)
    summary = monitor.summary()
    with on_this_rank_only():
        alone = monitor.summary().count if len(shares[rank]) else 0
    return monitor.compute(), summary.as_dict(), summary.count, alone


@pytest.mark.parametrize("sizes", [(30, 30), (1, 59), (0, 60)])
def test_over_two_processes(two_processes: TwoProcesses, sizes: tuple[int, int]) -> None:
    """A rank without samples never learnt the dimension, and reads the same value."""
    z = gaussian(60, 8).double() + 0.2
    summary = streamed(z).summary()
    answers = two_processes.run(_on_rank, list(z.split(list(sizes))))
    for (value, numbers, count, alone), size in zip(answers, sizes, strict=True):
        assert value == pytest.approx(summary.rankme, rel=1e-12)
        assert numbers == pytest.approx(summary.as_dict(), rel=1e-10)
        assert (count, alone) == (60, size)


def _different_dimensions(rank: int, dims: list[int | None]) -> str:
    monitor = RankMe(dims[rank])
    try:
        monitor.compute()
    except ValueError as error:
        return str(error)
    return ""


def test_ranks_that_disagree_on_the_dimension_all_say_so(two_processes: TwoProcesses) -> None:
    for message in two_processes.run(_different_dimensions, [4, 5]):
        assert "ranks saw features of different dimension" in message
    for message in two_processes.run(_different_dimensions, [None, None]):
        assert "never updated" in message
