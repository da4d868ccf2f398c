"""Set abstraction: a feature for a position from the points in balls around it (PointNet++, Qi et al. 2017)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from lidar.detection.ball_query import Neighbours, ball_query
from lidar.detection.point_set import PointSet
from lidar.encoder import Norm
from worldmodel.nn.batch_norm import SyncedBatchNorm1d


@dataclass(frozen=True, kw_only=True)
class Ball:
    """One scale of a set abstraction.

    Attributes:
        radius: in metres.
        neighbours: points taken from the ball at most.
        widths: of the layers every neighbour goes through.
    """

    radius: float
    neighbours: int
    widths: tuple[int, ...]


class SetAbstraction(nn.Module):
    """Layers shared by all neighbours, then their maximum; scales are concatenated.

    A neighbour is described by its position relative to the centre and its features. Neighbours past the last are
    copies of the first; those of an empty ball are all zeros, and go through the layers as such. Parameter names and
    shapes are those of OpenPCDet's StackSAModuleMSG: mlps.SCALE.(3 * LAYER) is a 1x1 convolution without bias,
    the next child its normalisation.

    Args:
        in_channels: C of the features, 0 for positions alone.
        balls: the scales.
        norm: makes the normalisation of a layer from its width. The default is BatchNorm over the neighbours of all
            centres of all ranks, copies and zeros included, with torch's eps and momentum.

    Raises:
        ValueError: without scales or layers.
    """

    def __init__(self, in_channels: int, *, balls: Sequence[Ball], norm: Norm = SyncedBatchNorm1d) -> None:
        super().__init__()
        if not balls or not all(ball.widths for ball in balls):
            raise ValueError(f"a set abstraction needs balls with layers, got {[*balls]}")
        self.balls = tuple(balls)
        self.mlps = nn.ModuleList()
        for ball in balls:
            layers: list[nn.Module] = []
            for before, width in zip((3 + in_channels, *ball.widths[:-1]), ball.widths, strict=True):
                convolution = nn.Conv2d(before, width, 1, bias=False)
                nn.init.kaiming_normal_(convolution.weight)
                layers += [convolution, norm(width), nn.ReLU()]
            self.mlps.append(nn.Sequential(*layers))
        self.out_channels = sum(ball.widths[-1] for ball in balls)

    def forward(self, points: PointSet, features: torch.Tensor, centres: PointSet) -> torch.Tensor:
        """Features [M, out_channels] of the centres from the features [P, C] of the points."""
        found = ball_query(
            points,
            centres,
            radii=[ball.radius for ball in self.balls],
            counts=[ball.neighbours for ball in self.balls],
        )
        return torch.cat(
            [
                _pooled(layers, points, features, centres, neighbours)
                for layers, neighbours in zip(self.mlps, found, strict=True)
            ],
            dim=1,
        )


def _pooled(
    layers: nn.Module, points: PointSet, features: torch.Tensor, centres: PointSet, neighbours: Neighbours
) -> torch.Tensor:
    first, *others = layers.children()
    count = neighbours.rows.shape[1]
    x = _first_layer(first, points, features, centres, neighbours)
    for layer, after in zip(others, [*others[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            x = F.linear(x, layer.weight.flatten(1))
        elif after is None:
            # The last ReLU does not change which neighbour is greatest: after the maximum it has fewer numbers to do.
            x = F.relu(x.unflatten(0, (-1, count)).amax(1))
        elif isinstance(layer, nn.ReLU):
            x = F.relu_(x)
        else:
            x = layer(x)
    return x


def _first_layer(
    layer: nn.Module, points: PointSet, features: torch.Tensor, centres: PointSet, neighbours: Neighbours
) -> torch.Tensor:
    """The first, linear layer on (relative position, features) of each neighbour: [M * n, width].

    Features go through it once per point and are gathered afterwards, which is the same and a neighbour's width less
    to compute and to hold.
    """
    assert isinstance(layer, nn.Conv2d)
    weight = layer.weight.flatten(1)
    count = neighbours.rows.shape[1]
    # One more point stands for what is not there: its features are zeros, as its relative position is made below.
    rows = torch.where(neighbours.empty[:, None], len(points), neighbours.rows).flatten()
    xyz = torch.cat([points.xyz, points.xyz.new_zeros(1, 3)]).index_select(0, rows)
    relative = xyz.unflatten(0, (-1, count)) - centres.xyz[:, None]
    relative = relative.masked_fill_(neighbours.empty[:, None, None], 0).flatten(0, 1)
    x = F.linear(relative.to(features.dtype), weight[:, :3])
    if features.shape[1]:
        projected = F.linear(features, weight[:, 3:])
        projected = torch.cat([projected, projected.new_zeros(1, projected.shape[1])])
        x += projected.index_select(0, rows)
    return x
