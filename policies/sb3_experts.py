"""A trained policy of stable-baselines3, from its file, as the expert of every environment that it fits."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3
from gymnasium import spaces

from envs.manipulation.protocol import ManipulationEnv
from envs.manipulation.registry import EnvOptions, make_env
from policies.sb3 import WithSB3Expert

ALGORITHMS = ("a2c", "ddpg", "ppo", "sac", "td3")


@dataclass(frozen=True)
class SB3Experts:
    """Makes environments whose expert is a policy: `make` of `envs.manipulation.recording.record`.

    Such a file is unpickled when it is read: open only what you trust.

    Attributes:
        path: of the file that `model.save` wrote.
        algorithm: that wrote it, one of `ALGORITHMS`.
        keys: parts of the observation, in their order, of the vector that the policy reads; None if it was trained on
            the dictionary.

    Raises:
        ValueError: if the algorithm is unknown, the file is missing or of another algorithm, or, when an environment is
            made, the policy was trained on other observations or actions.
    """

    path: Path
    algorithm: str
    keys: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"the algorithm is one of {', '.join(ALGORITHMS)}, got {self.algorithm!r}")
        if not self.path.is_file():
            raise ValueError(f"{self.path} is no file: name what model.save(FILE) of stable-baselines3 wrote")

    @cached_property
    def name(self) -> str:
        """Algorithm and SHA-256 of the file."""
        with self.path.open("rb") as file:
            return f"{self.algorithm} {hashlib.file_digest(file, 'sha256').hexdigest()}"

    def __call__(self, name: str, options: EnvOptions) -> WithSB3Expert:
        env, model = make_env(name, options), self._load()
        try:
            self._check(env, model)
        except ValueError:
            env.close()
            raise
        return WithSB3Expert(env, model, keys=self.keys)

    def _load(self) -> Any:
        try:
            return getattr(stable_baselines3, self.algorithm.upper()).load(self.path, device="cpu")
        except Exception as error:  # what comes out of a file of something else can be anything
            raise ValueError(
                f"{self.path} is no model of {self.algorithm} ({type(error).__name__}: {error}): name the algorithm "
                f"that saved it"
            ) from error

    def _check(self, env: ManipulationEnv, model: Any) -> None:
        if not isinstance(env, gymnasium.Env) or not isinstance(env.observation_space, spaces.Dict):
            raise ValueError(f"{env.task} has no dictionary of observations")
        parts = env.observation_space.spaces
        shapes = {key: part.shape or () for key, part in parts.items()}
        seen, action = model.observation_space, model.action_space
        if isinstance(seen, spaces.Dict):
            read = {key: part.shape for key, part in seen.spaces.items()}
            if self.keys is not None:
                raise ValueError(f"the policy reads the dictionary {read}: name no parts of a vector")
            fits = all(shapes.get(key) == shape for key, shape in read.items())
        else:
            read = seen.shape
            if self.keys is None or set(self.keys) - shapes.keys():
                raise ValueError(
                    f"the policy reads a vector {read}: name the parts of {shapes} it is made of, in their order"
                )
            fits = read == (sum(int(np.prod(shapes[key])) for key in self.keys),)
        if not fits:
            raise ValueError(
                f"the policy reads {read}, but {env.task} shows {shapes}: it was trained elsewhere"
            )
        low, high = env.action.low, env.action.high
        same = isinstance(action, spaces.Box) and action.shape == low.shape
        if not same or not (np.allclose(action.low, low) and np.allclose(action.high, high)):
            raise ValueError(
                f"the policy acts in {action}, but {env.task} in {low} to {high}: train it on that"
            )
