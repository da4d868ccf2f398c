"""Gymnasium's spaces of an environment of this package."""

from typing import Any

import numpy as np

from envs.episodes import ActionSpec
from envs.gym_base import require


def spaces_of(action: ActionSpec, **dims: int) -> tuple[Any, Any]:
    """The spaces of observations and of actions.

    Args:
        action: with finite bounds.
        dims: of the vectors of an observation, by name.
    """
    spaces = require("gymnasium").spaces
    vectors = {name: spaces.Box(-np.inf, np.inf, (dim,), np.float32) for name, dim in dims.items()}
    return spaces.Dict(vectors), spaces.Box(action.low, action.high, dtype=np.float32)
