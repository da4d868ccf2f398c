"""iCEM: a sample-efficient CEM (Pinneri et al. 2020, arXiv 2008.06389)."""

import math
from dataclasses import dataclass

import torch

from worldmodel.planning.cem import CEM
from worldmodel.planning.plan import Plan
from worldmodel.planning.sampling import Fit


@dataclass(frozen=True, kw_only=True, eq=False)
class ICEM(CEM):
    """CEM with noise that is coloured in time, elites that are kept, and fewer candidates in every iteration.

    Attributes:
        keep: share of the elites that is judged again in the next iteration, and, shifted, in the next decision.
        decay: the population shrinks by this factor with every iteration, to twice the elites at least.
    """

    noise_beta: float = 2.0
    momentum: float = 0.1
    keep: float = 0.3
    decay: float = 1.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.keep <= 1.0 or self.decay < 1.0:
            raise ValueError(f"keep lies in [0, 1] and decay is at least 1, got {self.keep} and {self.decay}")

    def population(self, iteration: int) -> int:
        return max(round(self.samples * self.decay**-iteration), min(2 * self.elites, self.samples))

    def kept(self, iteration: int, earlier: Fit | None, warm: Plan | None) -> torch.Tensor | None:
        """The best elites of the iteration before, or those of the decision before, which a shift leaves in bounds."""
        elites = earlier.elites if earlier is not None else None if warm is None else warm.elites
        count = math.ceil(self.keep * self.elites)
        return elites[:, :count] if elites is not None and count else None
