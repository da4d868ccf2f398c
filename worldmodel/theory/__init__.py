"""Which features a JEPA learns first: deep linear dynamics (Littwin et al. 2024) and the diagnostic for real features.

`deep_linear` holds the exact scalar dynamics, `matrix_flow` the full matrices they were reduced from,
`mode_diagnostic` and `mode_order` what needs nothing but features.
"""

from worldmodel.theory.mode_diagnostic import (
    LinearMap,
    Modes,
    linear_map,
    mode_energy,
    modes,
    modes_of_covariances,
    residualised,
)
from worldmodel.theory.mode_order import ModeReport, RankCorrelation, learning_order, mode_report

__all__ = [
    "LinearMap",
    "ModeReport",
    "Modes",
    "RankCorrelation",
    "learning_order",
    "linear_map",
    "mode_energy",
    "mode_report",
    "modes",
    "modes_of_covariances",
    "residualised",
]
