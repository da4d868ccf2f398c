"""From chunks of actions to one action per step, for several environments that reset at different times."""

from collections.abc import Callable
from typing import Protocol

import torch

from policies.imitation.batches import History, PolicyObservation


class Executor(Protocol):
    """Remembers chunks of B environments and says which action is next."""

    def due(self) -> torch.Tensor:
        """[N] int64: environments that need a new chunk before the next action."""
        ...

    def add(self, rows: torch.Tensor, chunks: torch.Tensor) -> None:
        """Chunks [N, C, A] decided now for environments `rows` [N]."""
        ...

    def next(self) -> torch.Tensor:
        """Actions [B, A] of this step."""
        ...

    def reset(self, rows: torch.Tensor | None = None) -> None:
        """New episodes begin in these environments [N] int64, or in all."""
        ...


class ChunkQueue:
    """Execute the first actions of a chunk, then ask again.

    Args:
        environments: B.
        execute: actions of each chunk that are executed, at least 1.
    """

    def __init__(self, environments: int, *, execute: int) -> None:
        if execute < 1:
            raise ValueError(f"at least 1 action of a chunk is executed, got {execute}")
        self.execute = execute
        self._left = torch.zeros(environments, dtype=torch.int64)
        self._chunks: torch.Tensor | None = None

    def due(self) -> torch.Tensor:
        return (self._left == 0).nonzero().flatten()

    def add(self, rows: torch.Tensor, chunks: torch.Tensor) -> None:
        """Raises ValueError if the chunks are shorter than what is to be executed."""
        if chunks.shape[1] < self.execute:
            raise ValueError(f"{self.execute} actions are to be executed of chunks of {chunks.shape[1]}")
        if self._chunks is None:
            self._chunks = chunks.new_zeros(len(self._left), self.execute, chunks.shape[2])
        self._chunks[rows] = chunks[:, : self.execute]
        self._left[rows] = self.execute

    def next(self) -> torch.Tensor:
        """Raises RuntimeError if an environment has no action left."""
        if self._chunks is None or bool((self._left == 0).any()):
            raise RuntimeError(
                f"environments {self.due().tolist()} have no action left: add chunks for due() first"
            )
        rows = torch.arange(len(self._left))
        actions = self._chunks[rows, self.execute - self._left]
        self._left -= 1
        return actions

    def reset(self, rows: torch.Tensor | None = None) -> None:
        self._left[slice(None) if rows is None else rows] = 0


class TemporalEnsemble:
    """Ask at every step and execute the weighted mean of all predictions made for it (ACT, arXiv 2304.13705).

    Weights are exp(-decay i), i = 0 for the oldest prediction. Which predictions are there is kept apart from their
    values: an action of zero counts.

    Args:
        environments: B.
        chunk: C.
        decay: m; 0.01 in ACT. 0 is the plain mean; the larger, the more the oldest decides.
    """

    def __init__(self, environments: int, *, chunk: int, decay: float = 0.01) -> None:
        if chunk < 1:
            raise ValueError(f"a chunk holds at least 1 action, got {chunk}")
        self.chunk, self.decay = chunk, decay
        self._there = torch.zeros(environments, chunk, dtype=torch.bool)  # by age of the chunk, newest first
        self._fresh = False
        self._chunks: torch.Tensor | None = None

    def due(self) -> torch.Tensor:
        return torch.arange(len(self._there))

    def add(self, rows: torch.Tensor, chunks: torch.Tensor) -> None:
        """Raises ValueError if the chunks have another length or not all environments get one."""
        if chunks.shape[1] != self.chunk or len(rows) != len(self._there):
            raise ValueError(
                f"an ensemble takes a chunk of {self.chunk} actions for all {len(self._there)} environments at every "
                f"step, got {len(rows)} of {chunks.shape[1]}"
            )
        if self._chunks is None:
            self._chunks = chunks.new_zeros(len(self._there), self.chunk, *chunks.shape[1:])
        self._chunks = self._chunks.roll(1, 1)
        self._there = self._there.roll(1, 1)
        self._chunks[rows, 0] = chunks
        self._there[:, 0] = True
        self._fresh = True

    def next(self) -> torch.Tensor:
        """Raises RuntimeError if no chunk was added for this step."""
        if self._chunks is None or not self._fresh:
            raise RuntimeError("an ensemble needs a chunk of every environment at every step: add them first")
        age = torch.arange(self.chunk)
        said = self._chunks[:, age, age].double()  # what the chunk of that age says about now: [B, C, A]
        rank = self._there.sum(1, keepdim=True) - 1 - age
        weights = torch.where(self._there, torch.exp(-self.decay * rank), 0.0).to(said).unsqueeze(-1)
        actions = (weights * said).sum(1) / weights.sum(1)
        self._fresh = False
        return actions.to(self._chunks.dtype)

    def reset(self, rows: torch.Tensor | None = None) -> None:
        self._there[slice(None) if rows is None else rows] = False
        self._fresh = False


def next_actions(
    executor: Executor,
    observation: PolicyObservation,
    decide: Callable[[PolicyObservation, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """One step of a policy in B environments: actions [B, A]. Only environments that need a chunk are decided on.

    Args:
        observation: of all B.
        decide: observation of N of them and their rows [N] to chunks [N, C, A], such as `ImitationPolicy.act`.
    """
    rows = executor.due()
    if len(rows):
        executor.add(rows, decide(observation.select(rows), rows))
    return executor.next()


class Memory:
    """The latest steps of B environments, as the `History` that a policy with a memory is given.

    Args:
        environments: B.
        steps: L, how many are kept.
    """

    def __init__(self, environments: int, *, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"a memory holds at least 1 step, got {steps}")
        self.steps = steps
        self._count = torch.zeros(environments, dtype=torch.int64)
        self._kept: dict[str, torch.Tensor | None] = {}

    def remember(self, observation: PolicyObservation, action: torch.Tensor) -> None:
        """The observation of all environments, and the actions [B, A] executed on it; the oldest are forgotten."""
        now = {
            "state": observation.state,
            "environment": observation.environment,
            "image": observation.image,
            "action": action,
        }
        self._count = self._count.to(observation.state.device)
        full = self._count == self.steps
        place = self._count.clamp(max=self.steps - 1)
        rows = torch.arange(len(place), device=place.device)
        for name, value in now.items():
            if value is None:
                self._kept[name] = None
                continue
            before = self._kept.get(name)
            kept = value.new_zeros(len(value), self.steps, *value.shape[1:]) if before is None else before
            kept = torch.where(full.view(-1, *[1] * value.ndim), kept.roll(-1, 1), kept)
            kept[rows, place] = value
            self._kept[name] = kept
        self._count = (self._count + 1).clamp(max=self.steps)

    def history(self) -> History | None:
        """What is remembered, or None before the first step."""
        if not self._kept:
            return None
        state, action = self._kept["state"], self._kept["action"]
        assert state is not None
        assert action is not None
        return History(
            state=state,
            environment=self._kept["environment"],
            image=self._kept["image"],
            action=action,
            count=self._count.clone(),
        )

    def reset(self, rows: torch.Tensor | None = None) -> None:
        """New episodes begin in these environments [N] int64, or in all."""
        self._count[slice(None) if rows is None else rows] = 0
