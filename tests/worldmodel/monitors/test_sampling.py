"""A sample of a stream that does not depend on how the stream is cut."""

import pytest
import torch

from tests.worldmodel.monitors.samples import gaussian
from tests.worldmodel.two_processes import TwoProcesses
from worldmodel.monitors.sampling import RowSample


def sample(z: torch.Tensor, *, chunk: int, size: int = 10, seed: int = 0) -> torch.Tensor:
    keeper = RowSample(size, seed=seed)
    for part in z.split(chunk):
        keeper.add(part)
    return keeper.here(z.shape[1])


def as_set(rows: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in rows.tolist()}


def test_the_sample_does_not_depend_on_batches() -> None:
    z = gaussian(100, 4).double()
    reference = as_set(sample(z, chunk=100))
    assert len(reference) == 10
    assert reference < as_set(z)
    for chunk in (1, 7, 60):
        assert as_set(sample(z, chunk=chunk)) == reference
    assert as_set(sample(z, chunk=100, seed=1)) != reference


def test_a_short_stream_is_kept_whole_and_an_empty_one_is_empty() -> None:
    z = gaussian(6, 4).double()
    assert as_set(sample(z, chunk=4)) == as_set(z)
    assert RowSample(5).here(4).shape == (0, 4)


def test_every_row_is_as_likely_as_any_other() -> None:
    counts = torch.zeros(40)
    for seed in range(2000):
        counts[sample(torch.arange(40.0).double().unsqueeze(1), chunk=13, seed=seed)[:, 0].long()] += 1
    assert float((counts / 500 - 1).abs().max()) < 0.2  # 500 times each; the standard deviation is 0.04


def test_equal_rows_are_drawn_one_by_one() -> None:
    """Ten points with a tenth of the rows each: a sample that took or left all copies of a row would hold one."""
    z = torch.arange(10.0).double().repeat_interleave(1000).unsqueeze(1)
    counts = torch.bincount(sample(z, chunk=333, size=500)[:, 0].long(), minlength=10)
    assert int(counts.min()) > 25
    assert int(counts.max()) < 80


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
    assert as_set(torch.cat(parts)) < as_set(z)
    assert len(as_set(torch.cat(parts))) == 10


def test_ranks_draw_different_numbers(two_processes: TwoProcesses) -> None:
    """With the same ones the first rows of both ranks would be chosen together."""
    z = gaussian(16, 4).double()
    first, second = two_processes.run(_on_rank, [z[:8], z[:8]])
    assert len(first) + len(second) == 10
    assert as_set(first) != as_set(second)
