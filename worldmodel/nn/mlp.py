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


def as_unit_range(x: torch.Tensor) -> torch.Tensor:
    """Images as floats: uint8 is divided by 255, the rest is left as it is."""
    return x.float() / 255.0 if x.dtype == torch.uint8 else x
