"""The prediction error against copying the last latent."""

import math
from dataclasses import astuple

import pytest
import torch

from tests.worldmodel.monitors.samples import gaussian
from tests.worldmodel.two_processes import TwoProcesses
from worldmodel.monitors import CopyLast, CopyLastSummary


def ratio(**tensors: torch.Tensor) -> CopyLastSummary:
    monitor = CopyLast()
    monitor.update(**tensors)
    return monitor.compute()


def test_against_a_direct_computation_over_a_horizon() -> None:
    last, target, prediction = gaussian(5, 1, 3), gaussian(5, 4, 3, seed=1), gaussian(5, 4, 3, seed=2)
    summary = ratio(prediction=prediction, target=target, last=last)
    assert summary.count == 20
    assert summary.error == pytest.approx(float((prediction - target).square().sum(-1).mean()), rel=1e-6)
    assert summary.copy_error == pytest.approx(float((last - target).square().sum(-1).mean()), rel=1e-6)
    assert summary.ratio == pytest.approx(summary.error / summary.copy_error)


def test_copying_is_chance_and_half_the_way_is_a_quarter() -> None:
    last, target = gaussian(9, 3), gaussian(9, 3, seed=1)
    assert ratio(prediction=last, target=target, last=last).ratio == 1.0
    assert ratio(prediction=(last + target) / 2, target=target, last=last).ratio == pytest.approx(0.25)
    assert ratio(prediction=target, target=target, last=last).ratio == 0.0


def test_targets_that_never_change() -> None:
    z = gaussian(9, 3)
    assert ratio(prediction=z, target=z, last=z).ratio == 1.0
    assert ratio(prediction=z + 1, target=z, last=z).ratio == math.inf


def test_masked_positions_of_garbage_change_nothing() -> None:
    last, target, prediction = gaussian(40, 1, 3), gaussian(40, 2, 3, seed=1), gaussian(40, 2, 3, seed=2)
    mask = gaussian(40, 2, seed=3) > 0
    spoilt = torch.where(mask.unsqueeze(-1), prediction, torch.nan)
    clean = ratio(prediction=prediction[mask], target=target[mask], last=last.expand(40, 2, 3)[mask])
    assert astuple(ratio(prediction=spoilt, target=target, last=last, mask=mask)) == pytest.approx(
        astuple(clean), rel=1e-12
    )
    assert clean.count == int(mask.sum())


def test_values_that_are_not_finite_give_nan() -> None:
    z = gaussian(9, 3)
    for value in (torch.nan, torch.inf):
        bad = z.clone()
        bad[2, 1] = value
        assert math.isnan(ratio(prediction=bad, target=z, last=z + 1).ratio)
        assert math.isnan(ratio(prediction=z, target=z, last=bad).ratio)
        assert math.isnan(ratio(prediction=bad, target=z, last=z).ratio)


def test_bf16_is_upcast() -> None:
    z, target = gaussian(9, 3).bfloat16(), gaussian(9, 3, seed=1).bfloat16()
    expected = (z.double() - target.double()).square().sum(-1).mean()
    assert ratio(prediction=z, target=target, last=z).error == pytest.approx(float(expected), rel=1e-12)


def test_errors() -> None:
    z = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"must share a shape \[..., D\], got \(4, 3\) and \(5, 3\)"):
        ratio(prediction=z, target=torch.zeros(5, 3), last=z)
    with pytest.raises(ValueError, match=r"last \(2, 3\) cannot be broadcast"):
        ratio(prediction=z, target=z, last=torch.zeros(2, 3))
    for mask in (torch.ones(4), torch.ones(3, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"bool mask of shape \(4,\)"):
            ratio(prediction=z, target=z, last=z, mask=mask)
    with pytest.raises(ValueError, match="never updated"):
        CopyLast().compute()


def _on_rank(rank: int, shares: list[tuple[torch.Tensor, ...]]) -> tuple[float, ...]:
    monitor = CopyLast()
    prediction, target, last = shares[rank]
    if len(target):
        monitor.update(prediction=prediction, target=target, last=last)
    return astuple(monitor.compute())


@pytest.mark.parametrize("sizes", [(30, 30), (1, 59), (0, 60)])
def test_over_two_processes(two_processes: TwoProcesses, sizes: tuple[int, int]) -> None:
    tensors = [gaussian(60, 3, seed=i).double() for i in range(3)]
    prediction, target, last = tensors
    expected = astuple(ratio(prediction=prediction, target=target, last=last))
    shares = list(zip(*[t.split(list(sizes)) for t in tensors], strict=True))
    for answer in two_processes.run(_on_rank, shares):
        assert answer == pytest.approx(expected, rel=1e-12)
