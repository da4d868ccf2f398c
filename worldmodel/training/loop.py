"""The training loop every model uses: one process or many, exact resume, nothing lost on Ctrl-C."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from tqdm import tqdm

from worldmodel.distributed import (
    any_rank,
    broadcast_text,
    is_distributed,
    on_this_rank_only,
    rank,
    world_size,
)
from worldmodel.objectives import Loss, at_least_fp32
from worldmodel.protocols import RepresentationCollapse, Task
from worldmodel.training.checkpoints import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    restore,
    save_checkpoint,
)
from worldmodel.training.config import TrainerConfig
from worldmodel.training.loading import micro_batches
from worldmodel.training.metrics import MetricsLog
from worldmodel.training.order import BatchOrder
from worldmodel.training.run_folder import RunFolder
from worldmodel.training.signals import StopRequest, stop_on_signal


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


def _apply_schedule(optimizer: torch.optim.Optimizer, config: TrainerConfig, step: int) -> float:
    rate, beta1 = config.schedule.at(step, config.max_steps)
    for group in optimizer.param_groups:
        group["lr"], group["betas"] = rate * group["rate_scale"], (beta1, config.beta2)
    return rate


def _parameter_groups(task: nn.Module, config: TrainerConfig) -> list[dict[str, Any]]:
    """Trained parameters by learning-rate scale, vectors apart from matrices if they are not decayed."""
    scale_of: Callable[[str], float] = getattr(task, "learning_rate_scale", lambda name: 1.0)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            continue
        scale, decayed = scale_of(name), config.decay_vectors or parameter.ndim > 1
        decay = {} if decayed else {"weight_decay": 0.0}
        group = groups.setdefault((scale, decayed), {"params": [], "rate_scale": scale, **decay})
        group["params"].append(parameter)
    return list(groups.values())


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
        task: an nn.Module that fulfils `Task`. It may have `learning_rate_scale(parameter name) -> float`, a factor on
            the schedule's rate.
        dataset: map-style, indexed by `order.Key`.
        collate: samples to a batch with `.to(device)`.
        heldout: batches for the monitors; every rank holds all of them.
        run: an opened run folder.

    Raises:
        TrainingDiverged, RepresentationCollapse: training on makes no sense; the last good checkpoint is on disk; the
            first one is of the initial model, after its monitors.
        CheckpointError: the checkpoint does not fit the task or the settings, or cannot be written.
    """
    if not isinstance(task, Task):
        raise TypeError(
            f"{type(task).__name__} lacks training_step, after_step or monitors (worldmodel.protocols.Task)"
        )
    task.to(device, torch.float64 if config.precision == "fp64" else torch.float32)
    parameters = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        _parameter_groups(task, config), lr=config.schedule.max_lr, weight_decay=config.weight_decay
    )
    samples = len(dataset)  # type: ignore[arg-type]
    # Rank 0 chooses: on a network file system the ranks may not see the same folders yet.
    latest = broadcast_text(str(run.latest_checkpoint() or ""))
    start = None
    if latest:
        checkpoint = load_checkpoint(Path(latest))
        _check_settings(checkpoint, config, samples, latest)
        restore(checkpoint, model=task, optimizer=optimizer)
        start = checkpoint.step
    main = rank() == 0
    log = MetricsLog(
        run.metrics if main else None, finished_steps=start, wandb_mode=config.wandb, run_name=run.path.name
    )
    fixed = _fixed_settings(config, samples)
    loop = _Loop(task, parameters, optimizer, run, config, device, log, heldout, fixed)
    try:
        with stop_on_signal() as stop:
            return loop.run_from(start, dataset, collate, stop)
    finally:
        log.close()


def _fixed_settings(config: TrainerConfig, samples: int) -> dict[str, int]:
    """What the schedules and the order of the data depend on; stored in every checkpoint."""
    return {
        "max_steps": config.max_steps,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "samples": samples,
    }


def _check_settings(checkpoint: Checkpoint, config: TrainerConfig, samples: int, path: str) -> None:
    for name, now in _fixed_settings(config, samples).items():
        before = checkpoint.state.get(name)
        if before != now:
            raise CheckpointError(
                f"{path} is of a run with {name}={before}, and its schedules and data order depend on that; "
                f"resume with {name}={before} instead of {now}, or start a new run"
            )


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
        fixed: dict[str, int],
    ) -> None:
        self.fixed = fixed
        self.task, self.parameters, self.optimizer = task, parameters, optimizer
        self.run, self.config, self.device, self.log, self.heldout = run, config, device, log, heldout
        module = _Step(task)
        self.step_module: nn.Module = module
        if is_distributed():
            ids = [device.index] if device.type == "cuda" else None
            with warnings.catch_warnings():
                # torch 2.13 renames the argument; older ones only know this name.
                warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
                self.step_module = DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)

    def run_from(
        self,
        resumed: int | None,
        dataset: Dataset[Any],
        collate: Callable[[list[Any]], Any],
        stop: StopRequest,
    ) -> FitResult:
        """Train from step `resumed`, or from the beginning (None)."""
        config = self.config
        start = resumed or 0
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
        self.task.train()
        # The held-out row of a step is written before its checkpoint: whoever finds the checkpoint has the row.
        if resumed is None:
            self.evaluate(0)
            self.save(0)
        loading = micro_batches(
            dataset,
            order=order,
            collate=collate,
            num_workers=config.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        with loading as batches, self._bar(start) as bar:
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
                if stopping and done < config.max_steps:
                    return FitResult(step=done, max_steps=config.max_steps, interrupted=True)
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
                sums[name] = sums.get(name, 0.0) + at_least_fp32(value.detach()) / config.accumulate
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
        """Checkpoint by rank 0. The others wait for it, and fail with it instead of waiting for ever."""
        problem = ""
        if rank() == 0:
            self.log.sync()
            try:
                save_checkpoint(
                    self.run.checkpoints,
                    step=done,
                    model=self.task,
                    optimizer=self.optimizer,
                    state={**self.fixed, "config": self.run.stored_config()},
                    keep=self.config.keep_checkpoints,
                )
            except CheckpointError as error:
                problem = str(error)
            except OSError as error:
                problem = (
                    f"the checkpoint of step {done} cannot be written to {self.run.checkpoints}: {error}"
                )
        problem = broadcast_text(problem)
        if problem:
            raise CheckpointError(problem)

    def _bar(self, start: int) -> tqdm:
        quiet = not self.config.progress or rank() != 0
        # A log file gets a line every half a minute instead of thousands.
        return tqdm(
            total=self.config.max_steps,
            initial=start,
            desc="training",
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
            f"trainer.precision=fp32; the last good checkpoint is {kept}"
        )


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def _to_floats(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """One transfer from the device for all numbers of a step."""
    stacked = torch.stack([v.reshape(()) for v in values.values()]).cpu()
    return {name: float(v) for name, v in zip(values, stacked, strict=True)}
