"""Reductions, the processes of torchrun and Slurm, devices."""

from collections.abc import Sequence

import pytest
import torch

from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process
from worldmodel import distributed
from worldmodel.distributed import (
    any_rank,
    at_least_fp32,
    barrier,
    broadcast_text,
    gather_1d,
    is_distributed,
    mean_over_ranks,
    on_this_rank_only,
    process_group,
    rank,
    resolve_device,
    sum_over_ranks,
    world_size,
)


def test_one_process_is_the_identity() -> None:
    value = torch.arange(3.0)
    assert not is_distributed()
    assert (rank(), world_size()) == (0, 1)
    assert sum_over_ranks(value) is value
    assert gather_1d(value) is value
    assert any_rank(True, torch.device("cpu"))
    assert not any_rank(False, torch.device("cpu"))
    assert broadcast_text("a") == "a"
    barrier()


def test_mean_of_nothing_is_zero() -> None:
    assert float(mean_over_ranks(torch.tensor(0.0), 0)) == 0.0


def test_at_least_fp32() -> None:
    dtypes = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    assert [at_least_fp32(torch.zeros(1, dtype=d)).dtype for d in dtypes] == [torch.float32] * 3 + [
        torch.float64
    ]


def _reductions(rank_: int) -> dict[str, object]:
    device = torch.device("cpu")
    ones = torch.ones(2)
    alone = []
    with on_this_rank_only():
        alone += [is_distributed(), rank(), world_size(), float(sum_over_ranks(ones)[0])]
        barrier()
    return {
        "rank": rank() == rank_ and world_size() == 2 and is_distributed(),
        "sum": sum_over_ranks(ones * (rank_ + 1)).tolist(),
        "untouched": ones.tolist(),
        "mean": float(mean_over_ranks(torch.tensor(float(rank_ + 1)), rank_ * 3)),
        "gathered": gather_1d(torch.arange(rank_ * 3) + 10 * rank_).tolist(),
        "gathered_nothing": gather_1d(torch.zeros(0)).tolist(),
        "any": [any_rank(flag, device) for flag in (rank_ == 1, False, True)],
        "text": broadcast_text(f"of rank {rank_}"),
        "alone": alone,
    }


def test_two_processes(two_processes: TwoProcesses) -> None:
    for answer in two_processes.run(_reductions):
        assert answer == {
            "rank": True,
            "sum": [3.0, 3.0],
            "untouched": [1.0, 1.0],
            "mean": 1.0,
            "gathered": [10, 11, 12],
            "gathered_nothing": [],
            "any": [True, False, True],
            "text": "of rank 0",
            "alone": [False, 0, 1, 1.0],
        }


def _quotient(parameters: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """A non-linear function of two reduced sums."""
    y = x @ parameters[0]
    return sum_over_ranks(y.sum(0)).tanh().sum() * mean_over_ranks(y.square().sum(), len(y))


@pytest.mark.parametrize("sizes", [(4, 4), (1, 7), (0, 8)])
def test_gradient_through_sums(two_processes: TwoProcesses, sizes: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    assert_equals_one_process(
        two_processes,
        _quotient,
        parameters=[torch.randn(3, 3, generator=generator, dtype=torch.float64)],
        shares=x.split(list(sizes)),
        joined=x,
        atol=1e-12,
    )


def test_slurm_variables_become_those_of_torchrun() -> None:
    slurm = {
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_PROCID": "2",
        "SLURM_LOCALID": "0",
        "MASTER_ADDR": "node1",
    }
    assert distributed._slurm_to_torchrun(slurm) == {
        "RANK": "2",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "0",
        "MASTER_PORT": "29500",
    }
    assert distributed._slurm_to_torchrun({**slurm, "RANK": "0"}) == {}
    assert distributed._slurm_to_torchrun({**slurm, "SLURM_STEP_NUM_TASKS": "1"}) == {}
    assert distributed._slurm_to_torchrun({}) == {}
    with pytest.raises(RuntimeError, match="MASTER_ADDR"):
        distributed._slurm_to_torchrun({k: v for k, v in slurm.items() if k != "MASTER_ADDR"})


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="sees no GPU"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert resolve_device("auto") == torch.device("cuda:3")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")


def test_process_group_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    with process_group("cpu") as device:
        assert device == torch.device("cpu")
        assert not is_distributed()
