"""Floors of every success rate: random actions, and none."""

from collections.abc import Sequence

import numpy as np

from envs.episodes import ActionSpec
from envs.goals import GoalEnv, Problem, clip_action
from policies.rollouts import Decision, Situation


class RandomAgent:
    """Actions uniform over the allowed ones.

    Args:
        seed: with the seed of the problem and the step, of every action.
        hold: environment steps an action is kept for. Held actions wander further than independent ones.
    """

    inputs = "nothing"

    def __init__(self, *, seed: int = 0, hold: int = 1) -> None:
        if hold < 1:
            raise ValueError(f"an action is held for at least 1 step, got {hold}")
        self.seed, self.hold = seed, hold
        self.settings = {"seed": seed, "hold": hold}

    def start(self, env: GoalEnv, problems: Sequence[Problem]) -> None:
        self.spec, self.problems = env.spec_action, problems

    def decide(self, situation: Situation) -> Decision:
        actions = [
            uniform_action(
                self.spec, np.random.default_rng((self.seed, self.problems[row].seed, situation.step))
            )
            for row in situation.rows
        ]
        return Decision(actions=np.repeat(np.stack(actions)[:, None], self.hold, axis=1))


class NoOpAgent:
    """Does nothing: solves what solves itself."""

    inputs = "nothing"

    def __init__(self) -> None:
        self.settings: dict[str, float] = {}

    def start(self, env: GoalEnv, problems: Sequence[Problem]) -> None:
        self.env = env

    def decide(self, situation: Situation) -> Decision:
        """The action that changes nothing: what the environment says it is, else zero."""
        still = getattr(self.env, "still_action", None)
        spec = self.env.spec_action
        zero = np.zeros((len(situation.rows), spec.dim))
        actions = clip_action(spec, zero) if still is None else np.asarray(still(situation.states))
        return Decision(actions=actions[:, None])


def uniform_action(spec: ActionSpec, rng: np.random.Generator) -> np.ndarray:
    """One action [A] uniform over the box, and over the ball of `max_norm` within it.

    Raises:
        ValueError: if the box is infinite and no norm bounds it.
    """
    edge = np.inf if spec.max_norm is None else spec.max_norm
    low, high = np.maximum(spec.low, -edge), np.minimum(spec.high, edge)
    if not np.isfinite(low).all() or not np.isfinite(high).all():
        raise ValueError(
            f"random actions need bounds, got {spec.low} to {spec.high}: give the action space some"
        )
    while True:
        action = rng.uniform(low, high)
        if np.linalg.norm(action) <= edge:
            return action
