"""Random matrices for the tests of the monitors."""

import torch


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthonormal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """float64 [rows, columns] with orthonormal columns."""
    return torch.linalg.qr(gaussian(rows, columns, seed=seed).double())[0]


def with_singular_values(values: torch.Tensor, *, rows: int) -> torch.Tensor:
    """A float64 matrix [rows, K] with these singular values and random singular vectors."""
    k = len(values)
    return orthonormal(rows, k) * values.double() @ orthonormal(k, k, seed=1)


def svd_rankme(z: torch.Tensor) -> float:
    """By the definition, from singular values."""
    s = torch.linalg.svdvals(z.double())
    p = s / s.sum()
    return float(torch.special.entr(p).sum().exp())
