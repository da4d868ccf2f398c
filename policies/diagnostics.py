"""Whether a world model can be planned with in an environment, measured beside every planner's success.

The states it is looked at on are those of held actions drawn at random from the starts of the problems, imagined by the
simulator, so no data set is needed and none can leak.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from envs.goals import GoalEnv, Problem
from policies.agents import PlanningSettings, to_tensor
from policies.baselines import uniform_action
from worldmodel.batches import EpisodeBatch
from worldmodel.monitors import representation_health
from worldmodel.planning import GoalCost, cost_correlation, error_by_horizon
from worldmodel.protocols import WorldModel


def random_walks(
    env: GoalEnv, problems: Sequence[Problem], *, block: int, blocks: int, hold: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """States [N, blocks + 1, S] at the ends of blocks, and actions [N, blocks, block * A], one walk per problem.

    Args:
        hold: environment steps each random action is kept for.
    """
    states, actions = [], []
    for problem in problems:
        rng = np.random.default_rng((seed, problem.seed, 0xD1A6))
        count = -(-block * blocks // hold)
        drawn = np.stack([uniform_action(env.spec_action, rng) for _ in range(count)])
        each = np.repeat(drawn, hold, axis=0)[: block * blocks]
        path = env.simulate(problem, problem.start[None], each[None])[0]
        states.append(np.concatenate([problem.start[None], path[block - 1 :: block]]))
        actions.append(each.reshape(blocks, -1))
    return np.stack(states), np.stack(actions).astype(np.float32)


@torch.no_grad()
def diagnose(
    model: WorldModel,
    env: GoalEnv,
    problems: Sequence[Problem],
    *,
    block: int,
    window: int,
    planning: PlanningSettings,
    blocks: int = 16,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Rank correlation of cost and distance, error by horizon, health of the latents.

    Returns:
        cost_distance_spearman: mean over problems of the rank correlation of the latent cost of a state with its true
            distance to the goal; 1 if planning for one is planning for the other.
        error_over_copy_last: per horizon in blocks, error of the imagined latents over that of copying the last
            observed one; below 1 or the model knows nothing of what actions do.
        std, effective rank, cosine to the mean... of the latents (`representation_health`).
    """
    states, actions = random_walks(env, problems, block=block, blocks=blocks, hold=4, seed=seed)
    seen = np.stack([env.render_states(p, s) for p, s in zip(problems, states, strict=True)])
    goals = np.stack([env.render_states(p, p.goal[None])[0] for p in problems])
    observations = to_tensor(seen, device)
    latents = model.encode(observations)
    cost = GoalCost.from_observations(
        model, to_tensor(goals, device), distance=planning.distance, reduce="last"
    )
    each = latents.unsqueeze(2)  # every state as a candidate of horizon 1
    costs = cost(each, torch.zeros(*each.shape[:3], actions.shape[-1], device=each.device))
    distances = np.stack([env.distance(p, s) for p, s in zip(problems, states, strict=True)])
    batch = EpisodeBatch(
        observations=observations,
        actions=torch.from_numpy(actions).to(device),
        seeds=tuple(p.seed for p in problems),
    )
    errors = error_by_horizon(model, [batch], context=window, horizon=blocks + 1 - window)
    return {
        "problems": len(problems),
        "cost_distance_spearman": float(cost_correlation(costs, torch.from_numpy(distances)).nanmean()),
        "error_over_copy_last": [summary.ratio for summary in errors],
        **{
            name: float(value)
            for name, value in representation_health(latents.flatten(0, 1).flatten(1)).items()
        },
    }
