"""A small vision transformer (arXiv 2010.11929) whose tokens can be dropped and whose attention can be ordered."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from worldmodel.nn.mlp import as_unit_range
from worldmodel.nn.transformer import Block, Packed, block_causal, init_weights, sincos_positions


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Output of a vision transformer.

    Attributes:
        cls: [N, D].
        patches: [N, K, D], zero in the padding; all P patches row by row if none was dropped.
        packed: which patch of the P each of the K is.
        hidden: after each block, before any norm: [N, 1 + K, D], [CLS] first.
    """

    cls: torch.Tensor
    patches: torch.Tensor
    packed: Packed
    hidden: tuple[torch.Tensor, ...]


class ViT(nn.Module):
    """Patches and a [CLS] token through pre-norm blocks. Parameters carry the names of common implementations.

    Args:
        image_size, patch_size: (height, width) in pixels; patches must tile the image.
        in_channels: of the image, or of a bird's-eye-view map.
        dim, depth, heads, mlp_ratio: of the transformer; dim is the width of the embedding.
        positions: of the patches, learned or fixed sine-cosine.
        pool: the embedding is the output at [CLS] or the mean of the patches.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        patch_size: tuple[int, int],
        in_channels: int = 3,
        dim: int = 192,
        depth: int = 6,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        positions: Literal["learned", "sincos"] = "sincos",
        pool: Literal["cls", "mean"] = "cls",
    ) -> None:
        super().__init__()
        rest = [side % patch for side, patch in zip(image_size, patch_size, strict=True)]
        if any(rest):
            raise ValueError(f"patches of {tuple(patch_size)} do not tile images of {tuple(image_size)}")
        if pool not in ("cls", "mean"):
            raise ValueError(f"pool is cls or mean, got {pool!r}")
        if positions not in ("learned", "sincos"):
            raise ValueError(f"positions are learned or sincos, got {positions!r}")
        self.image_size, self.in_channels = tuple(image_size), in_channels
        self.grid = (image_size[0] // patch_size[0], image_size[1] // patch_size[1])
        self.embed_dim, self.depth, self.pool = dim, depth, pool
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)})
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        if positions == "learned":
            start = nn.init.trunc_normal_(torch.empty(1, self.grid[0] * self.grid[1], dim), std=0.02)
            self.pos_embed = nn.Parameter(start)
        else:
            height, width = self.grid
            self.register_buffer("pos_embed", sincos_positions(dim, height=height, width=width).unsqueeze(0))
        self.blocks = nn.ModuleList(Block(dim, heads=heads, mlp_ratio=mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        init_weights(self, depth=depth)

    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] to patch tokens [N, P, D] with positions; uint8 is scaled to 0..1.

        Raises:
            ValueError: if the images have another shape than the encoder was built for.
        """
        if x.shape[1:] != (self.in_channels, *self.image_size):
            raise ValueError(
                f"expected images [N, {self.in_channels}, {self.image_size[0]}, {self.image_size[1]}], got "
                f"{tuple(x.shape)}"
            )
        return self.patch_embed["proj"](as_unit_range(x)).flatten(2).transpose(1, 2) + self.pos_embed

    def tokens(self, x: torch.Tensor, rank: torch.Tensor | None = None) -> Tokens:
        """Output tokens, after the last norm.

        Args:
            x: [N, C, H, W].
            rank: [N, P] int64. Patches below 0 are dropped: their content reaches nothing. The others see those of
                the same or a lower rank, one-way. [CLS] counts as rank 0. Without, all see all.
        """
        patches = self.embed_patches(x)
        if rank is None:
            packed = Packed.of(patches.new_ones(patches.shape[:2], dtype=torch.bool))
            allowed = None
        else:
            if rank.shape != patches.shape[:2]:
                raise ValueError(
                    f"ranks must be [N, P] = {tuple(patches.shape[:2])}, got {tuple(rank.shape)}"
                )
            packed = Packed.of(rank >= 0)
            patches = packed.take(patches)
            kept = torch.where(packed.valid, packed.take(rank), -1)
            allowed = block_causal(torch.cat([kept.new_zeros(len(kept), 1), kept], dim=1))
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1).to(patches.dtype), patches], dim=1)
        hidden = []
        for block in self.blocks:
            tokens = block(tokens, allowed)
            hidden.append(tokens)
        tokens = self.norm(tokens)
        patches = torch.where(packed.valid.unsqueeze(-1), tokens[:, 1:], 0.0)
        return Tokens(cls=tokens[:, 0], patches=patches, packed=packed, hidden=tuple(hidden))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] to embeddings [N, D]."""
        tokens = self.tokens(x)
        return tokens.cls if self.pool == "cls" else tokens.patches.mean(1)
