"""The health of a representation in one call, against direct computations and over two processes."""

import math
from dataclasses import asdict

import pytest
import torch

from tests.worldmodel.monitors.samples import gaussian, svd_rankme, with_singular_values
from tests.worldmodel.two_processes import TwoProcesses
from worldmodel.monitors import (
    EmbeddingHealth,
    EmbeddingMonitor,
    LDARank,
    lda_rank,
    rankme,
    representation_health,
)
from worldmodel.monitors.health import SIGREG_ROWS, SIGREG_SLICES
from worldmodel.regularizers import SIGReg


def health(z: torch.Tensor, *, chunk: int = 64, gamma: float | None = None) -> EmbeddingHealth:
    monitor = EmbeddingMonitor(z.shape[1], gamma=gamma)
    for part in z.split(chunk):
        monitor.update(part)
    return monitor.compute()


def numbers(summary: EmbeddingHealth) -> dict[str, float]:
    return {name: value for name, value in asdict(summary).items() if name != "warning"}


@pytest.mark.parametrize("chunk", [1, 7, 200])
def test_streaming_equals_one_batch(chunk: int) -> None:
    z = gaussian(200, 24).double() * torch.logspace(0, -3, 24) + 0.3
    summary = health(z, chunk=chunk)
    assert summary.count == 200
    assert summary.rankme == pytest.approx(svd_rankme(z), rel=1e-9)
    assert summary.rankme_centered == pytest.approx(svd_rankme(z - z.mean(0)), rel=1e-9)
    assert summary.std == pytest.approx(float(z.std(0).mean()), rel=1e-9)
    assert summary.std_min == pytest.approx(float(z.std(0).min()), rel=1e-9)
    assert summary.std_median == pytest.approx(float(z.std(0).quantile(0.5)), rel=1e-9)
    correlation = torch.corrcoef(z.T).abs()
    assert summary.correlation == pytest.approx(float(correlation.sum() - 24) / (24 * 23), rel=1e-9)
    standardised = (z - z.mean(0)) / z.std(0)
    sigreg = SIGReg(num_slices=SIGREG_SLICES)  # fewer rows than the sample takes: all of them
    assert summary.sigreg_standardised == pytest.approx(
        float(sigreg(standardised, step=0)) / sigreg.floor, rel=1e-9
    )


def test_an_offset_moves_rankme_and_not_its_centred_version() -> None:
    z = gaussian(20_000, 256)
    centred = health(z, chunk=5000).rankme_centered
    for offset, raw in [(0, 254), (1, 228), (5, 117), (20, 23)]:
        summary = health(z + offset, chunk=5000)
        assert summary.rankme == pytest.approx(raw, rel=0.02)
        assert summary.rankme_centered == pytest.approx(centred, rel=1e-6)


@pytest.mark.parametrize("noise", [0.0, 1e-7])
@pytest.mark.parametrize(("rows", "dim"), [(1000, 64), (20_000, 32)])
def test_a_constant_embedding_has_rank_one(noise: float, rows: int, dim: int) -> None:
    """With fp32 rounding on top as well: centred, that is white noise, which must not look like a full rank."""
    z = torch.nn.functional.normalize(gaussian(1, dim), dim=1).expand(rows, dim)
    summary = health(z + noise * gaussian(rows, dim, seed=1), chunk=333)
    assert summary.rankme == pytest.approx(1.0, abs=1e-3)
    assert summary.rankme_centered == 1.0
    assert summary.dead == 1.0
    assert summary.mean_cosine == pytest.approx(1.0, abs=1e-9)


def test_zeros_have_defined_values() -> None:
    summary = health(torch.zeros(10, 4))
    assert math.isnan(summary.alpha_req)
    assert (summary.rankme, summary.rankme_centered, summary.participation_ratio, summary.stable_rank) == (
        1,
    ) * 4
    assert (summary.std, summary.std_min, summary.std_median, summary.dead) == (0, 0, 0, 1)
    assert (summary.mean_cosine, summary.correlation) == (0, 0)
    assert math.isfinite(summary.sigreg_standardised)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_give_nan(bad: float) -> None:
    z = gaussian(10, 4)
    z[3, 2] = bad
    summary = health(z)
    assert summary.count == 10
    assert all(math.isnan(v) for k, v in asdict(summary).items() if k not in ("count", "warning"))
    assert math.isnan(rankme(z))


def test_bf16_is_upcast() -> None:
    z = with_singular_values(0.9 ** torch.arange(64.0), rows=300).bfloat16()
    assert rankme(z) == pytest.approx(svd_rankme(z.double()), rel=1e-9)
    assert health(z).rankme == pytest.approx(svd_rankme(z.double()), rel=1e-6)


def test_mean_cosine_against_all_pairs() -> None:
    z = gaussian(60, 8) + 0.5
    total = [
        float(torch.cosine_similarity(z[i], z[j], dim=0)) for i in range(60) for j in range(60) if i != j
    ]
    assert health(z).mean_cosine == pytest.approx(sum(total) / len(total), abs=1e-6)


def test_mean_cosine_counts_zero_vectors_as_orthogonal() -> None:
    z = torch.cat([torch.ones(3, 4), torch.zeros(1, 4)])
    assert health(z).mean_cosine == pytest.approx(0.5)  # 3 of the 6 pairs are parallel


def test_dead_share() -> None:
    z = gaussian(500, 10)
    z[:, :3] *= 0.05
    assert health(z, gamma=1.0).dead == pytest.approx(0.3)
    assert health(z, gamma=0.01).dead == 0.0


def test_masked_rows_of_garbage_change_nothing() -> None:
    z = gaussian(50, 8)
    keep = torch.arange(50) % 3 > 0
    monitor = EmbeddingMonitor(8)
    monitor.update(torch.where(keep.unsqueeze(1), z, torch.nan), keep)
    assert numbers(monitor.compute()) == pytest.approx(numbers(health(z[keep])), rel=1e-12)


def test_correlation_leaves_constant_dimensions_out() -> None:
    z = gaussian(500, 6)
    z[:, 3] = z[:, 2]
    live = torch.corrcoef(z.T).abs()
    z = torch.cat([z, torch.full((500, 2), 7.0)], dim=1)
    assert health(z).correlation == pytest.approx(float(live.sum() - 6) / 30, rel=1e-4)
    z[:, 1:] = 7.0
    assert health(z).correlation == 0.0


def test_few_clusters_are_seen_although_their_rows_are_equal() -> None:
    points = gaussian(10, 16)[torch.randint(10, (20_000,), generator=torch.Generator().manual_seed(1))]
    values = [health(points[start::20], chunk=100).sigreg_standardised for start in range(3)]
    whole = health(points, chunk=4096).sigreg_standardised
    assert whole > 10
    for value in values:  # a thousand rows, so that the sample is most of them
        assert value == pytest.approx(whole, rel=0.5)


def test_the_summary_says_if_there_are_too_few_vectors() -> None:
    assert "at least 160" in health(gaussian(100, 16)).warning
    assert health(gaussian(160, 16)).warning == ""
    assert health(gaussian(160, 16)).as_dict()["count"] == 160
    assert health(gaussian(160, 16)).rankme_over_k == pytest.approx(health(gaussian(160, 16)).rankme / 16)


def test_sigreg_standardised_tells_gaussian_features_from_others() -> None:
    z = gaussian(20_000, 16) * torch.linspace(0.1, 3, 16) + 4
    assert health(z, chunk=4096).sigreg_standardised == pytest.approx(1, abs=0.25)
    two_lumps = torch.where(gaussian(20_000, 1, seed=1) > 0, z, -z)
    assert health(two_lumps, chunk=4096).sigreg_standardised > 3
    assert health(z[:, :1].expand(-1, 16), chunk=4096).sigreg_standardised > 3


def test_representation_health_is_what_a_task_returns() -> None:
    groups = gaussian(100, 1, 8) + 0.5 * gaussian(100, 4, 8, seed=1)
    features = groups.flatten(0, 1)
    values = representation_health(features, groups)
    summary = LDARank(8)
    summary.update(groups)
    assert values["lda_rank"] == lda_rank(groups)
    assert values["lda_signal"] == summary.compute().signal
    assert values["rankme"] == pytest.approx(rankme(features), rel=1e-9)
    assert values["dead_dimensions"] == 0
    assert all(isinstance(value, float) for value in values.values())
    assert values.keys() - {"lda_rank", "lda_signal"} == representation_health(features).keys()
    keep = torch.arange(400) < 300
    masked = representation_health(features, mask=keep)
    assert masked == pytest.approx(representation_health(features[:300]), rel=1e-9)


def test_errors() -> None:
    monitor = EmbeddingMonitor(4)
    with pytest.raises(ValueError, match=r"\[N, 4\], got \(3, 5\)"):
        monitor.update(torch.zeros(3, 5))
    monitor.update(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="at least 2 vectors, got 1"):
        monitor.compute()


def _health_on_rank(rank: int, shares: list[torch.Tensor]) -> dict[str, float]:
    return numbers(health(shares[rank]))


@pytest.mark.parametrize("sizes", [(30, 30), (1, 59), (0, 60)])
def test_over_two_processes(two_processes: TwoProcesses, sizes: tuple[int, int]) -> None:
    z = gaussian(60, 8).double() + 0.2
    expected = numbers(health(z))
    for summary in two_processes.run(_health_on_rank, list(z.split(list(sizes)))):
        assert summary == pytest.approx(expected, rel=1e-10)


def test_the_gaussian_sample_over_two_processes(two_processes: TwoProcesses) -> None:
    """More vectors than the SIGReg statistic takes: both ranks use one sample of all of them."""
    z = gaussian(3 * SIGREG_ROWS, 8).double() ** 3
    expected = health(z, chunk=100).sigreg_standardised
    first, second = two_processes.run(_health_on_rank, list(z.split([200, 3 * SIGREG_ROWS - 200])))
    assert first == second
    assert first["sigreg_standardised"] == pytest.approx(expected, rel=0.3)
