"""The running average of weights: closed form, what is trained, and what a checkpoint holds."""

import pytest
import torch
from torch import nn

from worldmodel.objectives import Loss
from worldmodel.protocols import Task
from worldmodel.training.averaging import AveragedTask, averaged_part


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("seen", torch.zeros(()))

    def training_step(self, batch: torch.Tensor, step: int) -> Loss:
        return Loss.weighted({"loss/toy": (1.0, (self.weight - batch).square().sum())})

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        self.seen += 1
        return {"toy": 1.0}

    def monitors(self, batches: list[torch.Tensor]) -> dict[str, float]:
        return {"weight": float(self.weight[0])}


def test_average_is_the_recursion_in_closed_form() -> None:
    averaged = AveragedTask(Toy(), decay=0.5)
    assert isinstance(averaged, Task)
    expected = torch.zeros(2, dtype=torch.float64)
    for step in range(6):
        averaged.task.weight.data.fill_(float(step + 1))  # type: ignore[union-attr]
        assert averaged.after_step(step, 6) == {"toy": 1.0}
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1)
    torch.testing.assert_close(averaged.average.weight.double(), expected)
    assert averaged.monitors([]) == {"weight": pytest.approx(float(expected[0]))}
    assert float(averaged.average.seen) == float(averaged.task.seen) == 6.0  # type: ignore[arg-type]


def test_only_the_model_is_trained_and_both_are_saved() -> None:
    averaged = AveragedTask(Toy(), decay=0.9).train()
    averaged.training_step(torch.ones(2), 0).total.backward()
    assert [n for n, p in averaged.named_parameters() if p.grad is not None] == ["task.weight"]
    assert not averaged.average.training
    state = averaged.state_dict()
    state["average.weight"] = torch.full((2,), 7.0)
    part = averaged_part(state)
    assert set(part) == {"weight", "seen"}
    assert float(part["weight"][0]) == 7.0
    plain = Toy().state_dict()
    assert averaged_part(plain) is plain


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_an_error(decay: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        AveragedTask(Toy(), decay=decay)


def test_rates_of_the_model_are_passed_on() -> None:
    class Slow(Toy):
        def learning_rate_scale(self, name: str) -> float:
            return 0.1 if name == "weight" else 1.0

    assert AveragedTask(Slow(), decay=0.9).learning_rate_scale("task.weight") == 0.1
    assert AveragedTask(Toy(), decay=0.9).learning_rate_scale("task.weight") == 1.0
