"""The training loop every model uses: one process or many, exact resume, nothing lost on Ctrl-C."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from worldmodel.distributed import any_rank, barrier, is_distributed, on_this_rank_only, rank, world_size
from worldmodel.objectives import Loss
from worldmodel.protocols import RepresentationCollapse, Task
from worldmodel.training.checkpoints import CheckpointError, load_checkpoint, restore, save_checkpoint
from worldmodel.training.config import TrainerConfig
from worldmodel.training.metrics import MetricsLog
from worldmodel.training.order import BatchOrder
from worldmodel.training.run_folder import RunFolder


class TrainingDiverged(RuntimeError):
    """A loss or gradient is NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """How a call of `fit` ended: steps finished in all, of how many, and whether it was stopped before the end."""

    step: int
    max_steps: int
    interrupted: bool


class _Step(nn.Module):
    """Gives DDP the forward it wraps."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: Any, step: int) -> Loss:
        return self.task.training_step(batch, step)  # type: ignore[operator]


class _StopRequest:
    """Ctrl-C and SIGTERM ask for a stop after the running step; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        print("\nstopping after this step; the run will be saved (Ctrl-C again to quit now)", file=sys.stderr)


@contextmanager
def _stop_on_signal() -> Iterator[_StopRequest]:
    request = _StopRequest()
    try:
        old = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are the caller's
        old = {}
    try:
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _apply_schedule(optimizer: torch.optim.Optimizer, config: TrainerConfig, step: int) -> float:
    rate, beta1 = config.schedule.at(step, config.max_steps)
    for group in optimizer.param_groups:
        group["lr"], group["betas"] = rate, (beta1, config.beta2)
    return rate


def fit(
    task: nn.Module,
    *,
    dataset: Dataset[Any],
    collate: Callable[[list[Any]], Any],
    heldout: Sequence[Any],
    run: RunFolder,
    config: TrainerConfig,
    device: torch.device,
) -> FitResult:
    """Train a task to config.max_steps, continuing from the newest checkpoint of the run folder if there is one.

    Args:
        task: an nn.Module that fulfils `Task`.
        dataset: map-style, indexed by `order.Key`.
        collate: samples to a batch with `.to(device)`.
        heldout: batches for the monitors; every rank holds all of them.
        run: an opened run folder.

    Raises:
        TrainingDiverged, RepresentationCollapse: training on makes no sense; the last good checkpoint is on disk.
        CheckpointError: the checkpoint does not fit the task.
    """
    if not isinstance(task, Task):
        raise TypeError(
            f"{type(task).__name__} lacks training_step, after_step or monitors (worldmodel.protocols.Task)"
        )
    task.to(device)
    parameters = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.schedule.max_lr, weight_decay=config.weight_decay)
    latest = run.latest_checkpoint()
    start = 0
    if latest is not None:
        checkpoint = load_checkpoint(latest)
        if checkpoint.state["max_steps"] != config.max_steps:
            raise CheckpointError(
                f"{latest} is of a run of {checkpoint.state['max_steps']} steps and its schedules depend on that; "
                f"resume with trainer.max_steps={checkpoint.state['max_steps']} or start a new run"
            )
        restore(checkpoint, model=task, optimizer=optimizer)
        start = checkpoint.step
    main = rank() == 0
    log = MetricsLog(
        run.metrics if main else None, finished_steps=start, wandb_mode=config.wandb, run_name=run.path.name
    )
    loop = _Loop(task, parameters, optimizer, run, config, device, log, heldout)
    try:
        with _stop_on_signal() as stop:
            return loop.run_from(start, dataset, collate, stop)
    finally:
        log.close()


class _Loop:
    def __init__(
        self,
        task: nn.Module,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        run: RunFolder,
        config: TrainerConfig,
        device: torch.device,
        log: MetricsLog,
        heldout: Sequence[Any],
    ) -> None:
        self.task, self.parameters, self.optimizer = task, parameters, optimizer
        self.run, self.config, self.device, self.log, self.heldout = run, config, device, log, heldout
        module = _Step(task)
        self.step_module: nn.Module = module
        if is_distributed():
            ids = [device.index] if device.type == "cuda" else None
            self.step_module = DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)

    def run_from(
        self, start: int, dataset: Dataset[Any], collate: Callable[[list[Any]], Any], stop: _StopRequest
    ) -> FitResult:
        config = self.config
        end = (
            config.max_steps
            if config.stop_after is None
            else min(config.max_steps, start + config.stop_after)
        )
        order = BatchOrder(
            size=len(dataset),  # type: ignore[arg-type]
            micro_batch=config.micro_batch(world_size()),
            accumulate=config.accumulate,
            rank=rank(),
            world=world_size(),
            seed=config.seed,
            start_step=start,
            max_steps=end,
        )
        loader = DataLoader(
            dataset,
            batch_sampler=order,
            collate_fn=collate,
            num_workers=config.num_workers,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if config.num_workers else None,
        )
        if start == 0:
            self.evaluate(0)
        batches = iter(loader)
        saved = start
        with self._bar(start) as bar:
            for step in range(start, end):
                values = self.train_step(step, batches)
                done = step + 1
                self.log.write(done, values)
                bar.update()
                bar.set_postfix_str(
                    f"loss {values['loss']:.4f}, {values['time/frames_per_s']:.1f} frames/s", refresh=False
                )
                if done % config.eval_every == 0 or done == config.max_steps:
                    self.evaluate(done)
                stopping = any_rank(stop.requested, self.device)
                if done % config.checkpoint_every == 0 or done == end or stopping:
                    self.save(done)
                    saved = done
                if stopping and done < config.max_steps:
                    return FitResult(step=done, max_steps=config.max_steps, interrupted=True)
        if saved != max(start, end):
            self.save(end)
        return FitResult(step=max(start, end), max_steps=config.max_steps, interrupted=end < config.max_steps)

    def train_step(self, step: int, batches: Iterator[Any]) -> dict[str, float]:
        """One optimiser step; returns the numbers to log."""
        began = time.perf_counter()
        config = self.config
        learning_rate = _apply_schedule(self.optimizer, config, step)
        sums: dict[str, torch.Tensor] = {}
        waited = 0.0
        for micro in range(config.accumulate):
            asked = time.perf_counter()
            batch = next(batches).to(self.device)
            waited += time.perf_counter() - asked
            last = micro == config.accumulate - 1
            sync = nullcontext() if last or not is_distributed() else self.step_module.no_sync()  # type: ignore[operator]
            with sync:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                    loss = self.step_module(batch, step)
                (loss.total / config.accumulate).backward()
            for name, value in {"loss": loss.total, **loss.parts}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() / config.accumulate
        norm = nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
        values = _to_floats({**sums, "gradient_norm": norm})
        if not (_finite(values["loss"]) and _finite(values["gradient_norm"])):
            self.log.write(step + 1, values)
            raise TrainingDiverged(self._diverged(step, values))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        values |= self.task.after_step(step, config.max_steps)  # type: ignore[operator]
        seconds = time.perf_counter() - began
        timing = {
            "time/step_s": seconds,
            "time/data_s": waited,
            "time/frames_per_s": config.batch_size / seconds,
        }
        return {**values, "learning_rate": learning_rate, **timing}

    def evaluate(self, done: int) -> None:
        """Monitors on held-out batches. Every rank computes them on all batches, so all take the same decision."""
        if not self.heldout:
            return
        self.task.eval()
        with on_this_rank_only(), torch.no_grad():
            try:
                values = self.task.monitors(self.heldout)  # type: ignore[operator]
            except RepresentationCollapse as error:
                raise RepresentationCollapse(
                    f"{error} (after step {done}; metrics in {self.run.metrics})"
                ) from None
            finally:
                self.task.train()
        self.log.write(done, {f"heldout/{name}": value for name, value in values.items()})

    def save(self, done: int) -> None:
        if rank() == 0:
            state = {
                "max_steps": self.config.max_steps,
                "seed": self.config.seed,
                "batch_size": self.config.batch_size,
            }
            save_checkpoint(
                self.run.checkpoints,
                step=done,
                model=self.task,
                optimizer=self.optimizer,
                state=state,
                keep=self.config.keep_checkpoints,
            )
        barrier()

    def _bar(self, start: int) -> tqdm:
        quiet = not self.config.progress or rank() != 0
        # A log file gets a line every half a minute instead of thousands.
        return tqdm(
            total=self.config.max_steps,
            initial=start,
            desc="pretraining",
            unit="step",
            disable=quiet,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            dynamic_ncols=True,
        )

    def _diverged(self, step: int, values: Mapping[str, float]) -> str:
        parts = ", ".join(f"{k} {v:.4g}" for k, v in values.items())
        kept = self.run.latest_checkpoint()
        return (
            f"training diverged at step {step + 1}: {parts}. Lower the learning rate (trainer.max_lr) or use "
            f"trainer.precision=fp32; the last good checkpoint is {kept or 'none yet'}"
        )


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def _to_floats(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """One transfer from the device for all numbers of a step."""
    stacked = torch.stack([v.reshape(()).float() for v in values.values()]).cpu()
    return {name: float(v) for name, v in zip(values, stacked, strict=True)}
