"""Two gloo processes, started once, that call module-level functions together; and what two-process tests compare."""

import multiprocessing
import pickle
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE_S = 90.0


class TwoProcesses:
    """Ranks 0 and 1 of a gloo group, waiting for work; started when first asked, and anew after a failure."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._starts = 0
        self._pipes: list[Connection] = []
        self._processes: list[SpawnProcess] = []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._starts += 1
        store = str(self._folder / f"store_{self._starts}")
        for rank in range(2):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, store, there))
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """[function(rank, *arguments) for both ranks], called at the same time; `function` is importable by name."""
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((function, arguments)))
        results = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(PATIENCE_S):
                self.close()
                raise TimeoutError(f"rank {rank} did not finish {function.__name__} in {PATIENCE_S:.0f} s")
            error, result = pickle.loads(pipe.recv_bytes())
            if error:
                self.close()
                raise AssertionError(f"rank {rank} failed in {function.__name__}:\n{error}")
            results.append(result)
        return results

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._pipes, self._processes = [], []


def _serve(rank: int, store: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=PATIENCE_S)
    )
    while True:
        try:
            function, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:  # the test process is gone
            return
        try:
            answer = ("", function(rank, *arguments))
        except Exception:
            answer = (traceback.format_exc(), None)
        pipe.send_bytes(pickle.dumps(answer))


LossOf = Callable[[Sequence[torch.Tensor], Any], torch.Tensor]


def loss_and_gradients(
    loss_of: LossOf, parameters: Sequence[torch.Tensor], batch: Any
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradient of loss_of(parameters, batch) in this process, averaged over ranks as DDP does."""
    own = [p.clone().requires_grad_() for p in parameters]
    loss = loss_of(own, batch)
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
    if dist.is_initialized():
        for gradient in gradients:
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
    return loss.detach(), gradients


def _on_rank(rank: int, loss_of: LossOf, parameters: Sequence[torch.Tensor], shares: Sequence[Any]) -> Any:
    return loss_and_gradients(loss_of, parameters, shares[rank])


def assert_equals_one_process(
    pair: TwoProcesses,
    loss_of: LossOf,
    *,
    parameters: Sequence[torch.Tensor],
    shares: Sequence[Any],
    joined: Any,
    atol: float,
) -> None:
    """Both ranks have the loss of one process on the joined batch and, after averaging, its gradient."""
    loss, gradients = loss_and_gradients(loss_of, parameters, joined)
    assert any(float(g.abs().max()) > 100 * atol for g in gradients), "a vanishing gradient proves nothing"
    for rank_loss, rank_gradients in pair.run(_on_rank, loss_of, list(parameters), list(shares)):
        torch.testing.assert_close(rank_loss, loss, atol=atol, rtol=0)
        for mine, reference in zip(rank_gradients, gradients, strict=True):
            torch.testing.assert_close(mine, reference, atol=atol, rtol=0)
