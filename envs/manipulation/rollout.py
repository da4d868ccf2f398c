"""One episode of an expert as a demonstration."""

from dataclasses import dataclass, field

import numpy as np

from envs.demonstrations import Demonstration
from envs.manipulation.protocol import ManipulationEnv, Observation
from envs.manipulation.registry import EnvOptions


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """How an expert is run.

    Attributes:
        options: of the environment.
        image: whether pictures are kept.
        noise: standard deviation of what is added to the executed actions, in half ranges of their bounds. The stored
            actions are the expert's own: labels for states off its path (Laskey et al. 2017, DART).
    """

    options: EnvOptions = field(default_factory=EnvOptions)
    image: bool = True
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.noise < np.inf:
            raise ValueError(f"noise must be at least 0, got {self.noise}")


def demonstrate(env: ManipulationEnv, *, seed: int, noise: float = 0.0, image: bool = True) -> Demonstration:
    """An episode of the expert until its first success, or until `max_steps`: a function of the arguments alone.

    Raises:
        NoExpertError: if the environment has none.
        ValueError: if the expert's action is not finite or out of bounds.
    """
    spec, generator = env.action, np.random.default_rng((seed, 0xDA27))
    half_range = (spec.high - spec.low) / 2
    observation, _ = env.reset(seed=seed)
    expert = env.expert()
    observations: list[Observation] = []
    images: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    success = False
    while not success and len(actions) < env.max_steps:
        action = np.asarray(expert.act(env), np.float32)
        if action.shape != (spec.dim,) or not ((spec.low <= action) & (action <= spec.high)).all():
            raise ValueError(f"the expert of {env.task} chose {action}, which is out of bounds (seed {seed})")
        observations.append(observation)
        actions.append(action)
        if image:
            images.append(env.render())
        executed = action + noise * half_range * generator.standard_normal(spec.dim) if noise else action
        observation, _, _, _, info = env.step(executed)
        success = bool(info["success"])
    whole = "environment" in observation
    return Demonstration(
        state=np.stack([o["state"] for o in observations]),
        environment=np.stack([o["environment"] for o in observations]) if whole else None,
        image=np.stack(images) if image else None,
        action=np.stack(actions),
        task=env.task,
        seed=seed,
        success=success,
    )
