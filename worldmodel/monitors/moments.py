"""Streaming sums of feature vectors in float64, reduced over ranks: what every monitor here is made from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from worldmodel.distributed import is_distributed, sum_over_ranks

# Numbers converted to float64 at a time (128 MiB).
_CHUNK = 1 << 24


def collective_device() -> torch.device:
    """Where tensors must lie to be reduced: the CPU where the process group can, else this rank's GPU (plain NCCL).

    It follows from the group alone: a rank that saw no features must choose what the others choose.
    """
    if is_distributed() and "cpu:" not in dist.get_backend_config():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def summed(parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The float64 tensors summed over all ranks in one collective; shapes are kept, the results lie on the CPU."""
    flat = torch.cat([part.detach().flatten().to(collective_device()) for part in parts])
    totals = sum_over_ranks(flat).cpu().split([part.numel() for part in parts])
    return [total.view(part.shape) for total, part in zip(totals, parts, strict=True)]


def agreed_dim(dim: int | None) -> int:
    """The dimension that ranks agree on, some of which may not know it yet (None).

    Raises:
        ValueError: on all ranks, if ranks differ or none has seen a feature.
    """
    known = [1.0, float(dim), float(dim) ** 2] if dim is not None else [0.0] * 3
    ((ranks, total, squares),) = summed([torch.tensor(known, dtype=torch.float64)])
    if not ranks:
        raise ValueError("a monitor that was never updated has no value: call update(features) first")
    if squares * ranks != total**2:
        raise ValueError(f"ranks saw features of different dimension (here {dim})")
    return int(total / ranks)


def as_float64(values: torch.Tensor) -> torch.Tensor:
    """The values in float64 on their device, or on the CPU from one that has no float64 (Apple's)."""
    values = values.detach()
    return (values.cpu() if values.device.type == "mps" else values).double()


def float64_rows(
    features: torch.Tensor, *, dim: int | None, mask: torch.Tensor | None
) -> Iterator[torch.Tensor]:
    """Features [N, K] whose mask [N] is true (None: all), as float64 chunks, on their device or else on the CPU.

    bf16 and fp16 are upcast before anything is computed. Rows outside the mask may hold anything, NaN too.

    Raises:
        ValueError: if the features are not [N, dim] or the mask is not [N] bool.
    """
    if features.ndim != 2 or dim not in (None, features.shape[1]):
        expected = "K" if dim is None else dim
        raise ValueError(f"expected features of shape [N, {expected}], got {tuple(features.shape)}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != features.shape[:1]):
        raise ValueError(
            f"expected a bool mask of shape [{len(features)}], got {mask.dtype} {tuple(mask.shape)}"
        )
    rows = features.detach()
    for start in range(0, len(rows), step := max(1, _CHUNK // max(1, rows.shape[1]))):
        part = rows[start : start + step]
        if mask is not None:
            part = part[mask[start : start + step].to(part.device)]
        yield as_float64(part)


@dataclass(frozen=True, kw_only=True)
class MomentSums:
    """Sums over N vectors z of all ranks, on the CPU in float64.

    Attributes:
        count: N.
        first: sum of z, [K].
        gram: sum of z z^T, [K, K].
    """

    count: int
    first: torch.Tensor
    gram: torch.Tensor

    @property
    def dim(self) -> int:
        return len(self.first)

    @property
    def finite(self) -> bool:
        return bool(self.gram.isfinite().all() and self.first.isfinite().all())

    @property
    def energy(self) -> float:
        """Sum of |z|^2."""
        return float(self.gram.trace())

    @property
    def scatter(self) -> torch.Tensor:
        """Sum of (z - mean) (z - mean)^T, [K, K]."""
        return self.gram - torch.outer(self.first, self.first) / max(1, self.count)


class Moments:
    """Count, sum and Gram matrix of vectors; memory K^2, whatever their number.

    The sums lie where the first features lay: a GPU accumulates without a copy to the host.

    Args:
        dim: K; None takes it from the first vectors.
    """

    def __init__(self, dim: int | None = None) -> None:
        if dim is not None and dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.dim = dim
        self._count = 0
        self._sums: tuple[torch.Tensor, torch.Tensor] | None = None

    @torch.no_grad()
    def add(self, rows: torch.Tensor) -> None:
        """Add float64 rows [N, K]."""
        self.dim = rows.shape[1]
        if self._sums is None:
            self._sums = rows.new_zeros(self.dim), rows.new_zeros(self.dim, self.dim)
        first, gram = self._sums
        rows = rows.to(first.device)
        first += rows.sum(0)
        gram.addmm_(rows.T, rows)
        self._count += len(rows)

    def reduce(self) -> MomentSums:
        """The sums over all ranks; every rank must call. This rank's own sums stay as they are."""
        dim = agreed_dim(self.dim)
        empty = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64)
        count = torch.tensor(float(self._count), dtype=torch.float64)
        total, first, gram = summed([count, *(self._sums or empty)])
        return MomentSums(count=int(total), first=first, gram=gram)
