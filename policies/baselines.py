"""Floors of every success rate: random actions, and none."""

from collections.abc import Sequence

import numpy as np

from envs.episodes import ActionSpec
from envs.goals import GoalEnv, Problem
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
        """Raises ValueError where zero is no action, or on the edge of the bounds: it would not mean to do nothing."""
        self.spec = env.spec_action
        if not ((self.spec.low < 0) & (self.spec.high > 0)).all():
            raise ValueError(
                f"zero does something here: actions lie in {self.spec.low} to {self.spec.high}. Make the environment "
                f"with relative actions, or leave the no-op agent out"
            )

    def decide(self, situation: Situation) -> Decision:
        return Decision(actions=np.zeros((len(situation.rows), 1, self.spec.dim)))


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
