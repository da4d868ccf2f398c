"""RankMe and its neighbours against closed forms, against one SVD, and over two processes."""

import math
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch

from tests.worldmodel.two_processes import TwoProcesses
from worldmodel.monitors import EmbeddingHealth, EmbeddingMonitor, effective_rank, rankme


def with_singular_values(values: torch.Tensor, *, rows: int, seed: int = 0) -> torch.Tensor:
    """A matrix [rows, K] with these singular values and random singular vectors."""
    k, generator = len(values), torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, k, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=torch.float64))[0]
    return left * values.double() @ right


def gaussian(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def svd_rankme(z: torch.Tensor) -> float:
    """By the definition, from singular values."""
    s = torch.linalg.svdvals(z.double())
    p = s / s.sum()
    return float(torch.special.entr(p).sum().exp())


def health(z: torch.Tensor, *, chunk: int = 64, gamma: float | None = None) -> EmbeddingHealth:
    monitor = EmbeddingMonitor(z.shape[1], gamma=gamma)
    for part in z.split(chunk):
        monitor.update(part)
    return monitor.compute()


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
    assert effective_rank(values.double().square()) == pytest.approx(expected, rel=1e-4)


def test_slow_geometric_spectrum() -> None:
    assert effective_rank((0.99 ** torch.arange(4000.0).double()).square()) == pytest.approx(
        270.468, rel=1e-4
    )


def test_rank_eight_in_2048_dimensions_reads_eight() -> None:
    """An epsilon of 1e-5 in the entropy would read 10.1."""
    values = torch.cat([torch.ones(8), torch.zeros(2040)]).double()
    assert effective_rank(values + 1e-16) == pytest.approx(8.0, abs=1e-9)  # rounding as eigvalsh leaves it
    z = gaussian(400, 8).double() @ torch.linalg.qr(gaussian(512, 8, seed=1).double())[0].T
    assert rankme(z) == pytest.approx(8.0, abs=0.05)


@pytest.mark.parametrize(("ratio", "expected"), [(1, 0.806), (2, 0.9261), (4, 0.9662), (10, 0.9871)])
def test_isotropic_data_follow_marchenko_pastur(ratio: int, expected: float) -> None:
    assert rankme(gaussian(256 * ratio, 256)) / 256 == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z * 7.5,
        lambda z: z @ torch.linalg.qr(gaussian(16, 16, seed=3).double())[0],
        lambda z: torch.linalg.qr(gaussian(90, 90, seed=3).double())[0] @ z,
        lambda z: torch.cat([z, z]),
    ],
    ids=["scale", "right rotation", "left rotation", "duplication"],
)
def test_invariance(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    z = gaussian(90, 16).double() * torch.linspace(0.1, 2, 16)
    assert rankme(change(z)) == pytest.approx(rankme(z), rel=1e-9)


@pytest.mark.parametrize("chunk", [1, 7, 200])
def test_streaming_equals_one_batch(chunk: int) -> None:
    z = gaussian(200, 24).double() * torch.logspace(0, -3, 24) + 0.3
    summary = health(z, chunk=chunk)
    assert summary.count == 200
    assert summary.rankme == pytest.approx(svd_rankme(z), rel=1e-6)
    assert summary.rankme_centered == pytest.approx(svd_rankme(z - z.mean(0)), rel=1e-6)
    assert summary.std == pytest.approx(float(z.std(0).mean()), rel=1e-9)


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
    assert math.isfinite(summary.sigreg_over_floor)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_give_nan(bad: float) -> None:
    z = gaussian(10, 4)
    z[3, 2] = bad
    summary = health(z)
    assert summary.count == 10
    assert all(math.isnan(v) for k, v in asdict(summary).items() if k != "count")
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


def test_masked_out_rows_never_enter_by_design() -> None:
    z = gaussian(50, 4)
    keep = torch.arange(50) % 3 > 0
    spoilt = torch.where(keep.unsqueeze(1), z, torch.nan)
    assert health(spoilt[keep]) == health(z[keep])


def test_errors() -> None:
    monitor = EmbeddingMonitor(4)
    with pytest.raises(ValueError, match=r"\[N, 4\], got \(3, 5\)"):
        monitor.update(torch.zeros(3, 5))
    monitor.update(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="at least 2 vectors, got 1"):
        monitor.compute()


def _health_on_rank(rank: int, shares: list[torch.Tensor]) -> dict[str, float]:
    return asdict(health(shares[rank]))


@pytest.mark.parametrize("sizes", [(30, 30), (1, 59), (0, 60)])
def test_over_two_processes(two_processes: TwoProcesses, sizes: tuple[int, int]) -> None:
    z = gaussian(60, 8).double() + 0.2
    expected = asdict(health(z))
    for summary in two_processes.run(_health_on_rank, list(z.split(list(sizes)))):
        assert summary == pytest.approx(expected, rel=1e-12)
