"""The numbers behind the figure of the deep linear theory: what JEPA and MAE learn first, and on what it depends."""

from typing import Any, TypedDict

import numpy as np

from worldmodel.rank_correlation import spearman
from worldmodel.theory.deep_linear import (
    Array,
    Objective,
    critical_time,
    fixed_point,
    reversal_threshold,
    trajectory,
)
from worldmodel.theory.matrix_flow import balanced_weights, simulate

OBJECTIVES: tuple[Objective, ...] = ("jepa", "mae")


class Curves(TypedDict):
    """Growth of the modes under one objective: the exact trajectory, and a simulation of all matrices."""

    times: list[float]
    exact: list[list[float]]
    matrix_times: list[float]
    matrix: list[list[float]]
    half_times: list[float]
    largest_difference: float


def curves(
    *,
    objective: Objective,
    depth: int,
    covariance: Array,
    regression: Array,
    layer_init: float,
    dots: int = 40,
) -> Curves:
    """wbar_i(t) / wbar_i* [T][K], from a fifth of the first critical time to where all modes are learnt."""
    final = fixed_point(objective=objective, depth=depth, regression=regression)
    mode: dict[str, Any] = {
        "objective": objective, "depth": depth, "covariance": covariance, "regression": regression,
        "layer_init": layer_init,
    }  # fmt: skip
    half = critical_time(**mode)
    span = half.min() * 0.2, critical_time(**mode, fraction=0.995).max() * 1.3
    times, matrix_times = np.geomspace(*span, 400), np.geomspace(*span, dots)
    run = simulate(
        balanced_weights(objective=objective, depth=depth, dim=len(final), layer_init=layer_init),
        matrix_times,
        objective=objective,
        sigma_xx=np.diag(covariance / regression),
        sigma_yx=np.diag(covariance),
        rtol=1e-10,
    )
    matrix = run.energy(np.eye(len(final)))
    return {
        "times": times.tolist(),
        "exact": (trajectory(times[:, None], **mode) / final).tolist(),
        "matrix_times": matrix_times.tolist(),
        "matrix": (matrix / final).tolist(),
        "half_times": half.tolist(),
        "largest_difference": float(np.abs(matrix - trajectory(matrix_times[:, None], **mode)).max()),
    }


def half_times(
    *, depths: list[int], covariance: Any, regression: Any, **init: float
) -> dict[Objective, list[list[float]]]:
    """Time to half of the fixed point [depth][mode], for both objectives."""
    return {
        o: [
            critical_time(
                objective=o, depth=d, covariance=covariance, regression=np.asarray(regression, float), **init
            ).tolist()
            for d in depths
        ]
        for o in OBJECTIVES
    }


def rank_correlations(
    *, depths: list[int], modes: int, layer_init: float, seed: int
) -> dict[Objective, dict[str, list[float]]]:
    """Spearman(earliness, lambda) and (earliness, rho) by depth, over modes whose lambda and rho are independent."""
    generator = np.random.default_rng(seed)
    covariance, regression = generator.uniform(0.8, 1, modes), generator.uniform(0.3, 1, modes)
    times = half_times(depths=depths, covariance=covariance, regression=regression, layer_init=layer_init)
    return {
        o: {
            name: [float(spearman(-np.array(t), values)) for t in times[o]]
            for name, values in (("covariance", covariance), ("regression", regression))
        }
        for o in OBJECTIVES
    }


def learning_order_study() -> dict[str, Any]:
    """Everything the figure and its tables show, as plain numbers."""
    covariance, regression = np.array([1.0, 0.97, 0.94, 0.91]), np.array([0.25, 0.4, 0.65, 1.0])
    depth, layer_init = 3, 0.1
    depths, (rates, rho) = list(range(1, 8)), ((1.0, 0.8), (0.3, 1.0))
    return {
        "modes": {
            "depth": depth,
            "layer_init": layer_init,
            "covariance": covariance.tolist(),
            "regression": regression.tolist(),
            "curves": {
                o: curves(
                    objective=o,
                    depth=depth,
                    covariance=covariance,
                    regression=regression,
                    layer_init=layer_init,
                )
                for o in OBJECTIVES
            },
        },
        "reversal": {
            "covariance": rates,
            "regression": rho,
            "layer_init": 0.12,
            "depths": depths,
            "half_times": half_times(depths=depths, covariance=rates, regression=rho, layer_init=0.12),
            # None where the rule knows no threshold, at depth 1.
            "threshold": [
                None if d == 1 else reversal_threshold(depth=d, covariance=rates, regression=rho)
                for d in depths
            ],
        },
        "correlation": {
            "modes": 500,
            "layer_init": 0.12,
            "seed": 0,
            "covariance_range": [0.8, 1.0],
            "regression_range": [0.3, 1.0],
            "depths": depths,
            "spearman": rank_correlations(depths=depths, modes=500, layer_init=0.12, seed=0),
        },
        "bias": {
            "covariance": 1.0,
            "regression": [0.5, 1.0],
            "depths": depths,
            "inits": [
                {
                    **init,
                    "half_times": half_times(depths=depths, covariance=1.0, regression=[0.5, 1.0], **init),
                }
                for init in ({"product_init": 1e-3}, {"layer_init": 0.1})
            ],
        },
    }
