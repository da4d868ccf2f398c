"""What a frozen encoder knows: coming states (world-model probe) or actions (transfer) read from it by a fresh decoder.

After ACT-JEPA's probe (arXiv 2501.14622), without what made its arms unequal: an encoder is shown the observation of
the current step and nothing else, scores are of held-out demonstrations, and the budget is swept until it does not
matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from policies.imitation.batches import ChunkBatch
from policies.imitation.policy import ImitationPolicy, masked_l1
from policies.imitation.statistics import Statistics
from worldmodel.evaluation.sequences import frozen
from worldmodel.nn.decoder import QueryDecoder
from worldmodel.objectives import masked_mean
from worldmodel.training.schedules import WarmupCosine

What = Literal["state", "action"]


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """A decoder of learned queries that see one another (no causal order), without dropout, and its training by AdamW.

    Attributes:
        budgets: optimiser steps; one training from scratch for each.
        dim, layers, heads, hidden: of the decoder.
        batch_size, lr, weight_decay: of its training; cosine to 0 after a warm-up of 4 % of the steps.
        columns: of the state that are read, the first so many; None: all.
    """

    budgets: tuple[int, ...] = (250, 1000, 4000)
    dim: int = 64
    layers: int = 2
    heads: int = 4
    hidden: int = 256
    batch_size: int = 64
    lr: float = 6e-4
    weight_decay: float = 0.1
    columns: int | None = None

    def __post_init__(self) -> None:
        if not self.budgets or min(self.budgets) < 1 or list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError(f"budgets are increasing numbers of steps of at least 1, got {self.budgets}")


@dataclass(frozen=True, kw_only=True)
class Readings:
    """Memories [N, K, D] of frozen observations, and what is to be read: label [N, Q, C] (z-scores), valid [N, Q].

    `std` [C] turns z-scores into the units of the data.
    """

    memory: torch.Tensor
    label: torch.Tensor
    valid: torch.Tensor
    std: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """Held-out errors of one budget; with the suffix `_raw` in the units of the data, else of z-scores.

    Attributes:
        steps: of training; 0 for a constant.
        rmse: root of the mean squared error over all valid numbers.
        ate: mean over valid steps of the Euclidean norm of the error.
        l1: mean absolute error over all valid numbers.
        train_rmse: of the training data.
    """

    steps: int
    rmse: float
    ate: float
    l1: float
    rmse_raw: float
    ate_raw: float
    train_rmse: float


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Scores by budget, the trained decoder of the largest, and what reading nothing scores.

    Attributes:
        scores: one per budget.
        mean: of predicting the training mean of each step.
        persistence: of predicting that the state stays as it is; None for actions.
    """

    scores: tuple[ProbeScore, ...]
    mean: ProbeScore
    persistence: ProbeScore | None
    decoder: QueryDecoder

    def converged(self, tolerance: float = 0.02) -> bool:
        """Whether the last increase of the budget changed the held-out RMSE by at most this share."""
        if len(self.scores) < 2:
            return False
        before, after = self.scores[-2].rmse, self.scores[-1].rmse
        return abs(before - after) <= tolerance * before


def read_memories(
    policy: ImitationPolicy,
    batches: Sequence[ChunkBatch],
    *,
    what: What,
    columns: int | None = None,
    units: Statistics | None = None,
) -> Readings:
    """Memories of the current steps, with what follows as labels. The policy is left bit-identical.

    Args:
        columns: of the states, the first so many; None: all.
        units: whose z-scores the labels are in; the policy's own if None. For policies trained on different data.
    """
    if what not in ("state", "action"):
        raise ValueError(f"a probe reads state or action, got {what!r}")
    policy.statistics.require()
    units = units or policy.statistics
    memory, label, valid = [], [], []
    device = policy.statistics.state_mean.device
    with frozen(policy):
        for raw in batches:
            policy.interface.check_batch(raw)
            here = raw.to(device)
            seen = policy.statistics.normalise_batch(here).observation
            memory.append(policy.network.memory(seen).float())  # type: ignore[operator]
            batch = units.normalise_batch(here)
            label.append(batch.state[..., :columns] if what == "state" else batch.action)
            valid.append(~batch.state_is_pad if what == "state" else batch.action_counts)
    std: torch.Tensor = getattr(units, f"{what}_std")
    labels = torch.cat(label)
    return Readings(
        memory=torch.cat(memory), label=labels, valid=torch.cat(valid), std=std[: labels.shape[-1]].clone()
    )


def probe(
    policy: ImitationPolicy,
    *,
    training: Sequence[ChunkBatch],
    heldout: Sequence[ChunkBatch],
    what: What = "state",
    config: ProbeConfig | None = None,
    units: Statistics | None = None,
    seed: int = 0,
) -> ProbeResult:
    """Train a fresh decoder on the frozen memories of a policy, for each budget, and score it on held-out ones.

    States are read by mean squared error, actions by mean absolute error as the policies themselves.

    Args:
        training, heldout: batches of different demonstrations.
        units: whose z-scores are read and scored; the policy's own if None.
        seed: of the decoder's weights and the order of the samples.
    """
    config = config or ProbeConfig()
    known, unknown = (
        read_memories(policy, part, what=what, columns=config.columns, units=units)
        for part in (training, heldout)
    )
    scores = []
    for steps in config.budgets:
        decoder = _trained(known, config, what=what, steps=steps, seed=seed)
        scores.append(_score(_predicted(decoder, unknown), unknown, _predicted(decoder, known), known, steps))
    share = known.valid / known.valid.sum(0).clamp_min(1)
    mean = (known.label * share.unsqueeze(-1)).sum(0)
    still = None
    if what == "state":
        now, then = unknown.label[:, :1], known.label[:, :1]
        still = _score(now.expand_as(unknown.label), unknown, then.expand_as(known.label), known, 0)
    constant = _score(mean.expand_as(unknown.label), unknown, mean.expand_as(known.label), known, 0)
    return ProbeResult(scores=tuple(scores), mean=constant, persistence=still, decoder=decoder)


def _trained(readings: Readings, config: ProbeConfig, *, what: What, steps: int, seed: int) -> QueryDecoder:
    device = readings.memory.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = QueryDecoder(
            queries=readings.label.shape[1],
            out_dim=readings.label.shape[2],
            dim=config.dim,
            layers=config.layers,
            heads=config.heads,
            hidden=config.hidden,
            dropout=0.0,
            memory_dim=readings.memory.shape[-1],
        ).to(device)
    matrices, vectors = ([p for p in decoder.parameters() if (p.ndim > 1) is many] for many in (True, False))
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    schedule = WarmupCosine(max_lr=config.lr, warmup=max(1, steps // 25))
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"], _ = schedule.at(step, steps)
            picked = torch.randint(len(readings.label), (config.batch_size,), generator=generator).to(device)
            valid, label = readings.valid[picked], readings.label[picked]
            prediction = decoder(readings.memory[picked])
            if what == "action":
                loss = masked_l1(prediction, label, valid)
            else:
                square = (prediction - label).square()
                loss = masked_mean(square, valid.unsqueeze(-1).expand_as(square))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
            optimizer.step()
    return decoder.eval().requires_grad_(False)


@torch.no_grad()
def _predicted(decoder: QueryDecoder, readings: Readings, batch_size: int = 512) -> torch.Tensor:
    return torch.cat([decoder(part) for part in readings.memory.split(batch_size)])


def _score(
    prediction: torch.Tensor,
    readings: Readings,
    train_prediction: torch.Tensor,
    train: Readings,
    steps: int,
) -> ProbeScore:
    error = (prediction - readings.label)[readings.valid].double()
    raw = error * readings.std
    fitted = (train_prediction - train.label)[train.valid].double()
    return ProbeScore(
        steps=steps,
        rmse=float(error.square().mean().sqrt()),
        ate=float(error.norm(dim=-1).mean()),
        l1=float(error.abs().mean()),
        rmse_raw=float(raw.square().mean().sqrt()),
        ate_raw=float(raw.norm(dim=-1).mean()),
        train_rmse=float(fitted.square().mean().sqrt()),
    )
