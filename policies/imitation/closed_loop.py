"""Closed-loop episodes of imitation policies and of what they are compared with: several environments in lockstep.

Every episode is a function of the actor, the task and the seed. An environment whose episode is over takes the next
seed; all seeds are run to their end, so nothing depends on who finishes first.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from envs.manipulation.protocol import Expert, ManipulationEnv, Observation
from policies.imitation.batches import ObservationError, PolicyObservation
from policies.imitation.execution import ChunkQueue, Executor, Memory, TemporalEnsemble
from policies.imitation.policy import ImitationPolicy
from worldmodel.planning.noise import generators

# With 2 or 3 rows, products of matrices round a row by its place (torch 2.13 on a CPU); with 4 and more they do not.
FEWEST_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class PolicyEpisode:
    """One finished episode.

    Attributes:
        task, seed: what was done, and the seed of the environment's reset.
        first_success: steps until success first held, or None. The episode ends there.
        steps: executed.
        decisions: chunks asked for.
        seconds: of deciding, this episode's share of the batches it was decided in.
    """

    task: str
    seed: int
    first_success: int | None
    steps: int
    decisions: int
    seconds: float

    @property
    def success(self) -> bool:
        return self.first_success is not None

    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(eq=False)
class Seat:
    """An environment and the episode that is running in it."""

    env: ManipulationEnv
    observation: Observation
    seed: int
    step: int = 0
    decisions: int = 0
    seconds: float = 0.0


class Actor(Protocol):
    """Acts in up to B environments at once; an episode does not depend on what runs beside it."""

    def open(self, environments: int, *, batch: int) -> None:
        """B environments, without an episode yet; decisions are made on `batch` >= B rows, however many are needed."""
        ...

    def begin(self, row: int, seat: Seat) -> None:
        """A new episode in environment `row`."""
        ...

    def act(self, seats: dict[int, Seat]) -> np.ndarray:
        """Actions [N, A] for the N running episodes by row. Counts decisions and their seconds on the seats."""
        ...


class RandomActor:
    """Uniform actions within the bounds: what success costs nothing."""

    def open(self, environments: int, *, batch: int) -> None:
        self._sources: dict[int, np.random.Generator] = {}

    def begin(self, row: int, seat: Seat) -> None:
        self._sources[row] = np.random.default_rng((seat.seed, 0xAC7))

    def act(self, seats: dict[int, Seat]) -> np.ndarray:
        return np.stack(
            [self._sources[r].uniform(s.env.action.low, s.env.action.high) for r, s in seats.items()]
        )


class ExpertActor:
    """The scripted expert of each environment: the teacher's own success."""

    def open(self, environments: int, *, batch: int) -> None:
        self._experts: dict[int, Expert] = {}

    def begin(self, row: int, seat: Seat) -> None:
        self._experts[row] = seat.env.expert()

    def act(self, seats: dict[int, Seat]) -> np.ndarray:
        return np.stack([self._experts[row].act(seat.env) for row, seat in seats.items()])


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How chunks become actions.

    Attributes:
        execute: actions of a chunk that are executed before the policy is asked again; the whole chunk if None.
        ensemble: decay of temporal ensembling, which asks at every step, or None for none.

    Raises:
        ValueError: if both are given, or execute is below 1.
    """

    execute: int | None = None
    ensemble: float | None = None

    def __post_init__(self) -> None:
        if self.execute is not None and self.ensemble is not None:
            raise ValueError("temporal ensembling asks at every step: give execute or ensemble, not both")
        if self.execute is not None and self.execute < 1:
            raise ValueError(f"at least 1 action of a chunk is executed, got execute={self.execute}")

    def fitted(self, chunk: int) -> "Execution":
        """As a policy with chunks of that many actions executes. With chunks of 1 there is nothing to choose.

        Raises:
            ValueError: if more actions are to be executed than a chunk holds.
        """
        if chunk == 1:
            return Execution(execute=1)
        if self.ensemble is not None:
            return self
        execute = chunk if self.execute is None else self.execute
        if execute > chunk:
            raise ValueError(f"execute={execute} actions, but the policy's chunks hold {chunk}")
        return Execution(execute=execute)


class PolicyActor:
    """An imitation policy. Pictures are drawn only where a chunk is due.

    Every decision is made on the same number of rows, filled up with copies of the first: products of matrices of other
    sizes round otherwise, and an episode would depend on how many run beside it.

    Args:
        policy: trained, in evaluation mode.
        execution: how its chunks are executed; the attribute of that name is what fits the policy.
        memory: steps a policy with a memory is given, which decides on one action at a time; 0 for the others.
        device: of the policy.

    Raises:
        ValueError: if more actions are to be executed than a chunk holds.
    """

    def __init__(
        self,
        policy: ImitationPolicy,
        *,
        execution: Execution,
        memory: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.policy, self.device, self._steps = policy, torch.device(device), memory
        self._chunk = 1 if memory else policy.interface.chunk
        self.execution = execution.fitted(self._chunk)

    def open(self, environments: int, *, batch: int) -> None:
        self._rows = max(batch, FEWEST_ROWS)
        self._executor = self._new_executor(environments)
        self._memory = Memory(environments, steps=self._steps) if self._steps else None

    def begin(self, row: int, seat: Seat) -> None:
        rows = torch.tensor([row])
        self._executor.reset(rows)
        if self._memory is not None:
            self._memory.reset(rows)

    def act(self, seats: dict[int, Seat]) -> np.ndarray:
        due = self._executor.due()
        if len(due):
            self._executor.add(due, self._decide(due.tolist(), seats))
        return self._executor.next()[list(seats)].numpy()

    def _new_executor(self, environments: int) -> Executor:
        if self.execution.ensemble is not None:
            return TemporalEnsemble(environments, chunk=self._chunk, decay=self.execution.ensemble)
        return ChunkQueue(environments, execute=self.execution.execute or self._chunk)

    def _decide(self, rows: list[int], seats: dict[int, Seat]) -> torch.Tensor:
        """Chunks [N, C, A] for the rows; those without an episode get zeros, which nobody executes."""
        decided = torch.zeros(len(rows), self._chunk, self.policy.interface.action_dim)
        alive = [row for row in rows if row in seats]
        if not alive:
            return decided
        chosen = [seats[row] for row in alive]
        began = time.perf_counter()
        now = self._observed(chosen)
        place = {row: i for i, row in enumerate(alive)}
        # Of a policy with a memory all rows are due. Those without an episode remember what does not matter.
        everyone = now.select(torch.tensor([place.get(row, 0) for row in rows]))
        past = None
        if self._memory is not None:
            if self._memory.history() is None:
                # An empty history, as episodes have that begin later: a decision without one is on fewer tokens.
                self._memory.remember(everyone, decided[:, 0])
                self._memory.reset()
            past = self._memory.history()
        filled = [*range(len(alive)), *[0] * (self._rows - len(alive))]
        observation = replace(
            now.select(torch.tensor(filled)),
            history=None if past is None else past.select(torch.tensor([alive[i] for i in filled])),
        )
        noise = [generators([chosen[i].seed], chosen[i].step, torch.device("cpu"))[0] for i in filled]
        chunks = self.policy.act(observation.to(self.device), noise)[: len(alive)].cpu()
        seconds = (time.perf_counter() - began) / len(chosen)
        for seat in chosen:
            seat.decisions += 1
            seat.seconds += seconds
        decided[[i for i, row in enumerate(rows) if row in place]] = chunks
        if self._memory is not None:
            self._memory.remember(everyone, decided[:, 0])
        return decided

    def _observed(self, seats: Sequence[Seat]) -> PolicyObservation:
        interface = self.policy.interface
        environment = None
        if interface.environment_dim is not None:
            if any("environment" not in s.observation for s in seats):
                raise ObservationError(
                    f"the policy sees the environment's state, which {seats[0].env.task} does not tell"
                )
            environment = torch.from_numpy(np.stack([s.observation["environment"] for s in seats]))
        image = None
        if interface.image_size is not None:
            pictures = np.stack([s.env.render() for s in seats])
            image = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
        return PolicyObservation(
            state=torch.from_numpy(np.stack([s.observation["state"] for s in seats])),
            environment=environment,
            image=image,
            task=torch.tensor([interface.task_index(s.env.task) for s in seats]),
        )


def run_task(
    actor: Actor,
    *,
    envs: Sequence[ManipulationEnv],
    seeds: Sequence[int],
    max_steps: int,
    batch: int | None = None,
    on_episode: Callable[[PolicyEpisode], None] | None = None,
    on_step: Callable[[int, Seat], None] | None = None,
) -> tuple[PolicyEpisode, ...]:
    """One episode per seed, each until its first success or `max_steps`; in the order of the seeds.

    Args:
        actor: what acts.
        envs: of one task; as many run at once.
        seeds: of the episodes.
        batch: rows of every decision, at least as many as environments; as many if not given. Episodes of policies are
            the same, bit for bit, only where it is the same.
        on_episode: told of each episode when it ends.
        on_step: told of each row and its seat before every step and after the last, for videos.

    Raises:
        ObservationError: naming task and seed, if an action is not finite.
        ValueError: if there are more environments than rows.
    """
    if batch is not None and batch < min(len(envs), len(seeds)):
        raise ValueError(f"decisions on {batch} rows are not enough for {len(envs)} environments at once")
    waiting = list(seeds)[::-1]
    seats: dict[int, Seat] = {}
    done: dict[int, PolicyEpisode] = {}
    envs = envs[: len(seeds)]
    actor.open(len(envs), batch=batch or len(envs))

    def sit(row: int) -> None:
        if waiting:
            seed = waiting.pop()
            observation, _ = envs[row].reset(seed=seed)
            seats[row] = Seat(env=envs[row], observation=observation, seed=seed)
            actor.begin(row, seats[row])

    for row in range(len(envs)):
        sit(row)
    while seats:
        if on_step is not None:
            for row, seat in seats.items():
                on_step(row, seat)
        actions = actor.act(seats)
        for (row, seat), action in zip(list(seats.items()), actions, strict=True):
            if not np.isfinite(action).all():
                raise ObservationError(
                    f"the policy chose {action} at step {seat.step} of {seat.env.task}, seed {seat.seed}"
                )
            seat.observation, _, _, truncated, info = seat.env.step(np.asarray(action, np.float32))
            seat.step += 1
            won = bool(info["success"])
            if not (won or truncated or seat.step >= max_steps):
                continue
            if on_step is not None:
                on_step(row, seat)
            done[seat.seed] = episode = PolicyEpisode(
                task=seat.env.task, seed=seat.seed, first_success=seat.step if won else None,
                steps=seat.step, decisions=seat.decisions, seconds=seat.seconds,
            )  # fmt: skip
            if on_episode is not None:
                on_episode(episode)
            del seats[row]
            sit(row)
    return tuple(done[seed] for seed in seeds)
