"""PPO on Two Rooms with one extractor or another, evaluated while it learns."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from envs.goal_tasks import GoalTask
from envs.two_rooms import TwoRooms
from policies.evaluation import EvaluationProtocol, evaluate
from policies.rollouts import Agent, EpisodeBudget
from policies.sb3 import JEPAFeatures, SB3Agent


@dataclass(frozen=True, kw_only=True)
class RLProtocol:
    """Task, algorithm and evaluation of every arm.

    Attributes:
        layout: (wall x, door y) in px; only starts and goals differ.
        max_steps: of an episode.
        env_steps: of training, at least.
        every: environment steps between two evaluations; a multiple of envs * rollout.
        curve_problems: of each evaluation on the way.
        problems: of the last one.
        envs: in lockstep.
        rollout: steps of each before an update.
        batch, epochs, lr, gamma: of PPO; the rest is stable-baselines3's default.
    """

    layout: tuple[float, float] = (35.0, 26.0)
    max_steps: int = 60
    env_steps: int = 32_768
    every: int = 4096
    curve_problems: int = 40
    problems: int = 200
    split: Literal["selection", "test"] = "test"
    envs: int = 8
    rollout: int = 128
    batch: int = 256
    epochs: int = 4
    lr: float = 1e-3
    gamma: float = 0.95

    def __post_init__(self) -> None:
        if self.every < 1 or self.every % (self.envs * self.rollout) or self.env_steps % self.every:
            raise ValueError(
                f"env_steps must be a multiple of every, and that of envs * rollout = {self.envs * self.rollout}, got "
                f"{self.env_steps} and {self.every}"
            )

    def env(self) -> TwoRooms:
        return TwoRooms(layout=self.layout)

    def success(self, agent: Agent, problems: int) -> list[bool]:
        """Of the first problems of the split that their start does not solve."""
        protocol = EvaluationProtocol(
            environment="two_rooms",
            split=self.split,
            seeds=tuple(range(problems)),
            budget=EpisodeBudget(env_steps=self.max_steps),
            batch=problems,
            play_on=False,
        )
        result = evaluate({"agent": [agent]}, make_env=self.env, protocol=protocol)
        return [bool(solved) for solved in result.success("agent")[0]]


def ppo(protocol: RLProtocol, *, seed: int, encoder: nn.Module | None = None, frozen: bool = True) -> PPO:
    """PPO over stable-baselines3's own extractor, one NatureCNN per picture, or over an encoder."""
    kwargs: dict[str, Any] = {}
    if encoder is not None:
        kwargs["features_extractor_class"] = JEPAFeatures
        kwargs["features_extractor_kwargs"] = {"encoder": encoder, "frozen": frozen}
    tasks = DummyVecEnv([lambda: GoalTask(protocol.env(), max_steps=protocol.max_steps)] * protocol.envs)
    return PPO(
        "MultiInputPolicy", tasks, seed=seed, device="cpu", n_steps=protocol.rollout, batch_size=protocol.batch,
        n_epochs=protocol.epochs, learning_rate=protocol.lr, gamma=protocol.gamma, policy_kwargs=kwargs,
    )  # fmt: skip


def learn(
    protocol: RLProtocol, model: PPO, *, on_point: Callable[[dict[str, float]], None] = lambda point: None
) -> dict[str, Any]:
    """Train, and evaluate on the way and at the end.

    Returns:
        curve (env_steps, cpu_s of training alone, success), success on each of the final problems, parameters and how
        many of them are trained.
    """
    curve: list[dict[str, float]] = []
    agent, cpu_s = SB3Agent(model), 0.0
    while True:
        solved = protocol.success(agent, protocol.curve_problems)
        curve.append({"env_steps": model.num_timesteps, "cpu_s": cpu_s, "success": float(np.mean(solved))})
        on_point(curve[-1])
        if model.num_timesteps >= protocol.env_steps:
            break
        began = time.process_time()
        model.learn(protocol.every, reset_num_timesteps=False)
        cpu_s += time.process_time() - began
    parameters = list(model.policy.parameters())
    return {
        "curve": curve,
        "success": protocol.success(agent, protocol.problems),
        "parameters": sum(p.numel() for p in parameters),
        "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "protocol": asdict(protocol),
    }
