"""Two-view baselines: closed forms of their losses, and the loss and gradient of one process on two."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process
from worldmodel.baselines import (
    SelfDistillation,
    SimCLR,
    TwoViewPretraining,
    VICReg,
    all_rows,
    nt_xent,
)
from worldmodel.batches import EpisodeBatch
from worldmodel.nn.batch_norm import SyncedBatchNorm1d
from worldmodel.protocols import RepresentationCollapse, Task

DIM, ACTION, SIDE = 6, 3, 5


def encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(SIDE, DIM), SyncedBatchNorm1d(DIM, affine=False))


METHODS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "simclr": lambda e: SimCLR(DIM, widths=(8, 8)),
    "vicreg": lambda e: VICReg(DIM, widths=(8, 8)),
    "byol": lambda e: SelfDistillation(e, DIM, widths=(8, 8), hidden=7),
    "conditional_byol": lambda e: SelfDistillation(
        e, DIM, widths=(8, 8), hidden=7, action_dim=ACTION, action_embed=4
    ),
    "jepa": lambda e: SelfDistillation(e, DIM, widths=None, hidden=7),
}


def baseline(name: str, seed: int = 0) -> TwoViewPretraining:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        own = encoder()
        return TwoViewPretraining(encoder=own, method=METHODS[name](own)).double()


def episodes(count: int = 12, steps: int = 2, seed: int = 0) -> EpisodeBatch:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(count, 1, SIDE, generator=generator, dtype=torch.float64)
    return EpisodeBatch(
        observations=base + 0.3 * torch.randn(count, steps, SIDE, generator=generator, dtype=torch.float64),
        actions=torch.randn(count, steps - 1, ACTION, generator=generator, dtype=torch.float64),
        seeds=tuple(range(count)),
    )


def share_of(batch: EpisodeBatch, part: slice) -> EpisodeBatch:
    return EpisodeBatch(
        observations=batch.observations[part], actions=batch.actions[part], seeds=batch.seeds[part]
    )


def loop_nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> float:
    """The definition, pair by pair."""
    z = torch.nn.functional.normalize(torch.cat([first, second]).double(), dim=1)
    n, total = len(first), 0.0
    for i in range(2 * n):
        others = [math.exp(float(z[i] @ z[k]) / temperature) for k in range(2 * n) if k != i]
        total -= math.log(math.exp(float(z[i] @ z[(i + n) % (2 * n)]) / temperature) / sum(others))
    return total / (2 * n)


def test_nt_xent_against_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    value = nt_xent(first, second, temperature=0.3)
    assert float(value) == pytest.approx(loop_nt_xent(first, second, 0.3), rel=1e-6)


def test_nt_xent_of_collapsed_embeddings() -> None:
    same = torch.ones(8, 4)
    assert float(nt_xent(same, same, temperature=0.5)) == pytest.approx(math.log(15))


def _nt_xent(parameters: Sequence[torch.Tensor], batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nt_xent(batch[0] @ parameters[0], batch[1] @ parameters[0], temperature=0.5)


@pytest.mark.parametrize("sizes", [(5, 5), (3, 7), (0, 10)])
def test_nt_xent_over_two_processes(two_processes: TwoProcesses, sizes: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 10, 4, generator=generator, dtype=torch.float64)
    assert_equals_one_process(
        two_processes,
        _nt_xent,
        parameters=[torch.randn(4, 4, generator=generator, dtype=torch.float64)],
        shares=list(zip(first.split(list(sizes)), second.split(list(sizes)), strict=True)),
        joined=(first, second),
        atol=1e-12,
    )


def test_all_rows_of_one_process_are_its_own() -> None:
    rows = torch.randn(3, 2)
    everything, start = all_rows(rows)
    assert torch.equal(everything, rows)
    assert start == 0


def _training_loss(parameters: Sequence[torch.Tensor], batch: tuple[str, EpisodeBatch]) -> torch.Tensor:
    task = baseline(batch[0])
    names = [name for name, p in task.named_parameters() if p.requires_grad]
    state = dict(zip(names, parameters, strict=True))
    return torch.func.functional_call(_Step(task), {f"task.{k}": v for k, v in state.items()}, (batch[1],))


class _Step(nn.Module):
    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: EpisodeBatch) -> torch.Tensor:
        return self.task.training_step(batch, 0).total  # type: ignore[operator]


@pytest.mark.parametrize("name", METHODS)
def test_training_over_two_processes_is_that_of_one(two_processes: TwoProcesses, name: str) -> None:
    batch = episodes()
    assert_equals_one_process(
        two_processes,
        _training_loss,
        parameters=[p.detach() for p in baseline(name).parameters() if p.requires_grad],
        shares=[(name, share_of(batch, slice(0, 5))), (name, share_of(batch, slice(5, 12)))],
        joined=(name, batch),
        atol=1e-9,
    )


@pytest.mark.parametrize("name", METHODS)
def test_is_a_task_that_learns(name: str) -> None:
    task, batch = baseline(name), episodes(64)
    assert isinstance(task, Task)
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(30):
        loss = task.training_step(batch, step).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.after_step(step, 30)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert task.eval().monitors([batch])["z_std"] > 0.3


@pytest.mark.parametrize(("name", "sees"), [("conditional_byol", True), ("byol", False), ("jepa", False)])
def test_only_the_conditional_predictor_sees_the_action(name: str, sees: bool) -> None:
    task, batch = baseline(name), episodes()
    other = EpisodeBatch(observations=batch.observations, actions=batch.actions.flip(0), seeds=batch.seeds)
    a, b = (float(copy.deepcopy(task).training_step(x, 0).total.detach()) for x in (batch, other))
    assert (a != b) is sees


def test_byol_is_symmetric_in_the_views() -> None:
    task, batch = baseline("byol"), episodes()
    swapped = EpisodeBatch(observations=batch.observations.flip(1), actions=batch.actions, seeds=batch.seeds)
    a, b = (float(copy.deepcopy(task).training_step(x, 0).total.detach()) for x in (batch, swapped))
    assert a == pytest.approx(b, rel=1e-12)


@pytest.mark.parametrize("name", ["byol", "jepa"])
def test_the_target_follows_and_gets_no_gradient(name: str) -> None:
    task, batch = baseline(name), episodes()
    task.training_step(batch, 0).total.backward()
    target: Any = task.method.target
    assert all(p.grad is None and not p.requires_grad for p in target.parameters())
    first = [p.clone() for p in target.parameters()]
    with torch.no_grad():
        for p in task.encoder.parameters():
            p += 1
    assert task.after_step(0, 10) == {"ema_momentum": pytest.approx(0.996)}
    moved = max(float((a - b).abs().max()) for a, b in zip(first, target.parameters(), strict=True))
    assert moved == pytest.approx(0.004, rel=1e-6)


def test_vicreg_weights() -> None:
    """With equal views the invariance is 0, and the total is the weighted sum of its parts."""
    task, batch = baseline("vicreg"), episodes()
    same = EpisodeBatch(
        observations=batch.observations[:, :1].expand(-1, 2, -1), actions=batch.actions, seeds=batch.seeds
    )
    loss = task.training_step(same, 0)
    assert float(loss.parts["loss/invariance"]) == 0
    expected = 10 * loss.parts["loss/variance"] + loss.parts["loss/covariance"]
    assert float(loss.total.detach()) == pytest.approx(float(expected))


def test_errors() -> None:
    with pytest.raises(ValueError, match="two views"):
        baseline("simclr").training_step(episodes(steps=1), 0)
    with pytest.raises(ValueError, match="temperature"):
        SimCLR(DIM, temperature=0)
    task = baseline("jepa").eval()
    with torch.no_grad():
        task.encoder[0].weight.zero_()  # type: ignore[index, union-attr, operator]
    with pytest.raises(RepresentationCollapse, match="collapsed"):
        task.monitors([episodes()])
