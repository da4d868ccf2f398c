"""Goal-reaching environments as reinforcement-learning tasks, as stable-baselines3 takes them."""

from typing import Any

import numpy as np

from envs.goals import GoalEnv, Split
from envs.gym_base import Env, require_gymnasium


class GoalTask(Env):
    """A `GoalEnv` with the goal in the observation, a reward and ends of episodes.

    Observation: {"observation": as the environment's, "goal": as the goal looks}. Reward: how much nearer the goal is
    than a step ago, in units of `scale`, and 1 at success, which ends the episode. `info["is_success"]` is what
    stable-baselines3 counts.

    Args:
        env: the environment.
        max_steps: after which an episode is truncated.
        scale: distance that earns a reward of 1.
        split: whose problems are posed.
        problems: how many of them; all seeds if None.
    """

    def __init__(
        self,
        env: GoalEnv,
        *,
        max_steps: int = 200,
        scale: float = 10.0,
        split: Split = "train",
        problems: int | None = None,
    ) -> None:
        if max_steps < 1 or not scale > 0 or (problems is not None and problems < 1):
            raise ValueError(
                f"max_steps, scale and problems must be positive, got {max_steps}, {scale} and {problems}"
            )
        spaces = require_gymnasium().spaces
        self.env, self.max_steps, self.scale = env, max_steps, scale
        self.split, self.problems = split, problems
        self.action_space = env.action_space  # type: ignore[attr-defined]
        inner = env.observation_space  # type: ignore[attr-defined]
        self.observation_space = spaces.Dict({"observation": inner, "goal": inner})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts a problem of the split: one drawn by the seed, or `options["problem"]`."""
        super().reset(seed=seed)
        number = int(self.np_random.integers(self.problems or 2**31))
        problem = (options or {}).get("problem") or self.env.problem(number, self.split)
        observation, info = self.env.reset(seed=seed, options={"problem": problem})
        self._steps, self._distance = 0, info["distance"]
        return self._seen(observation, info), {**info, "is_success": info["success"]}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        nearer = (self._distance - info["distance"]) / self.scale
        self._distance, won = info["distance"], bool(info["success"])
        ended = terminated or won
        late = not ended and (truncated or self._steps >= self.max_steps)
        reward = float(nearer + won)
        return self._seen(observation, info), reward, ended, late, {**info, "is_success": won}

    def _seen(self, observation: np.ndarray, info: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"observation": observation, "goal": info["goal_observation"]}
