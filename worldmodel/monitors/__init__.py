"""Label-free monitors of a representation, each streaming and exact over batches and ranks.

| class or function                            | question                                                          |
|----------------------------------------------|-------------------------------------------------------------------|
| `RankMe`, `rankme`                           | how many directions are in use, and is the sample large enough    |
| `LDARank`, `lda_rank`                        | how many directions tell samples apart better than views of one   |
| `CopyLast`                                   | does a world model predict better than "nothing changes"          |
| `EmbeddingMonitor`, `representation_health`  | all that is cheap, as the numbers that a task's `monitors()` logs |

Sums are kept in float64 where the features are and reduced with SUM over ranks when a value is read; every rank must
read it then, also one that saw no features.
"""

from worldmodel.monitors.copy_last import CopyLast, CopyLastSummary
from worldmodel.monitors.health import EmbeddingHealth, EmbeddingMonitor, representation_health
from worldmodel.monitors.lda import LDARank, LDASummary, lda_rank
from worldmodel.monitors.rankme import RankMe, RankSummary, rankme
from worldmodel.monitors.spectrum import (
    alpha_req,
    effective_rank,
    marchenko_pastur_rankme,
    participation_ratio,
    stable_rank,
)

__all__ = [
    "CopyLast",
    "CopyLastSummary",
    "EmbeddingHealth",
    "EmbeddingMonitor",
    "LDARank",
    "LDASummary",
    "RankMe",
    "RankSummary",
    "alpha_req",
    "effective_rank",
    "lda_rank",
    "marchenko_pastur_rankme",
    "participation_ratio",
    "rankme",
    "representation_health",
    "stable_rank",
]
