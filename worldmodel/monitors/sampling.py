"""A random sample of rows from a stream: each row is as likely as any other, whatever the others are."""

import torch

from worldmodel.distributed import gather_1d, rank
from worldmodel.monitors.moments import collective_device


class RowSample:
    """`size` rows of all that were added on all ranks: those with the smallest random numbers.

    A rank draws one number per row, in order: the sample does not depend on how its stream is cut into batches, but it
    is another one if the rows are ordered or spread over ranks in another way.

    Args:
        size: rows to keep, R; a rank holds at most as many.
        seed: of the numbers, beside the rank.
    """

    def __init__(self, size: int, *, seed: int = 0) -> None:
        self.size, self.seed = size, seed
        self._rows: torch.Tensor | None = None
        self._keys = torch.zeros(0, dtype=torch.float64)
        self._generator = torch.Generator().manual_seed(seed * 1_000_003 + rank())

    @torch.no_grad()
    def add(self, rows: torch.Tensor) -> None:
        """Add float64 rows [N, K]."""
        keys = torch.rand(len(rows), generator=self._generator, dtype=torch.float64)
        if self._rows is not None:
            rows, keys = torch.cat([self._rows, rows.to(self._rows.device)]), torch.cat([self._keys, keys])
        self._keys, order = keys.sort(stable=True)
        self._keys, self._rows = self._keys[: self.size], rows[order[: self.size].to(rows.device)]

    def here(self, dim: int) -> torch.Tensor:
        """Rows [r, dim] of the common sample that this rank holds; the r of all ranks sum to at most R.

        They lie where collectives run: on the CPU, or on a GPU if the process group is NCCL's alone.
        """
        keys = self._keys.to(collective_device())
        owners = gather_1d(torch.full_like(keys, rank()))
        chosen = gather_1d(keys).argsort(stable=True)[: self.size]
        mine = int((owners[chosen] == rank()).sum())  # own rows are sorted: the chosen ones come first
        rows = torch.zeros(0, dim, dtype=torch.float64) if self._rows is None else self._rows
        return rows[:mine].to(collective_device())
