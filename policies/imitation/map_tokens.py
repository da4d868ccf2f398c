"""Maps of features to tokens: what pictures and LiDAR sweeps have in common."""

from typing import Self

import torch
from torch import nn

from worldmodel.nn.decoder import map_positions


class MapTokens(nn.Module):
    """A backbone's map through a 1x1 convolution, with fixed positions, as a row of tokens. Kinds give `feature_map`.

    Args:
        backbone: what makes the map; `project` is the convolution.
        channels: C of its map.
        dim: D of the tokens.
        frozen: keep the backbone as it is: no gradient, and evaluation mode for ever. For pretrained encoders.
    """

    def __init__(self, *, backbone: nn.Module, channels: int, dim: int, frozen: bool = False) -> None:
        super().__init__()
        self.backbone, self.frozen = backbone, frozen
        self.project = nn.Conv2d(channels, dim, 1)
        if frozen:
            self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def feature_map(self, x: torch.Tensor) -> torch.Tensor:
        """The backbone's map [N, C, h, w]."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the sensor saw [N, ...] to tokens [N, h w, D], row by row of the map."""
        maps = self.project(self.feature_map(x))
        positions = map_positions(maps.shape[1], *maps.shape[2:]).to(maps)
        return maps.flatten(2).transpose(1, 2) + positions
