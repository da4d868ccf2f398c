"""Demonstrations in memory as stretches for training and held-out batches."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from envs.demonstrations import Demonstration
from policies.imitation.batches import ChunkBatch, ObservationError
from worldmodel.training.order import Key, sample_key


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """One sample: the fields of `ChunkBatch` for one row, as numpy arrays."""

    state: np.ndarray
    environment: np.ndarray | None
    image: np.ndarray | None
    action: np.ndarray
    is_pad: np.ndarray
    has_action: bool
    task: int
    seed: int
    environments: np.ndarray | None
    images: np.ndarray | None
    points: np.ndarray | None


class ChunkDataset(Dataset[Stretch]):
    """Every step of every demonstration as the beginning of a stretch, indexed by (step, seed of its draws).

    Steps are drawn uniformly over all demonstrations: long ones weigh more. Past the end of an episode its last step is
    repeated, and marked.

    Args:
        demonstrations: of one split.
        tasks: names, whose place is the task index.
        chunk: C, actions per stretch.
        horizon: T, states per stretch; as many as actions if not given.
        action_free: indices of demonstrations whose actions are not to be learned from: they are hidden here.
        environment_sequence: add the environment of all T steps.
        image_stride: add the images of every so many of the T steps.

    Raises:
        ObservationError: if demonstrations differ in their parts or widths, or a task is unknown.
    """

    def __init__(
        self,
        demonstrations: Sequence[Demonstration],
        *,
        tasks: Sequence[str],
        chunk: int,
        horizon: int | None = None,
        action_free: Collection[int] = (),
        environment_sequence: bool = False,
        image_stride: int | None = None,
    ) -> None:
        if not demonstrations:
            raise ValueError("a data set needs demonstrations, got none")
        self.demonstrations, self.chunk, self.horizon = demonstrations, chunk, horizon or chunk
        if min(self.chunk, self.horizon, image_stride or 1) < 1:
            raise ValueError(
                f"chunk, horizon and image_stride are at least 1: {chunk}, {horizon}, {image_stride}"
            )
        self.action_free = frozenset(action_free)
        if any(not 0 <= i < len(demonstrations) for i in self.action_free):
            raise ValueError(f"action_free names demonstrations beyond the {len(demonstrations)} there are")
        self.environment_sequence, self.image_stride = environment_sequence, image_stride
        _check_alike(demonstrations)
        places = {name: place for place, name in enumerate(tasks)}
        unknown = sorted({d.task for d in demonstrations} - places.keys())
        if unknown:
            raise ObservationError(f"demonstrations of {', '.join(unknown)}, but the tasks are {list(tasks)}")
        self.task_of = [places[d.task] for d in demonstrations]
        self._ends = np.cumsum([len(d) for d in demonstrations])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, key: Key) -> Stretch:
        place, seed = key
        episode = int(np.searchsorted(self._ends, place, side="right"))
        shown = self.demonstrations[episode]
        start = place - int(self._ends[episode]) + len(shown)
        steps = start + np.arange(max(self.chunk, self.horizon))
        is_pad = steps >= len(shown)
        steps = np.minimum(steps, len(shown) - 1)
        coming, has_action = steps[: self.horizon], episode not in self.action_free
        environment, image = shown.environment, shown.image
        frames = None if self.image_stride is None else coming[:: self.image_stride]
        return Stretch(
            state=shown.state[coming],
            environment=None if environment is None else environment[start],
            image=None if image is None else image[start],
            action=shown.action[steps[: self.chunk]] * np.float32(has_action),
            is_pad=is_pad,
            has_action=has_action,
            task=self.task_of[episode],
            seed=seed,
            environments=environment[coming]
            if environment is not None and self.environment_sequence
            else None,
            images=image[frames] if image is not None and frames is not None else None,
            points=None if shown.points is None else shown.points[start],
        )


def _check_alike(demonstrations: Sequence[Demonstration]) -> None:
    def parts(d: Demonstration) -> dict[str, tuple[int, ...] | None]:
        arrays = {
            "state": d.state,
            "environment": d.environment,
            "image": d.image,
            "action": d.action,
            "points": None if d.points is None else d.points[0],
        }
        return {name: None if a is None else a.shape[1:] for name, a in arrays.items()}

    first = parts(demonstrations[0])
    for number, other in enumerate(demonstrations):
        for name, shape in parts(other).items():
            if shape != first[name]:
                raise ObservationError(
                    f"demonstration {number} ({other.task}, seed {other.seed}) has {name} {shape}, the first one "
                    f"{first[name]}: a data set holds one kind of observation"
                )


def collate_chunks(stretches: Sequence[Stretch]) -> ChunkBatch:
    """Samples to a batch; images stay uint8 and become channels first.

    Raises:
        ObservationError: if a state, environment or action is not finite, or a stretch begins in the padding.
    """

    def stacked(name: str) -> torch.Tensor | None:
        rows = [getattr(s, name) for s in stretches]
        if rows[0] is None:
            return None
        together = np.stack(rows)
        if together.dtype == np.uint8:
            together = np.ascontiguousarray(np.moveaxis(together, -1, -3))
        elif together.dtype != np.bool_ and not np.isfinite(together).all():
            row = int(np.argwhere(~np.isfinite(together))[0][0])
            raise ObservationError(f"{name} of stretch {row} holds NaN or infinite numbers")
        return torch.from_numpy(together)

    state, action, is_pad = stacked("state"), stacked("action"), stacked("is_pad")
    assert state is not None
    assert action is not None
    assert is_pad is not None
    if bool(is_pad[:, 0].any()):
        raise ObservationError("a stretch begins past the end of its episode")
    return ChunkBatch(
        state=state,
        environment=stacked("environment"),
        image=stacked("image"),
        action=action,
        is_pad=is_pad,
        has_action=torch.tensor([s.has_action for s in stretches]),
        task=torch.tensor([s.task for s in stretches], dtype=torch.int64),
        seeds=tuple(s.seed for s in stretches),
        environments=stacked("environments"),
        images=stacked("images"),
        points=_padded([s.points for s in stretches]),
    )


def _padded(sweeps: Sequence[np.ndarray | None]) -> torch.Tensor | None:
    """Sweeps [P, 4] as one array, filled up with rows of infinity."""
    there = [s for s in sweeps if s is not None]
    if not there:
        return None
    together = np.full((len(sweeps), max(map(len, there)), 4), np.inf, np.float32)
    for row, sweep in zip(together, there, strict=True):
        row[: len(sweep)] = sweep
    return torch.from_numpy(together)


def chunk_batches(
    dataset: ChunkDataset, *, batch_size: int, count: int | None = None, seed: int = 0
) -> list[ChunkBatch]:
    """`count` different stretches, all without a count, in shuffled order; the same for the same seed."""
    total = len(dataset) if count is None else min(count, len(dataset))
    keys = [sample_key(i, size=len(dataset), seed=seed) for i in range(total)]
    return [
        collate_chunks([dataset[key] for key in keys[first : first + batch_size]])
        for first in range(0, total, batch_size)
    ]


def split_demonstrations(
    demonstrations: Sequence[Demonstration], *, heldout_per_task: int, seed: int
) -> tuple[list[int], list[int]]:
    """Indices of training and held-out demonstrations: whole episodes, the same number of each task held out.

    The episodes of a task stand in the order of a hash of the split's seed, the task and the episode's seed, and the
    first are held out. Recording more puts new ones in between and shuffles nothing; `check_apart` tells if one that
    was trained on is held out.

    Raises:
        ValueError: if a task has too few to leave one for training.
    """
    training: list[int] = []
    heldout: list[int] = []
    for task in sorted({d.task for d in demonstrations}):
        mine = [i for i, d in enumerate(demonstrations) if d.task == task]
        if not 0 <= heldout_per_task < len(mine):
            raise ValueError(
                f"{heldout_per_task} of the {len(mine)} demonstrations of {task} cannot be held out: one must stay"
            )
        mine.sort(key=lambda i: _place(demonstrations[i], seed))
        heldout += mine[:heldout_per_task]
        training += mine[heldout_per_task:]
    return training, heldout


def _place(demonstration: Demonstration, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{demonstration.task}/{demonstration.seed}".encode()).digest()


Seeds = Mapping[str, Sequence[int]]


def seeds_by_task(
    demonstrations: Sequence[Demonstration], *, besides: Seeds | None = None
) -> dict[str, list[int]]:
    """Seeds of the episodes, sorted, and those already known: what a policy was trained on, for its config."""
    found = {task: set(seeds) for task, seeds in (besides or {}).items()}
    for d in demonstrations:
        found.setdefault(d.task, set()).add(d.seed)
    return {task: sorted(found[task]) for task in sorted(found)}


def check_apart(trained: Seeds, heldout: Sequence[Demonstration]) -> None:
    """Raise ValueError if a held-out episode was trained on (`seeds_by_task`)."""
    both = [d for d in heldout if d.seed in trained.get(d.task, ())]
    if both:
        raise ValueError(
            f"{len(both)} of {len(heldout)} held-out episodes were trained on before (first {both[0].task}, seed "
            f"{both[0].seed}): split as then (demonstrations.split_seed, .heldout_per_task, the same recording), or "
            f"train anew"
        )
