"""JEPA encoders under stable-baselines3's PPO and SAC; its policies as agents to evaluate and as experts to record.

model = PPO(
    "MultiInputPolicy", env,
    policy_kwargs={
        "features_extractor_class": JEPAFeatures,
        "features_extractor_kwargs": {"encoder": observation_encoder(world_model), "frozen": True},
    },
)
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from envs.goals import GoalEnv, Problem
from envs.manipulation.protocol import ManipulationEnv, Observation
from policies.rollouts import Decision, Situation
from worldmodel.jepa_dynamics import DynamicsModel

try:
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
except ImportError as error:
    raise ImportError("stable-baselines3 is missing: pip install 'robot-worldmodel[rl]'") from error


class JEPAFeatures(BaseFeaturesExtractor):
    """A pretrained encoder in place of a network learned from rewards.

    Of a dictionary of observations, every entry of the encoder's shape is encoded and the rest is flattened; all are
    joined, in the order of the space.

    Args:
        observation_space: a Box, or a Dict of Boxes.
        encoder: observations [N, ...] to features [N, D]; images are scaled to 0..1 before, as stable-baselines3 does.
            It is copied, so that actor and critic train their own.
        frozen: leave its weights as they are; otherwise train all of them. Either way it stays in evaluation mode: PPO
            compares probabilities before and after an update, which batch statistics would change without one.
        encoded: keys of a Dict that are encoded; by default all entries of three axes, that is images.

    Raises:
        ValueError: if nothing is encoded, a key is unknown, or the features are not [N, D].
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        *,
        encoder: nn.Module,
        frozen: bool = True,
        encoded: tuple[str, ...] | None = None,
    ) -> None:
        parts = (
            observation_space.spaces
            if isinstance(observation_space, spaces.Dict)
            else {"": observation_space}
        )
        if encoded is None:
            chosen = tuple(k for k, v in parts.items() if len(v.shape or ()) == 3 or len(parts) == 1)
        else:
            chosen = encoded
        if not chosen or set(chosen) - parts.keys():
            raise ValueError(
                f"the encoder reads some of {', '.join(parts)}, got {chosen}: name them with encoded=(KEY, ...)"
            )
        own = copy.deepcopy(encoder).cpu().eval()
        width = 0
        for key, part in parts.items():
            shape = part.shape or ()
            if key not in chosen:
                width += int(np.prod(shape))
                continue
            with torch.no_grad():
                found = own(torch.zeros(2, *shape))
            if found.ndim != 2 or len(found) != 2:
                raise ValueError(
                    f"the encoder must return features [N, D] of observations {shape}, got {tuple(found.shape)}"
                )
            width += found.shape[1]
        super().__init__(observation_space, features_dim=width)
        self.encoder, self.frozen, self.encoded = own, frozen, chosen
        self._order = tuple(parts)
        self.encoder.requires_grad_(not frozen)

    def apply(self, fn: Callable[[nn.Module], None]) -> "JEPAFeatures":
        """Nothing: PPO draws orthogonal weights this way for all linear layers, those of a pretrained encoder too."""
        return self

    def train(self, mode: bool = True) -> "JEPAFeatures":
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, observations: torch.Tensor | Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Features [N, F] of observations [N, ...]."""
        parts = {"": observations} if isinstance(observations, torch.Tensor) else observations
        features = []
        # Not in the order of the dictionary: rollouts give the space's, `predict` that of whoever made the observation.
        for key in self._order:
            part = parts[key]
            if key not in self.encoded:
                features.append(part.flatten(1))
                continue
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
                features.append(self.encoder(part))
        return torch.cat(features, dim=1)


def observation_encoder(model: DynamicsModel) -> nn.Module:
    """Observations [N, ...] to the code [N, C] that the model compares goals in; the flat latent without one."""
    return nn.Sequential(copy.deepcopy(model.encoder), copy.deepcopy(model.goal_code))


class SB3Agent:
    """A policy trained on a `GoalTask` as an `Agent` of closed-loop evaluation; its actions are the deterministic ones.

    Args:
        model: a trained algorithm.
        settings: stored with the result.
    """

    inputs = "pixels"

    def __init__(self, model: Any, *, settings: dict[str, Any] | None = None) -> None:
        self.model, self.settings = model, settings or {}

    def start(self, env: GoalEnv, problems: Sequence[Problem]) -> None:
        """Nothing is remembered."""

    def decide(self, situation: Situation) -> Decision:
        seen = {"observation": situation.observations, "goal": situation.goal_observations}
        actions, _ = self.model.predict(seen, deterministic=True)
        return Decision(actions=actions[:, None])


class WithSB3Expert:
    """An environment whose expert is a policy of stable-baselines3: `demonstrate` and recording take it as it is.

    Args:
        env: the environment.
        model: a trained algorithm; its `predict` is asked for the deterministic action.
        keys: of the observation, in the order of the vector that the model was trained on; None if it was trained on
            the dictionary.
    """

    def __init__(
        self, env: ManipulationEnv, model: Any, *, keys: tuple[str, ...] | None = ("state", "environment")
    ) -> None:
        self.env, self.model, self.keys = env, model, keys
        self.task, self.action, self.max_steps, self.fps = env.task, env.action, env.max_steps, env.fps

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        self._seen, info = self.env.reset(seed=seed, options=options)
        return self._seen, info

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self._seen, reward, terminated, truncated, info = self.env.step(action)
        return self._seen, reward, terminated, truncated, info

    def render(self) -> np.ndarray:
        return self.env.render()

    def close(self) -> None:
        self.env.close()

    def expert(self) -> "WithSB3Expert":
        return self

    def act(self, env: ManipulationEnv) -> np.ndarray:
        """The model's action [A] float32 for what was observed last, within the bounds."""
        seen: Any = self._seen
        if self.keys is not None:
            seen = np.concatenate([seen[key] for key in self.keys])
        action, _ = self.model.predict(seen, deterministic=True)
        return np.clip(action, self.action.low, self.action.high).astype(np.float32)
