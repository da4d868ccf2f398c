"""Settings of the training loop, validated when built."""

from dataclasses import dataclass

from worldmodel.training.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Settings of `fit`.

    Args:
        max_steps: optimiser steps of the whole run; fixes the schedules, so a resumed run must keep it.
        batch_size: samples per optimiser step over all processes and accumulated micro-batches together. The same
            number trains the same way on one process and on many.
        accumulate: micro-batches per optimiser step. Each is a batch of its own for BatchNorm and masks.
        schedule: learning rate and beta1 as functions of the step.
        beta2, weight_decay: of AdamW; the decay is decoupled and covers every parameter.
        decay_vectors: let the decay cover one-dimensional parameters (biases, normalisation, tokens) too.
        clip_norm: gradient norm limit.
        precision: "fp32"; "bf16" (autocast; losses and statistics stay fp32); "fp64" to check equivalences, such as
            one process against many, without rounding in the way.
        device: "auto", "cpu", "cuda" or "cuda:N".
        num_workers: loader processes; 0 reads in the training process.
        eval_every: steps between monitors on held-out frames; they also run before the first and after the last step.
        checkpoint_every: steps between checkpoints; one is always written at the end, on Ctrl-C and on SIGTERM.
        keep_checkpoints: how many of the newest checkpoints stay on disk.
        stop_after: end early after this many steps with a checkpoint, the schedules unchanged (time-limited jobs).
        seed: of initialisation, data order, augmentation, masks and random directions.
        progress: show a progress bar.
        wandb: "disabled", "offline" (needs no account) or "online".
    """

    max_steps: int
    batch_size: int
    schedule: Schedule
    accumulate: int = 1
    beta2: float = 0.99
    weight_decay: float = 0.01
    decay_vectors: bool = True
    clip_norm: float = 10.0
    precision: str = "fp32"
    device: str = "auto"
    num_workers: int = 0
    eval_every: int = 100
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    stop_after: int | None = None
    seed: int = 0
    progress: bool = True
    wandb: str = "disabled"

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "batch_size",
            "accumulate",
            "eval_every",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"trainer.{name} must be a whole number of at least 1, got {value!r}")
        if self.stop_after is not None and self.stop_after < 1:
            raise ValueError(f"trainer.stop_after must be at least 1 or null, got {self.stop_after}")
        for name in ("num_workers", "seed", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"trainer.{name} must not be negative, got {getattr(self, name)}")
        if not (self.clip_norm > 0 and 0 <= self.beta2 < 1):
            raise ValueError(
                f"trainer.clip_norm must be positive and trainer.beta2 in [0, 1), got {self.clip_norm}, {self.beta2}"
            )
        if self.precision not in ("fp32", "bf16", "fp64"):
            raise ValueError(f"trainer.precision must be fp32, bf16 or fp64, got {self.precision!r}")
        if self.wandb not in ("disabled", "offline", "online"):
            raise ValueError(f"trainer.wandb must be disabled, offline or online, got {self.wandb!r}")

    def micro_batch(self, world: int) -> int:
        """Samples that one process sees in one micro-batch.

        Raises:
            ValueError: if the batch cannot be shared out evenly.
        """
        share, rest = divmod(self.batch_size, world * self.accumulate)
        if rest or share == 0:
            raise ValueError(
                f"trainer.batch_size={self.batch_size} cannot be split over {world} processes x "
                f"{self.accumulate} accumulated micro-batches: make it a multiple of {world * self.accumulate}"
            )
        return share
