"""A running average of the weights, kept beside a model in training: often what is better to use afterwards."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from worldmodel.objectives import Loss

AVERAGE = "average."


class AveragedTask(nn.Module):
    """A `Task` that trains another one and keeps an average of it: average <- d average + (1 - d) model per step.

    With d = min(decay, (1 + n) / (10 + n)) at update n, so that the first steps do not weigh more than they should.
    Monitors are of the average. Both are in the checkpoint, the average under the prefix `average.`; buffers of the
    average, such as BatchNorm statistics, are the model's.

    Args:
        task: trained; its average starts as a copy.
        decay: d of long runs, in [0, 1).
    """

    def __init__(self, task: nn.Module, *, decay: float) -> None:
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"the decay of the weight average lies in [0, 1), got {decay}")
        self.task, self.decay = task, decay
        self.average = copy.deepcopy(task).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "AveragedTask":
        super().train(mode)
        self.average.eval()
        return self

    def training_step(self, batch: Any, step: int) -> Loss:
        return self.task.training_step(batch, step)  # type: ignore[operator]

    def learning_rate_scale(self, name: str) -> float:
        """That of the model, if it has one: see `worldmodel.training.loop.fit`."""
        scale = getattr(self.task, "learning_rate_scale", None)
        return 1.0 if scale is None else scale(name.removeprefix("task."))

    @torch.no_grad()
    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        """The model's own update, then the average's."""
        values = self.task.after_step(step, total_steps)  # type: ignore[operator]
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, its = ([p.data for p in m.parameters()] for m in (self.average, self.task))
        torch._foreach_lerp_(mine, its, 1.0 - decay)
        for own, other in zip(self.average.buffers(), self.task.buffers(), strict=True):
            own.copy_(other)
        return values

    def monitors(self, batches: Sequence[Any]) -> dict[str, float]:
        return self.average.monitors(batches)  # type: ignore[operator]


def averaged_part(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The average's tensors of a checkpoint by the model's names; all tensors if it holds no average."""
    found = {n.removeprefix(AVERAGE): t for n, t in tensors.items() if n.startswith(AVERAGE)}
    return found or tensors
