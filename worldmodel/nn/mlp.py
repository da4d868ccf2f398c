"""Multi-layer perceptrons with batch normalisation."""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from worldmodel.nn.batch_norm import SyncedBatchNorm1d


class MLPEncoder(nn.Module):
    """Flatten, then Linear-BN-ReLU per hidden width, then Linear and, if asked for, a BatchNorm without affine.

    The last BatchNorm centres the embedding: after a ReLU all cosines are near 1 and a cosine loss says little.

    Args:
        in_dim: numbers per observation.
        widths: of the layers, the last one being that of the embedding.
    """

    def __init__(self, in_dim: int, widths: Sequence[int], *, output_norm: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        dims = [in_dim, *widths]
        for a, b in itertools.pairwise(dims[:-1]):
            layers += [nn.Linear(a, b, bias=False), SyncedBatchNorm1d(b), nn.ReLU(inplace=True)]
        layers.append(nn.Linear(dims[-2], dims[-1]))
        if output_norm:
            layers.append(SyncedBatchNorm1d(dims[-1], affine=False))
        self.layers = nn.Sequential(*layers)
        self.embed_dim = dims[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Observations [N, ...] to embeddings [N, D]; uint8 is taken as 0..255 and scaled to 0..1."""
        return self.layers(as_unit_range(x).flatten(1))


def patches_of(x: torch.Tensor, *, channels: int, grid: tuple[int, int], patch: int) -> torch.Tensor:
    """Square patches [N h w, C p p], row by row, of images [N, C, h p, w p] scaled as by `as_unit_range`.

    Raises:
        ValueError: if the images have another shape.
    """
    (rows, columns), p = grid, patch
    if x.shape[1:] != (channels, rows * p, columns * p):
        raise ValueError(f"expected images [N, {channels}, {rows * p}, {columns * p}], got {tuple(x.shape)}")
    tiles = as_unit_range(x).reshape(-1, channels, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(-1, channels * p * p)


def patch_grid(image_size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Patches (down, across) of an image.

    Raises:
        ValueError: if they do not tile it.
    """
    if image_size[0] % patch or image_size[1] % patch:
        raise ValueError(f"patches of {patch} pixels do not tile images of {tuple(image_size)}")
    return image_size[0] // patch, image_size[1] // patch


def as_unit_range(x: torch.Tensor) -> torch.Tensor:
    """Images as floats: uint8 is divided by 255, the rest is left as it is."""
    return x.float() / 255.0 if x.dtype == torch.uint8 else x
