"""Chunk queue, temporal ensemble and memory against values worked out by hand, with resets at different times."""

import math
from dataclasses import replace

import pytest
import torch

from policies.imitation.batches import PolicyObservation
from policies.imitation.execution import ChunkQueue, Executor, Memory, TemporalEnsemble, next_actions

ALL = torch.arange(2)


def chunk(*values: float) -> torch.Tensor:
    """One chunk of one-dimensional actions, [1, C, 1]."""
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1)


def test_a_queue_executes_the_first_actions_and_asks_again() -> None:
    queue = ChunkQueue(2, execute=2)
    assert queue.due().tolist() == [0, 1]
    queue.add(ALL, torch.cat([chunk(1, 2, 3), chunk(4, 5, 6)]))
    assert queue.due().tolist() == []
    assert queue.next().flatten().tolist() == [1, 4]
    queue.reset(torch.tensor([1]))
    assert queue.due().tolist() == [1]
    queue.add(torch.tensor([1]), chunk(7, 8, 9))
    assert queue.next().flatten().tolist() == [2, 7]
    assert queue.due().tolist() == [0]
    queue.add(torch.tensor([0]), chunk(0, 0, 0))
    assert queue.next().flatten().tolist() == [0, 8]
    assert queue.due().tolist() == [1]
    queue.reset()
    assert queue.due().tolist() == [0, 1]


def test_an_ensemble_weighs_the_oldest_most_and_counts_zeros() -> None:
    m, ensemble = 0.5, TemporalEnsemble(1, chunk=3, decay=0.5)
    said = [chunk(1, 2, 0), chunk(10, 20, 30), chunk(100, 200, 300), chunk(0, 0, 0)]
    weights = [1, math.exp(-m), math.exp(-2 * m)]

    def mean(*oldest_first: float) -> float:
        pairs = list(zip(weights, oldest_first, strict=False))
        return sum(w * v for w, v in pairs) / sum(w for w, _ in pairs)

    expected = [mean(1), mean(2, 10), mean(0, 20, 100), mean(30, 200, 0)]
    for new, value in zip(said, expected, strict=True):
        assert ensemble.due().tolist() == [0]
        ensemble.add(torch.tensor([0]), new)
        assert float(ensemble.next()) == pytest.approx(value)


def test_an_ensemble_without_decay_is_a_mean_and_with_much_the_oldest_decides() -> None:
    for decay, value in ((0.0, 5.0), (50.0, 2.0)):
        ensemble = TemporalEnsemble(1, chunk=2, decay=decay)
        for new in (chunk(1, 2), chunk(8, 9)):
            ensemble.add(torch.tensor([0]), new)
            last = ensemble.next()
        assert float(last) == pytest.approx(value)


def test_environments_of_an_ensemble_reset_apart() -> None:
    ensemble = TemporalEnsemble(2, chunk=2, decay=0.0)
    ensemble.add(ALL, torch.cat([chunk(1, 2), chunk(3, 4)]))
    ensemble.next()
    ensemble.reset(torch.tensor([1]))
    ensemble.add(ALL, torch.cat([chunk(10, 0), chunk(10, 0)]))
    assert ensemble.next().flatten().tolist() == [6, 10]


def test_executing_one_action_equals_an_ensemble_that_forgets() -> None:
    draw = torch.Generator().manual_seed(0)
    chunks = torch.randn(5, 3, 1, 2, generator=draw)
    queue, ensemble = ChunkQueue(3, execute=1), TemporalEnsemble(3, chunk=1)
    for now in chunks:
        for executor in (queue, ensemble):
            executor.add(torch.arange(3), now)
        assert torch.equal(queue.next(), ensemble.next())


def test_only_environments_that_need_a_chunk_are_decided_on() -> None:
    queue: Executor = ChunkQueue(3, execute=2)
    asked = []

    def decide(observation: PolicyObservation, rows: torch.Tensor) -> torch.Tensor:
        asked.append(rows.tolist())
        return observation.state[:, None].expand(-1, 2, -1)

    seen = PolicyObservation(
        state=torch.tensor([[1.0], [2], [3]]),
        environment=None,
        image=None,
        task=torch.zeros(3, dtype=torch.int64),
    )
    assert next_actions(queue, seen, decide).flatten().tolist() == [1, 2, 3]
    queue.reset(torch.tensor([1]))
    moved = replace(seen, state=seen.state + 10)
    assert next_actions(queue, moved, decide).flatten().tolist() == [1, 12, 3]
    assert next_actions(queue, moved, decide).flatten().tolist() == [11, 12, 13]
    assert asked == [[0, 1, 2], [1], [0, 2]]


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="at least 1 action"):
        ChunkQueue(1, execute=0)
    with pytest.raises(ValueError, match="3 actions are to be executed of chunks of 2"):
        ChunkQueue(1, execute=3).add(torch.tensor([0]), chunk(1, 2))
    with pytest.raises(RuntimeError, match=r"environments \[0\] have no action left"):
        ChunkQueue(1, execute=1).next()
    with pytest.raises(ValueError, match="at least 1 action"):
        TemporalEnsemble(1, chunk=0)
    ensemble = TemporalEnsemble(2, chunk=2)
    with pytest.raises(ValueError, match="for all 2 environments"):
        ensemble.add(torch.tensor([0]), chunk(1, 2))
    with pytest.raises(RuntimeError, match="at every step"):
        ensemble.next()
    ensemble.add(ALL, torch.cat([chunk(1, 2), chunk(3, 4)]))
    ensemble.next()
    with pytest.raises(RuntimeError, match="at every step"):
        ensemble.next()
    with pytest.raises(ValueError, match="at least 1 step"):
        Memory(1, steps=0)


def test_a_memory_keeps_the_latest_steps_of_each_environment() -> None:
    memory = Memory(2, steps=2)
    assert memory.history() is None
    for t in range(4):
        if t == 3:
            memory.reset(torch.tensor([1]))
        now = PolicyObservation(
            state=torch.tensor([[float(t)], [10.0 + t]]),
            environment=None,
            image=torch.full((2, 3, 2, 2), t, dtype=torch.uint8),
            task=torch.zeros(2, dtype=torch.int64),
        )
        memory.remember(now, torch.tensor([[-float(t)], [-10.0 - t]]))
    past = memory.history()
    assert past is not None
    assert past.count.tolist() == [2, 1]
    assert past.state[0].flatten().tolist() == [2, 3]
    assert past.action[0].flatten().tolist() == [-2, -3]
    assert past.state[1, 0].item() == 13
    assert past.image is not None
    assert past.image[0, :, 0, 0, 0].tolist() == [2, 3]
    assert past.environment is None
    memory.reset()
    again = memory.history()
    assert again is not None
    assert again.count.tolist() == [0, 0]
