"""The sparse tensor: features on active sites, with the tables its layers share."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lidar.sparse.sites import Shape, Sites


@dataclass(frozen=True, kw_only=True)
class SparseTensor:
    """Features on the active sites of a batch of grids.

    Attributes:
        features: [N, C], one row per site.
        sites: where the rows lie.
        tables: cache of pair tables by index key. Tensors made from one another share it, so layers with the
            same index key build their table once; hand the same dictionary to a second pass over the same
            sites (another network, the next epoch) and nothing is built at all.
    """

    features: torch.Tensor
    sites: Sites
    tables: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.sites):
            raise ValueError(
                f"features must be [N, C] with one row per site: got {list(self.features.shape)} for "
                f"{len(self.sites)} sites"
            )

    @property
    def spatial_shape(self) -> Shape:
        """Cells along z, y, x."""
        return self.sites.shape

    @property
    def batch_size(self) -> int:
        """Number of samples, empty ones included."""
        return self.sites.batch_size

    @property
    def coordinates(self) -> torch.Tensor:
        """[N, 4] int64: sample, z, y, x."""
        return self.sites.coordinates

    def with_features(self, features: torch.Tensor) -> "SparseTensor":
        """The same sites with other features [N, C']."""
        return replace(self, features=features)

    def dense(self) -> torch.Tensor:
        """[B, C, Z, Y, X], zero where no site is active."""
        (depth, height, width), channels = self.spatial_shape, self.features.shape[1]
        flat = self.features.new_zeros(self.batch_size * depth * height * width, channels)
        grid = flat.index_copy(0, self.sites.keys, self.features)
        return grid.view(self.batch_size, depth, height, width, channels).permute(0, 4, 1, 2, 3)

    def bev(self) -> torch.Tensor:
        """Bird's-eye view [B, C * Z, Y, X], channel c * Z + z as in OpenPCDet; channels last in memory."""
        (depth, height, width), channels = self.spatial_shape, self.features.shape[1]
        sample, z, y, x = self.coordinates.unbind(1)
        flat = self.features.new_zeros(self.batch_size * height * width, channels, depth)
        cell = (sample * height + y) * width + x
        flat[cell, :, z] = self.features
        return flat.view(self.batch_size, height, width, channels * depth).permute(0, 3, 1, 2)
