"""A random sample of rows from a stream that does not depend on batches, their order or the number of ranks."""

import torch

from worldmodel.distributed import gather_1d, rank
from worldmodel.monitors.moments import collective_device


def row_keys(rows: torch.Tensor, *, seed: int) -> torch.Tensor:
    """A pseudo-random int64 per float64 row [N, K]: a multiplicative hash of its bits, the same wherever it is seen."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randint(-(2**63), 2**63 - 1, rows.shape[1:], generator=generator, dtype=torch.int64) | 1
    bits = rows.contiguous().view(torch.int64)
    # Upcast rows end in zero bits: fold the upper half down, so that every bit of a product is mixed.
    bits = bits ^ (bits >> 32)
    return (bits * factors.to(bits.device)).sum(dim=1)


class RowSample:
    """The `size` rows with the smallest keys of all that were added on all ranks.

    Args:
        size: rows to keep, R; a rank holds at most as many.
        seed: of the keys.
    """

    def __init__(self, size: int, *, seed: int = 0) -> None:
        self.size, self.seed = size, seed
        self._rows: torch.Tensor | None = None
        self._keys = torch.zeros(0, dtype=torch.int64)

    @torch.no_grad()
    def add(self, rows: torch.Tensor) -> None:
        """Add float64 rows [N, K]."""
        keys = row_keys(rows, seed=self.seed)
        if self._rows is not None:
            rows = torch.cat([self._rows, rows.to(self._rows.device)])
            keys = torch.cat([self._keys, keys.to(self._keys.device)])
        self._keys, order = keys.sort(stable=True)
        self._keys, self._rows = self._keys[: self.size], rows[order[: self.size]]

    def here(self, dim: int) -> torch.Tensor:
        """Rows [r, dim] of the common sample that this rank holds, on the CPU; the r of all ranks sum to at most R."""
        keys = self._keys.to(collective_device())
        owners = gather_1d(torch.full_like(keys, rank()))
        chosen = gather_1d(keys).argsort(stable=True)[: self.size]
        mine = int((owners[chosen] == rank()).sum())  # own rows are sorted: the chosen ones come first
        rows = torch.zeros(0, dim, dtype=torch.float64) if self._rows is None else self._rows
        return rows[:mine].cpu()
