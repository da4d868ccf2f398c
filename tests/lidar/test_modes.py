"""Cell descriptors and neighbourhood means against plain loops."""

import pytest
import torch

from lidar.batch import VoxelBatch
from lidar.encoder import SparseEncoder
from lidar.grid import VoxelGrid
from lidar.modes import Neighbourhood, cell_descriptors
from worldmodel.masking.bev import BEVMasks


def small_case() -> tuple[SparseEncoder, VoxelBatch]:
    grid = VoxelGrid(point_range=(0, -4, -3, 8, 4, 1), voxel_size=(0.5, 0.5, 0.2))
    encoder = SparseEncoder(in_channels=4, grid=grid, widths=(4, 4, 4, 4))
    generator = torch.Generator().manual_seed(0)
    sites = [
        torch.randint(0, high, (150,), generator=generator)
        for high in (2, grid.shape[0], grid.shape[1], grid.shape[2])
    ]
    coordinates = torch.unique(torch.stack(sites, dim=1), dim=0)
    features = torch.rand(len(coordinates), 4, generator=generator)
    return encoder, VoxelBatch(features=features, coordinates=coordinates, batch_size=2)


def test_descriptors_count_voxels_by_height() -> None:
    encoder, voxels = small_case()
    levels, stride = 20, encoder.stride
    expected = torch.zeros(2, levels + 1, *encoder.bev_shape)
    brightness: dict[tuple[int, int, int], list[float]] = {}
    for (b, z, y, x), feature in zip(voxels.coordinates.tolist(), voxels.features, strict=True):
        expected[b, z, y // stride, x // stride] += 1
        brightness.setdefault((b, y // stride, x // stride), []).append(float(feature[3]))
    expected = expected.log1p()
    for (b, row, column), values in brightness.items():
        expected[b, levels, row, column] = sum(values) / len(values)
    torch.testing.assert_close(cell_descriptors(voxels, encoder), expected)


@pytest.mark.parametrize("window", [3, 5])
def test_means_over_visible_neighbours(window: int) -> None:
    generator = torch.Generator().manual_seed(1)
    occupied, visible = (torch.rand(2, 6, 7, generator=generator) < p for p in (0.5, 0.4))
    masks = BEVMasks(occupied=occupied, visible=visible, keys=torch.rand(2, 6, 7))
    values = torch.rand(2, 3, 6, 7, generator=generator)
    # What the masked cells hold must not reach their own context.
    spoilt = torch.where(masks.visible_occupied.unsqueeze(1), values, torch.nan)
    context, own = [], []
    for b in range(2):
        for y in range(6):
            for x in range(7):
                around = [
                    values[b, :, v, u]
                    for v in range(max(0, y - window // 2), min(6, y + window // 2 + 1))
                    for u in range(max(0, x - window // 2), min(7, x + window // 2 + 1))
                    if masks.visible_occupied[b, v, u]
                ]
                if masks.masked_occupied[b, y, x] and around:
                    context.append(torch.stack(around).mean(0))
                    own.append(values[b, :, y, x])
    near = Neighbourhood(masks=masks, window=window)
    torch.testing.assert_close(near.pooled(spoilt), torch.stack(context))
    torch.testing.assert_close(near.own(values), torch.stack(own))


@pytest.mark.parametrize("window", [1, 4])
def test_bad_window(window: int) -> None:
    cells = torch.ones(1, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="odd"):
        Neighbourhood(masks=BEVMasks(occupied=cells, visible=cells, keys=torch.rand(1, 2, 2)), window=window)
