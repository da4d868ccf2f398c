"""Processes and differentiable reductions.

Batch statistics are reduced as sufficient statistics with a differentiable SUM and only then put through a
non-linear function. The loss is then the same number on every rank, and after DDP's averaging its gradient equals
that of one process on the joined batch. Every function here is the identity in a single process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

_alone = False


def is_distributed() -> bool:
    """Whether a process group of more than one rank exists; asked at call time, never cached."""
    return not _alone and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def on_this_rank_only() -> Iterator[None]:
    """Inside, this process counts as the only one and nothing is reduced: evaluation every rank repeats in full."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def at_least_fp32(value: torch.Tensor) -> torch.Tensor:
    """bf16 and fp16 to fp32, the rest as it is: statistics do not follow autocast."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> torch.Tensor:
        gradient = grad_outputs[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Sum of `value` over all ranks, differentiable. The returned tensor must be used; the input is untouched."""
    return _SumOverRanks.apply(value) if is_distributed() else value


def mean_over_ranks(total: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
    """Sum of `total` over ranks divided by the sum of `count` over ranks (at least 1), differentiable in `total`.

    Args:
        total: local sum, any shape.
        count: local number of summed items; ranks may differ.
    """
    counts = torch.as_tensor(count, dtype=total.dtype, device=total.device)
    return sum_over_ranks(total) / sum_over_ranks(counts).clamp_min(1)


def gather_1d(values: torch.Tensor) -> torch.Tensor:
    """Concatenate one-dimensional tensors of unequal length over ranks, in rank order, without gradient."""
    if not is_distributed():
        return values
    size = torch.tensor([len(values)], device=values.device)
    sizes = [torch.zeros_like(size) for _ in range(world_size())]
    dist.all_gather(sizes, size)
    longest = max(1, *(int(s.item()) for s in sizes))
    padded = values.new_zeros(longest)
    padded[: len(values)] = values.detach()
    parts = [torch.zeros_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.cat([p[: int(s.item())] for p, s in zip(parts, sizes, strict=True)])


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank if `flag` is true on at least one."""
    if not is_distributed():
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def broadcast_text(text: str) -> str:
    """Rank 0's text on every rank."""
    box = [text]
    if is_distributed():
        dist.broadcast_object_list(box)
    return box[0]


def barrier() -> None:
    if is_distributed():
        dist.barrier()


def _slurm_to_torchrun(environ: dict[str, str]) -> dict[str, str]:
    """The variables of torchrun from those of `srun`, where only the latter are set."""
    if (
        "RANK" in environ
        or int(environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2
        or "SLURM_PROCID" not in environ
    ):
        return {}
    if "MASTER_ADDR" not in environ:
        raise RuntimeError(
            "started by srun with several tasks but MASTER_ADDR is not set: add "
            "`export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)` to the job script"
        )
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "MASTER_PORT": environ.get("MASTER_PORT", "29500"),
    }


def resolve_device(name: str) -> torch.device:
    """`auto` is this process's GPU if there is one, else the CPU; other names are torch's.

    Raises:
        ValueError: if a GPU is asked for and torch sees none.
    """
    available = torch.cuda.is_available()
    if name.startswith("cuda") and not available:
        raise ValueError(
            f"device {name!r} was asked for, but this torch ({torch.__version__}) sees no GPU: "
            f"use trainer.device=cpu, or install a CUDA build of torch"
        )
    if name == "auto":
        name = "cuda" if available else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return torch.device(name)


@contextmanager
def process_group(device: str = "auto", timeout: timedelta = timedelta(hours=6)) -> Iterator[torch.device]:
    """Join the process group that torchrun or srun describes (none: one process) and yield this rank's device.

    After an error the group is left to the end of the process: the other ranks may be inside a collective, and a
    closed connection is what tells them.
    """
    os.environ.update(_slurm_to_torchrun(dict(os.environ)))
    here = resolve_device(device)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    grouped = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if grouped:
        # Both backends on a GPU: monitors reduce float64 sums on the CPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo", timeout=timeout)
    yield here
    if grouped:
        dist.destroy_process_group()
