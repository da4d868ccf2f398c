"""Active sites: which cells of a grid hold a feature. Sorted linear keys, one integer per site."""

from dataclasses import dataclass

import torch

Shape = tuple[int, int, int]


def linear_keys(coordinates: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Linear keys [N] int64 of the coordinates [N, 4] (sample, z, y, x) in a grid of `shape` (z, y, x)."""
    depth, height, width = shape
    sample, z, y, x = coordinates.unbind(1)
    return ((sample * depth + z) * height + y) * width + x


def key_coordinates(keys: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Coordinates [N, 4] int64 (sample, z, y, x) of linear keys: the inverse of `linear_keys`."""
    return torch.stack(split_keys(keys, shape), dim=1)


def split_keys(
    keys: torch.Tensor, shape: Shape
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sample, z, y, x of linear keys, each [N] int64."""
    depth, height, width = shape
    row = keys.div(width, rounding_mode="floor")
    plane = row.div(height, rounding_mode="floor")
    sample = plane.div(depth, rounding_mode="floor")
    return sample, plane - sample * depth, row - plane * height, keys - row * width


@dataclass(frozen=True, kw_only=True)
class Sites:
    """The active sites of a sparse tensor.

    Attributes:
        keys: [N] int64 linear keys, strictly increasing, so that rows lie in (sample, z, y, x) order.
        shape: cells along z, y, x.
        batch_size: number of samples, empty ones included.
    """

    keys: torch.Tensor
    shape: Shape
    batch_size: int

    @classmethod
    def from_coordinates(cls, coordinates: torch.Tensor, *, shape: Shape, batch_size: int) -> "Sites":
        """Sites at the coordinates [N, 4] int64 (sample, z, y, x), sorted and without repeats.

        Raises:
            ValueError: if the coordinates have another shape or type, leave the grid, or are not sorted.
        """
        if coordinates.ndim != 2 or coordinates.shape[1] != 4 or coordinates.dtype != torch.int64:
            raise ValueError(
                f"coordinates must be int64 [N, 4] (sample, z, y, x), got {coordinates.dtype} "
                f"{list(coordinates.shape)}"
            )
        keys = linear_keys(coordinates, shape)
        if len(keys):
            low, high = coordinates.amin(0), coordinates.amax(0)
            limit = coordinates.new_tensor((batch_size, *shape))
            if bool(((low < 0) | (high >= limit)).any()):
                raise ValueError(
                    f"coordinates span {low.tolist()} to {high.tolist()} and leave the grid of "
                    f"{batch_size} samples x {shape} (z, y, x): crop the points to the grid's range first"
                )
            if not bool((keys[1:] > keys[:-1]).all()):
                raise ValueError(
                    "coordinates must be sorted by (sample, z, y, x) and hold no cell twice: "
                    "lidar.voxels.voxelize returns them so"
                )
        return cls(keys=keys, shape=shape, batch_size=batch_size)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def coordinates(self) -> torch.Tensor:
        """[N, 4] int64: sample, z, y, x."""
        return key_coordinates(self.keys, self.shape)

    def same_as(self, other: "Sites") -> bool:
        """Whether both hold the same cells of the same grid."""
        return (
            self.shape == other.shape
            and self.batch_size == other.batch_size
            and (self.keys is other.keys or torch.equal(self.keys, other.keys))
        )
