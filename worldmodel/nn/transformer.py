"""Pre-norm transformer blocks, who may see whom, position codes, and token dropping."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, dim: int, *, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"the token width {dim} is not a multiple of {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, allowed: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens [B, L, D]; allowed [B, L, L] bool is true where a query (row) may see a key (column)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if allowed is None else allowed.unsqueeze(1)
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, *, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)) with a GELU; parameters named as in common vision transformers."""

    def __init__(self, dim: int, *, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads=heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, hidden=int(mlp_ratio * dim))

    def forward(self, x: torch.Tensor, allowed: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens [B, L, D] under the mask of `Attention`."""
        x = x + self.attn(self.norm1(x), allowed)
        return x + self.mlp(self.norm2(x))


def block_causal(rank: torch.Tensor, query_step: torch.Tensor | None = None) -> torch.Tensor:
    """Who sees whom among K context tokens and Q queries: [B, K + Q, K + Q] bool, a row for each that looks.

    Context tokens see those of the same or a lower rank. The queries of step s see the context of ranks up to s and one
    another; nobody else sees them. Padding, marked -1, sees itself alone: a softmax over nothing is NaN.

    Args:
        rank: [B, K] int64 of the context tokens.
        query_step: [B, Q] int64, the step each query belongs to.
    """
    steps = rank[:, :0] if query_step is None else query_step
    level = torch.cat([rank, steps], dim=1)
    is_query = (torch.arange(level.shape[1], device=level.device) >= rank.shape[1]).expand_as(level)
    looker, looked_at = level.unsqueeze(2), level.unsqueeze(1)
    seen = torch.where(
        is_query.unsqueeze(1), is_query.unsqueeze(2) & (looked_at == looker), looked_at <= looker
    )
    itself = torch.eye(level.shape[1], dtype=torch.bool, device=level.device)
    return seen & (looker >= 0) & (looked_at >= 0) | itself


def init_weights(module: nn.Module, *, depth: int) -> None:
    """Truncated normal of std 0.02, biases zero, and the last layer of each residual branch over sqrt(2 layer)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    blocks = [part for part in module.modules() if isinstance(part, Block)]
    if len(blocks) != depth:
        raise ValueError(f"expected {depth} blocks, found {len(blocks)}")
    with torch.no_grad():
        for layer, block in enumerate(blocks, start=1):
            block.attn.proj.weight.div_(math.sqrt(2 * layer))
            block.mlp.fc2.weight.div_(math.sqrt(2 * layer))


def sincos_positions(dim: int, *, height: int, width: int) -> torch.Tensor:
    """Fixed position codes [height * width, dim], row by row: half the features for each axis, sine then cosine."""
    if dim % 4:
        raise ValueError(
            f"sine-cosine positions in the plane need a width that is a multiple of 4, got {dim}"
        )
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    phases = [axis.flatten().double().unsqueeze(1) * frequencies for axis in (rows, columns)]
    return torch.cat([f(p) for p in phases for f in (torch.sin, torch.cos)], dim=1).float()


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Where the kept tokens of each row went: to the front, in order, padded to the longest row of the batch.

    Attributes:
        index: [B, K] int64, position of each kept token among the P; 0 in the padding.
        valid: [B, K] bool, false in the padding.
    """

    index: torch.Tensor
    valid: torch.Tensor

    @classmethod
    def of(cls, keep: torch.Tensor) -> "Packed":
        """From keep [B, P] bool; K is the largest number kept in a row."""
        if keep.ndim != 2 or keep.dtype != torch.bool:
            raise ValueError(f"keep must be [B, P] bool, got {tuple(keep.shape)} {keep.dtype}")
        counts = keep.sum(1)
        longest = int(counts.max()) if len(counts) else 0
        order = torch.argsort(~keep, dim=1, stable=True)[:, :longest]
        valid = torch.arange(longest, device=keep.device) < counts.unsqueeze(1)
        return cls(index=torch.where(valid, order, 0), valid=valid)

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """values [B, P, ...] to [B, K, ...]; zero in the padding."""
        rows = torch.arange(len(values), device=values.device).unsqueeze(1)
        taken = values[rows, self.index]
        return taken * self.valid.view(*self.valid.shape, *[1] * (values.ndim - 2)).to(values.dtype)
