"""A sample of a stream that does not depend on how the stream is cut."""

import pytest
import torch

from tests.worldmodel.monitors.samples import gaussian
from tests.worldmodel.two_processes import TwoProcesses
from worldmodel.monitors.sampling import RowSample, row_keys


def sample(z: torch.Tensor, *, chunk: int, size: int = 10, seed: int = 0) -> torch.Tensor:
    keeper = RowSample(size, seed=seed)
    for part in z.split(chunk):
        keeper.add(part)
    return keeper.here(z.shape[1])


def as_set(rows: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in rows.tolist()}


def test_the_sample_does_not_depend_on_batches_or_order() -> None:
    z = gaussian(100, 4).double()
    reference = as_set(sample(z, chunk=100))
    assert len(reference) == 10
    assert reference < as_set(z)
    for chunk in (1, 7, 60):
        assert as_set(sample(z, chunk=chunk)) == reference
    assert as_set(sample(z.flip(0), chunk=9)) == reference
    assert as_set(sample(z, chunk=100, seed=1)) != reference


def test_a_short_stream_is_kept_whole_and_an_empty_one_is_empty() -> None:
    z = gaussian(6, 4).double()
    assert as_set(sample(z, chunk=4)) == as_set(z)
    assert RowSample(5).here(4).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_keys_are_spread_whatever_the_precision(dtype: torch.dtype) -> None:
    """Upcast features end in zero bits: their keys must differ all the same, and not follow the values."""
    z = gaussian(20_000, 4).to(dtype).double().unique(dim=0)
    keys = row_keys(z, seed=0)
    assert len(keys.unique()) > 0.9999 * len(keys)
    counts = torch.histc(keys.double(), bins=16, min=-(2.0**63), max=2.0**63)
    assert (counts / len(z) * 16 - 1).abs().max() < 0.15
    chosen = z[keys.argsort()[:5000]]
    assert chosen.mean(0).abs().max() < 0.06
    assert (chosen.std(0) - 1).abs().max() < 0.06


def _on_rank(rank: int, shares: list[torch.Tensor]) -> torch.Tensor:
    keeper = RowSample(10)
    if len(shares[rank]):
        keeper.add(shares[rank])
    return keeper.here(4)


@pytest.mark.parametrize("sizes", [(30, 30), (1, 59), (0, 60)])
def test_over_two_processes(two_processes: TwoProcesses, sizes: tuple[int, int]) -> None:
    z = gaussian(60, 4).double()
    parts = two_processes.run(_on_rank, list(z.split(list(sizes))))
    assert sum(map(len, parts)) == 10
    assert as_set(torch.cat(parts)) == as_set(sample(z, chunk=60))


def test_equal_rows_on_two_processes_are_not_counted_twice(two_processes: TwoProcesses) -> None:
    parts = two_processes.run(_on_rank, [torch.ones(8, 4).double()] * 2)
    assert [len(part) for part in parts] == [8, 2]
