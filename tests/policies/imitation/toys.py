"""Demonstrations of a made-up arm, and policies small enough to train in seconds."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from envs.demonstrations import Demonstration
from policies.imitation.batches import ChunkBatch
from policies.imitation.build import Auxiliary, Name, Sizes, build_policy
from policies.imitation.chunks import ChunkDataset, chunk_batches
from policies.imitation.interface import Interface
from policies.imitation.policy import ImitationPolicy
from policies.imitation.statistics import Statistics

DS, DE, DA, C = 3, 4, 2, 6
TASKS = ("reach", "push")
TINY = Sizes(
    dim=16,
    heads=2,
    hidden=32,
    encoder_layers=2,
    predictor_dim=8,
    predictor_layers=1,
    predictor_hidden=16,
    dropout=0.0,
    vision="small",
    vision_width=8,
)


def demonstration(number: int, *, steps: int | None = None, images: bool = False) -> Demonstration:
    """The state moves towards the goal in the environment by the action; the second task moves away from it."""
    rng = np.random.default_rng(number)
    steps = steps or int(rng.integers(8, 15))
    goal, state = rng.normal(size=2), np.zeros(2)
    states, actions = [], []
    for t in range(steps):
        action = np.clip((goal - state) * (1 - 2 * (number % 2)), -0.3, 0.3)
        states.append([*state, t / 10])
        actions.append(action)
        state = state + action
    environment = np.tile([*goal, number % 3, 1.0], (steps, 1))
    image = rng.integers(0, 256, (steps, 16, 16, 3), dtype=np.uint8) if images else None
    return Demonstration(
        state=np.array(states, dtype=np.float32),
        environment=environment.astype(np.float32),
        image=image,
        action=np.array(actions, dtype=np.float32),
        task=TASKS[number % 2],
        seed=number,
        success=True,
    )


def demonstrations(count: int = 8, *, images: bool = False, first: int = 0) -> list[Demonstration]:
    return [demonstration(n, images=images) for n in range(first, first + count)]


def interface(*, chunk: int = C, images: bool = False) -> Interface:
    return Interface(
        state_dim=DS,
        action_dim=DA,
        chunk=chunk,
        tasks=TASKS,
        environment_dim=DE,
        image_size=(16, 16) if images else None,
    )


def statistics(shown: Sequence[Demonstration] | None = None) -> Statistics:
    return Statistics.measured(
        shown or demonstrations(), action_low=-np.full(DA, 0.3), action_high=np.full(DA, 0.3)
    )


# Every arm, and every target of ACT-JEPA.
ARMS: dict[str, tuple[Name, dict[str, Any]]] = {
    "act": ("act", {}),
    "act_cvae": ("act_cvae", {}),
    "act_jepa": ("act_jepa", {}),
    "act_jepa_causal": ("act_jepa", {"causal": True}),
    "shared": ("act_jepa", {"target": "shared_latent"}),
    "raw_state": ("act_jepa", {"target": "raw_state"}),
    "image": ("act_jepa", {"target": "image", "image_stride": 2}),
    "bc": ("bc", {}),
    "autoregressive": ("autoregressive", {}),
    "flow": ("flow", {}),
}


def policy(arm: str = "act_jepa", *, sizes: Sizes = TINY, seed: int = 0, **auxiliary: Any) -> ImitationPolicy:
    name, options = ARMS[arm]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_policy(
            name,
            interface=interface(images=arm == "image"),
            sizes=sizes,
            auxiliary=Auxiliary(**{"horizon": C, **options, **auxiliary}),
            statistics=statistics(),
        )


def batches(
    arm: str = "act_jepa", *, batch_size: int = 8, first: int = 0, **options: Any
) -> list[ChunkBatch]:
    images = arm == "image"
    dataset = ChunkDataset(
        demonstrations(images=images, first=first),
        tasks=TASKS,
        chunk=C,
        environment_sequence=True,
        image_stride=2 if images else None,
        **options,
    )
    return chunk_batches(dataset, batch_size=batch_size)


def batch(arm: str = "act_jepa", *, size: int = 8, **options: Any) -> ChunkBatch:
    return batches(arm, batch_size=size, **options)[0]


def rows_of(whole: ChunkBatch, part: slice) -> ChunkBatch:
    """Some of the stretches."""
    values: dict[str, Any] = {name: getattr(whole, name) for name in whole.__dataclass_fields__}
    values = {name: None if v is None else v[part] for name, v in values.items()}
    return ChunkBatch(**values)


def in_double(whole: ChunkBatch) -> ChunkBatch:
    """The same numbers as float64."""
    values: dict[str, Any] = {name: getattr(whole, name) for name in whole.__dataclass_fields__}
    floats = {k: v.double() for k, v in values.items() if torch.is_tensor(v) and v.is_floating_point()}
    return replace(whole, **floats)


def with_garbage(clean: ChunkBatch, *, seed: int = 0) -> ChunkBatch:
    """The same batch with large numbers in everything past the end of the episodes."""
    draw = torch.Generator().manual_seed(seed)

    def spoiled(value: torch.Tensor | None, stride: int = 1) -> torch.Tensor | None:
        if value is None:
            return None
        pad = clean.is_pad[:, ::stride][:, : value.shape[1]].view(*value.shape[:2], *[1] * (value.ndim - 2))
        if value.dtype == torch.uint8:
            noise = torch.randint(0, 256, value.shape, generator=draw, dtype=torch.uint8)
        else:
            noise = 100 * torch.randn(value.shape, generator=draw).to(value.dtype)
        return torch.where(pad, noise, value)

    state, action = spoiled(clean.state), spoiled(clean.action)
    assert state is not None
    assert action is not None
    return replace(
        clean,
        state=state,
        action=action,
        environments=spoiled(clean.environments),
        images=spoiled(clean.images, 2),
    )
