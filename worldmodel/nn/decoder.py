"""Post-norm transformer layers with key padding and cross-attention, and decoders whose tokens are learned queries.

As in DETR (arXiv 2005.12872) and ACT (arXiv 2304.13705), with the details of ACT-JEPA (arXiv 2501.14622): LayerNorm
after each residual sum, MLPs without biases, dropout on attention probabilities and inside the MLP, queries that are
tokens themselves instead of positions added to zeros. `worldmodel.nn.transformer` has the pre-norm blocks of vision
transformers.
"""

import math
from functools import lru_cache

import torch
from torch import nn


class FeedForward(nn.Sequential):
    """Linear, ReLU, dropout, linear, dropout; no biases."""

    def __init__(self, dim: int, *, hidden: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(dim, hidden, bias=False),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim, bias=False),
            nn.Dropout(dropout),
        )


class _Attention(nn.MultiheadAttention):
    """Scaled dot-product attention with biases, batch first, that returns no weights."""

    def __init__(self, dim: int, *, heads: int, dropout: float) -> None:
        if dim % heads:
            raise ValueError(f"the token width {dim} is not a multiple of {heads} heads")
        super().__init__(dim, heads, dropout=dropout, batch_first=True)

    def over(
        self,
        tokens: torch.Tensor,
        memory: torch.Tensor,
        *,
        is_pad: torch.Tensor | None = None,
        forbidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Tokens [B, Q, D] attend over memory [B, K, D].

        Args:
            is_pad: [B, K] bool, memory that nobody attends to.
            forbidden: [Q, K] bool, true where a token may not see.
        """
        attended, _ = self(
            tokens, memory, memory, key_padding_mask=is_pad, attn_mask=forbidden, need_weights=False
        )
        return attended


class EncoderLayer(nn.Module):
    """x <- norm(x + attention(x)), then x <- norm(x + MLP(x))."""

    def __init__(self, dim: int, *, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = _Attention(dim, heads=heads, dropout=dropout)
        self.mlp = FeedForward(dim, hidden=hidden, dropout=dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(
        self, x: torch.Tensor, *, is_pad: torch.Tensor | None = None, forbidden: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Tokens [B, L, D]; is_pad [B, L] and forbidden [L, L] as for the attention."""
        x = self.norm1(x + self.self_attention.over(x, x, is_pad=is_pad, forbidden=forbidden))
        return self.norm2(x + self.mlp(x))


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention over a memory, MLP; norm(x + .) after each."""

    def __init__(self, dim: int, *, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = _Attention(dim, heads=heads, dropout=dropout)
        self.cross_attention = _Attention(dim, heads=heads, dropout=dropout)
        self.mlp = FeedForward(dim, hidden=hidden, dropout=dropout)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(
        self,
        x: torch.Tensor,
        memory: torch.Tensor,
        *,
        is_pad: torch.Tensor | None = None,
        forbidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Tokens [B, Q, D] over memory [B, K, D]; is_pad [B, Q] and forbidden [Q, Q] are of the self-attention."""
        x = self.norm1(x + self.self_attention.over(x, x, is_pad=is_pad, forbidden=forbidden))
        x = self.norm2(x + self.cross_attention.over(x, memory))
        return self.norm3(x + self.mlp(x))


class Encoder(nn.Module):
    """Encoder layers and a last LayerNorm."""

    def __init__(self, dim: int, *, layers: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(dim, heads=heads, hidden=hidden, dropout=dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: torch.Tensor, *, is_pad: torch.Tensor | None = None, causal: bool = False
    ) -> torch.Tensor:
        """Tokens [B, L, D]; is_pad [B, L] bool marks tokens that no other token sees; causal: none sees later ones."""
        forbidden = later(x.shape[1], x.device) if causal else None
        for layer in self.layers:
            x = layer(x, is_pad=is_pad, forbidden=forbidden)
        return self.norm(x)


class Decoder(nn.Module):
    """Decoder layers and a last LayerNorm."""

    def __init__(self, dim: int, *, layers: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(dim, heads=heads, hidden=hidden, dropout=dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        x: torch.Tensor,
        memory: torch.Tensor,
        *,
        is_pad: torch.Tensor | None = None,
        causal: bool = False,
    ) -> torch.Tensor:
        """Tokens [B, Q, D] over memory [B, K, D]; is_pad [B, Q] and causal are of the self-attention."""
        forbidden = later(x.shape[1], x.device) if causal else None
        for layer in self.layers:
            x = layer(x, memory, is_pad=is_pad, forbidden=forbidden)
        return self.norm(x)


class QueryDecoder(nn.Module):
    """Learned queries, N(0, 1) at the start, read Q vectors from a memory of any length.

    Args:
        queries: Q.
        out_dim: width of what is read.
        dim, layers, heads, hidden, dropout: of the decoder.
        memory_dim: width of the memory where it must be projected to `dim` first; None: it has that width.
        causal: a query does not see later ones.
    """

    def __init__(
        self,
        *,
        queries: int,
        out_dim: int,
        dim: int,
        layers: int,
        heads: int,
        hidden: int,
        dropout: float = 0.1,
        memory_dim: int | None = None,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.read = nn.Identity() if memory_dim is None else nn.Linear(memory_dim, dim)
        self.queries = nn.Parameter(torch.randn(queries, dim))
        self.decoder = Decoder(dim, layers=layers, heads=heads, hidden=hidden, dropout=dropout)
        self.head = nn.Linear(dim, out_dim)

    def forward(self, memory: torch.Tensor, is_pad: torch.Tensor | None = None) -> torch.Tensor:
        """[B, Q, out_dim] of memory [B, K, ...]; is_pad [B, Q] bool marks queries that no other query sees."""
        queries = self.queries.expand(len(memory), -1, -1)
        return self.head(self.decoder(queries, self.read(memory), is_pad=is_pad, causal=self.causal))


def later(length: int, device: torch.device) -> torch.Tensor:
    """[L, L] bool, true where the column comes after the row."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


@lru_cache(maxsize=16)
def sequence_positions(dim: int, length: int) -> torch.Tensor:
    """Fixed position codes [L, D], sine and cosine interleaved (arXiv 1706.03762, section 3.5)."""
    if dim % 2:
        raise ValueError(f"sine-cosine positions need an even width, got {dim}")
    return _interleaved(torch.arange(length, dtype=torch.float64, device="cpu"), dim).float()


@lru_cache(maxsize=16)
def map_positions(dim: int, height: int, width: int) -> torch.Tensor:
    """Fixed position codes [height * width, D] of a feature map, row by row, as in DETR and ACT.

    Half the features tell the row, half the column. Positions are counted from 1 and scaled to end at 2 pi: maps of all
    sizes share a range; `worldmodel.nn.transformer.sincos_positions` counts cells instead.
    """
    if dim % 4:
        raise ValueError(
            f"sine-cosine positions in the plane need a width that is a multiple of 4, got {dim}"
        )
    counted = (torch.arange(1, n + 1, dtype=torch.float64, device="cpu") for n in (height, width))
    rows, columns = torch.meshgrid(*[c / (c[-1] + 1e-6) * 2 * math.pi for c in counted], indexing="ij")
    return torch.cat([_interleaved(axis.flatten(), dim // 2) for axis in (rows, columns)], dim=1).float()


def _interleaved(positions: torch.Tensor, dim: int) -> torch.Tensor:
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
    phases = positions.unsqueeze(1) * frequencies
    return torch.stack([phases.sin(), phases.cos()], dim=-1).flatten(1)
