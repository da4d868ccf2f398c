"""The true simulator as a world model: what a planner achieves when the model is perfect."""

from collections.abc import Sequence

import numpy as np
import torch

from envs.goals import GoalEnv, Problem
from worldmodel.batches import LatentState
from worldmodel.planning.costs import Reduction, over_horizon


class SimulatorModel:
    """A `WorldModel` whose latents are the simulator's states.

    Args:
        env: whose dynamics; its running episode is left alone.
        problems: one per environment that is planned for. The rows of a rollout are equally many candidates of each, in
            that order.
        block: environment steps per action of the model.
    """

    def __init__(self, env: GoalEnv, problems: Sequence[Problem], *, block: int) -> None:
        self.env, self.problems, self.block = env, problems, block

    def encode(self, observations: torch.Tensor) -> torch.Tensor:
        """States [B, T, S] as they are."""
        return observations

    def rollout(self, state: LatentState, future: torch.Tensor) -> torch.Tensor:
        """States [N, H, S] after each of the blocks [N, H, block * A].

        Raises:
            ValueError: if the rows are not equally many candidates per problem.
        """
        rows, horizon = future.shape[:2]
        if rows % len(self.problems):
            raise ValueError(f"{rows} rows are not equally many candidates of {len(self.problems)} problems")
        starts = state.latents[:, -1].numpy().astype(np.float64)
        actions = future.numpy().reshape(rows, horizon * self.block, -1).astype(np.float64)
        each = rows // len(self.problems)
        ends = [
            self.env.simulate(problem, starts[i : i + each], actions[i : i + each])[
                :, self.block - 1 :: self.block
            ]
            for i, problem in zip(range(0, rows, each), self.problems, strict=True)
        ]
        return torch.from_numpy(np.concatenate(ends)).to(state.latents.dtype)

    def keep(self, index: np.ndarray) -> None:
        """Go on with some of the problems, by their present index."""
        self.problems = [self.problems[i] for i in index]


class TrueDistance:
    """The environment's own distance to the goal, as a cost of simulated states.

    Args:
        env, problems: as in `SimulatorModel`.
        reduce: over the horizon, "sum", "last" or "min".
    """

    def __init__(self, env: GoalEnv, problems: Sequence[Problem], *, reduce: Reduction) -> None:
        self.env, self.problems, self.reduce = env, problems, reduce

    def __call__(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        states = latents.numpy().astype(np.float64)
        distances = np.stack(
            [
                self.env.distance(problem, one.reshape(-1, one.shape[-1])).reshape(one.shape[:2])
                for problem, one in zip(self.problems, states, strict=True)
            ]
        )
        return over_horizon(torch.from_numpy(distances), self.reduce).to(latents.dtype)

    def rows(self, index: torch.Tensor) -> "TrueDistance":
        """The cost of some of the problems."""
        return TrueDistance(self.env, [self.problems[i] for i in index.tolist()], reduce=self.reduce)
