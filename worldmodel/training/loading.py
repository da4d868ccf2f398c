"""Batches from loader processes that outlive a Ctrl-C and end with the training loop."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader, Dataset

from worldmodel.training.order import BatchOrder

# Seconds a loader process goes on after SIGTERM; torchrun and Slurm kill after as long.
GRACE_S = 30


def _leave_stopping_to_parent(worker: int) -> None:
    """A terminal, torchrun and Slurm signal the whole process group, but a loader process that dies of it takes the
    training process along before it can save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_S))  # SIGALRM ends the process


@contextmanager
def micro_batches(
    dataset: Dataset[Any],
    *,
    order: BatchOrder,
    collate: Callable[[list[Any]], Any],
    num_workers: int,
    pin_memory: bool,
) -> Iterator[Iterator[Any]]:
    """The micro-batches of `order`, read by `num_workers` processes (0: by this one) that end with the block."""
    loader = DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_leave_stopping_to_parent,
    )
    batches = iter(loader)
    try:
        yield batches
    finally:
        # Left to the garbage collector they would live as long as the traceback of an error.
        shut_down = getattr(batches, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()
