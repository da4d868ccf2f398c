"""Synchronised BatchNorm against torch's own, over two processes against one, and recalibration."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process
from worldmodel.nn.batch_norm import SyncedBatchNorm1d, SyncedBatchNorm2d, recalibrated

PAIRS = [
    (SyncedBatchNorm1d, nn.BatchNorm1d, (9, 4)),
    (SyncedBatchNorm2d, nn.BatchNorm2d, (9, 4, 3, 2)),
]


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 3


@pytest.mark.parametrize(("synced", "plain", "shape"), PAIRS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"momentum": None}, {"eps": 1e-3, "momentum": 0.01}]
)
def test_one_process_is_torch_bit_for_bit(
    synced: type, plain: type, shape: tuple[int, ...], training: bool, options: dict[str, Any]
) -> None:
    ours, reference = synced(4, **options).train(training), plain(4, **options).train(training)
    for step in range(3):
        x = rows(*shape, seed=step).requires_grad_()
        y = x.detach().clone().requires_grad_()
        out, expected = ours(x), reference(y)
        out.square().sum().backward()
        expected.square().sum().backward()
        assert torch.equal(out, expected)
        assert torch.equal(x.grad, y.grad)
    assert ours.state_dict().keys() == reference.state_dict().keys()
    for name, value in reference.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


@pytest.mark.parametrize("count", [0, 1])
def test_few_rows_pass_with_the_running_statistics(count: int) -> None:
    norm = SyncedBatchNorm1d(4)
    norm(rows(20, 4))
    before = copy.deepcopy(norm.state_dict())
    x = rows(count, 4, seed=1)
    out = norm(x)
    torch.testing.assert_close(out, copy.deepcopy(norm).eval()(x))
    for name, value in before.items():
        assert torch.equal(norm.state_dict()[name], value), name


def test_one_sample_with_many_cells_has_a_batch_statistic() -> None:
    norm = SyncedBatchNorm2d(4)
    out = norm(rows(1, 4, 5, 5))
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(4), atol=1e-6, rtol=0)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\[N, C\]"):
        SyncedBatchNorm1d(4)(torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match=r"\[B, C, H, W\]"):
        SyncedBatchNorm2d(4)(torch.zeros(2, 4))


def test_bf16_keeps_its_type() -> None:
    assert SyncedBatchNorm1d(4)(rows(8, 4).bfloat16()).dtype == torch.bfloat16


# Two processes.


def _norm(channels: int, dims: int) -> nn.Module:
    return (SyncedBatchNorm1d(channels) if dims == 2 else SyncedBatchNorm2d(channels)).double()


def _loss(parameters: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """A loss of BatchNorm whose gradient reaches its scale, its shift and what is in front of it."""
    from worldmodel.distributed import mean_over_ranks

    weight, bias, mixing = parameters
    norm = _norm(4, x.ndim)
    mixed = torch.einsum("nc...,cd->nd...", x, mixing)
    out = torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (mixed,))
    powers = torch.arange(1.0, 5, dtype=x.dtype).view(1, -1, *[1] * (x.ndim - 2))
    return mean_over_ranks((out.tanh() * powers).sum(), out.numel())


@pytest.mark.parametrize("shape", [(12, 4), (12, 4, 3, 2)])
@pytest.mark.parametrize("sizes", [(6, 6), (1, 11), (0, 12)])
def test_gradients_over_two_processes(
    two_processes: TwoProcesses, shape: tuple[int, ...], sizes: tuple[int, int]
) -> None:
    x = rows(*shape).double()
    generator = torch.Generator().manual_seed(5)
    parameters = [torch.rand(4, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2)]
    assert_equals_one_process(
        two_processes,
        _loss,
        parameters=[*parameters, torch.randn(4, 4, generator=generator, dtype=torch.float64)],
        shares=x.split(list(sizes)),
        joined=x,
        atol=1e-12,
    )


Trace = tuple[list[torch.Tensor], list[torch.Tensor], dict[str, torch.Tensor]]


def _trace(batches: list[torch.Tensor], double: bool) -> Trace:
    """Outputs, input gradients and final state of a norm over some batches."""
    norm = _norm(4, batches[0].ndim)
    norm = norm if double else norm.float()
    outputs, gradients = [], []
    for batch in batches:
        x = batch.clone().requires_grad_()
        out = norm(x)
        out.pow(3).sum().backward()
        outputs.append(out.detach())
        gradients.append(x.grad)
    return outputs, gradients, dict(norm.state_dict())


def _trace_on_rank(rank: int, shares: list[list[torch.Tensor]], double: bool) -> Trace:
    return _trace(shares[rank], double)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("shape", [(12, 4), (12, 4, 3, 2)])
@pytest.mark.parametrize("sizes", [(6, 6), (2, 10), (0, 12)])
def test_outputs_inputs_and_running_statistics_over_two_processes(
    two_processes: TwoProcesses, shape: tuple[int, ...], sizes: tuple[int, int], double: bool
) -> None:
    batches = [rows(*shape, seed=s).double() if double else rows(*shape, seed=s) for s in range(3)]
    parts = [list(batch.split(list(sizes))) for batch in batches]
    outputs, gradients, state = _trace(batches, double)
    results = two_processes.run(_trace_on_rank, [[p[r] for p in parts] for r in range(2)], double)
    close = {"atol": 1e-12 if double else 2e-5, "rtol": 0}
    for step in range(3):
        torch.testing.assert_close(torch.cat([r[0][step] for r in results]), outputs[step], **close)
        # The sum over ranks of a local sum is the joint loss already: no averaging for the inputs.
        torch.testing.assert_close(torch.cat([r[1][step] for r in results]), gradients[step], **close)
    for result in results:
        for name, value in state.items():
            torch.testing.assert_close(result[2][name], value, **close)


@pytest.mark.parametrize("sizes", [(1, 0), (0, 0)])
def test_few_rows_on_all_ranks_together(two_processes: TwoProcesses, sizes: tuple[int, int]) -> None:
    warm, few = rows(10, 4).double(), rows(sum(sizes), 4, seed=1).double()
    parts = [[a, b] for a, b in zip(warm.split(5), few.split(list(sizes)), strict=True)]
    outputs, gradients, state = _trace([warm, few], True)
    results = two_processes.run(_trace_on_rank, parts, True)
    torch.testing.assert_close(torch.cat([r[0][1] for r in results]), outputs[1], atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.cat([r[1][1] for r in results]), gradients[1], atol=1e-12, rtol=0)
    for name, value in state.items():
        torch.testing.assert_close(results[0][2][name], value, atol=1e-12, rtol=0)


def test_large_mean_keeps_precision(two_processes: TwoProcesses) -> None:
    x = rows(12, 4) + 1000
    results = two_processes.run(_trace_on_rank, [[p] for p in x.split(6)], False)
    expected = _trace([x.double()], True)[0][0]
    torch.testing.assert_close(
        torch.cat([r[0][0] for r in results]).double(), expected, atol=1e-3, rtol=0
    )  # sums of squares in fp32 would lose everything here


# Recalibration.


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), SyncedBatchNorm1d(4, momentum=0.3), nn.ReLU(), nn.Dropout(0.0))


def test_recalibration_averages_batch_statistics_and_leaves_the_module() -> None:
    module = network()
    module(rows(20, 3))
    module[0].weight.grad = torch.ones_like(module[0].weight)
    before = copy.deepcopy(module.state_dict())
    batches = [rows(size, 3, seed=size) for size in (5, 8, 13)]
    frozen = recalibrated(module, iter(batches), lambda m, x: m(x))

    hidden = [module[0](x) for x in batches]
    torch.testing.assert_close(frozen[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(frozen[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert frozen[1].momentum == 0.3
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())

    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    for name, value in before.items():
        assert torch.equal(module.state_dict()[name], value), name


def test_recalibration_without_inputs_only_freezes() -> None:
    module = network()
    module(rows(20, 3))
    frozen = recalibrated(module, [], lambda m, x: m(x))
    assert not frozen.training
    for name, value in module.state_dict().items():
        assert torch.equal(frozen.state_dict()[name], value), name
