"""The encoder: OpenPCDet's names and sizes, stage shapes, alignment, degenerate clouds."""

import pytest
import torch
from torch import nn

from lidar.batch import VoxelBatch
from lidar.encoder import SparseEncoder, bev_cells, small_encoder, voxel_backbone_8x
from lidar.grid import VoxelGrid
from lidar.sparse import key_coordinates, spconv_backend

KITTI = VoxelGrid(point_range=(0, -40, -3, 70.4, 40, 1), voxel_size=(0.05, 0.05, 0.1))
SMALL = VoxelGrid(point_range=(0, -12.8, -3, 25.6, 12.8, 1), voxel_size=(0.2, 0.2, 0.2))


def random_voxels(grid: VoxelGrid, *, count: int = 3000, batch_size: int = 2, seed: int = 0) -> VoxelBatch:
    generator = torch.Generator().manual_seed(seed)
    z, y, x = grid.shape
    keys = torch.randint(batch_size * z * y * x, (count,), generator=generator).unique()
    return VoxelBatch(
        features=torch.randn(len(keys), 4, generator=generator),
        coordinates=key_coordinates(keys, grid.shape),
        batch_size=batch_size,
    )


def without_samples(voxels: VoxelBatch, *samples: int) -> VoxelBatch:
    keep = ~torch.isin(voxels.coordinates[:, 0], torch.tensor(samples))
    return VoxelBatch(
        features=voxels.features[keep],
        coordinates=voxels.coordinates[keep],
        batch_size=voxels.batch_size,
    )


def expected_names() -> set[str]:
    blocks = ["conv_input", "conv1.0", *(f"conv{n}.{i}" for n in (2, 3, 4) for i in range(3)), "conv_out"]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{b}.0.weight" for b in blocks} | {f"{b}.1.{entry}" for b in blocks for entry in norm}


def test_openpcdet_parameters_and_names():
    encoder = voxel_backbone_8x(grid=KITTI)
    assert sum(p.numel() for p in encoder.parameters()) == 711_872
    state = encoder.state_dict()
    assert len(state) == 72
    assert set(state) == expected_names()
    assert state["conv_input.0.weight"].shape == (16, 3, 3, 3, 4)
    assert state["conv_out.0.weight"].shape == (128, 3, 1, 1, 64)
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm1d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}


def test_small_default():
    encoder = small_encoder(grid=SMALL)
    assert sum(p.numel() for p in encoder.parameters()) == 92_448
    assert (encoder.stride, encoder.bev_channels, encoder.bev_shape) == (4, 64, (32, 32))
    assert [name for name, _ in encoder.named_children()] == [
        "conv_input",
        "conv1",
        "conv2",
        "conv3",
        "conv_out",
    ]
    assert encoder(random_voxels(SMALL)).shape == (2, 64, 32, 32)


def test_kitti_stage_shapes():
    encoder = voxel_backbone_8x(grid=KITTI)
    voxels = random_voxels(KITTI, count=300)
    shapes = [out.spatial_shape for out in encoder.stage_outputs(voxels)]
    assert shapes == [(41, 1600, 1408), (21, 800, 704), (11, 400, 352), (5, 200, 176), (2, 200, 176)]
    assert encoder(voxels).shape == (2, 256, 200, 176)
    assert (encoder.stride, encoder.bev_channels, encoder.bev_shape) == (8, 256, (200, 176))


@pytest.mark.parametrize("seed", range(5))
def test_every_voxel_has_an_active_bev_cell(seed):
    encoder = small_encoder(grid=SMALL)
    voxels = random_voxels(SMALL, count=50, seed=seed)
    cells = bev_cells(voxels.coordinates, stride=encoder.stride, bev_shape=encoder.bev_shape, batch_size=2)
    sample, _, y, x = voxels.coordinates.unbind(1)
    assert cells[sample, y // 4, x // 4].all()
    assert cells.sum() == len({tuple(row) for row in torch.stack([sample, y // 4, x // 4], 1).tolist()})
    out_sample, _, out_y, out_x = encoder.encode(voxels).coordinates.unbind(1)
    active = torch.zeros_like(cells)
    active[out_sample, out_y, out_x] = True
    assert (active | ~cells).all()


def test_channel_order_is_the_detectors_reshape():
    encoder = small_encoder(grid=SMALL).eval()
    voxels = random_voxels(SMALL)
    dense = encoder.encode(voxels).dense()
    assert torch.equal(encoder(voxels), dense.reshape(2, 64, 32, 32))


@pytest.mark.parametrize("empty", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("training", [True, False])
def test_empty_samples_are_finite(empty, training):
    encoder = small_encoder(grid=SMALL).train(training)
    bev = encoder(without_samples(random_voxels(SMALL), *empty))
    assert bev.isfinite().all()
    assert not bev[list(empty)].any()
    bev.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_one_voxel_is_finite(training):
    encoder = small_encoder(grid=SMALL).train(training)
    voxels = random_voxels(SMALL, count=1)
    bev = encoder(voxels)
    assert bev.isfinite().all()
    bev.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())
    assert all(b.isfinite().all() for b in encoder.buffers())


def test_tables_are_shared_between_two_networks():
    voxels = random_voxels(SMALL)
    first, second = small_encoder(grid=SMALL).eval(), small_encoder(grid=SMALL).eval()
    tables: dict = {}
    first(voxels, tables=tables)
    before = dict(tables)
    assert torch.equal(second(voxels, tables=tables), second(voxels))
    assert set(tables) == {"subm1", "spconv2", "subm2", "spconv3", "subm3", "spconv_down2"}
    assert all(tables[key] is before[key] for key in before)


def test_norm_factory_is_used():
    encoder = small_encoder(grid=SMALL, norm=lambda width: nn.GroupNorm(2, width))
    assert not any(isinstance(m, nn.BatchNorm1d) for m in encoder.modules())
    assert encoder(random_voxels(SMALL)).isfinite().all()


def test_shallow_grid_is_refused():
    # Z + 1 = 17 -> 9 -> 5 -> 2 -> 0.
    shallow = VoxelGrid(point_range=(0, -40, -3, 70.4, 40, -1.4), voxel_size=(0.05, 0.05, 0.1))
    with pytest.raises(ValueError, match=r"\(16, 1600, 1408\).*too small.*more cells along z"):
        voxel_backbone_8x(grid=shallow)


@pytest.mark.parametrize("widths", [(16,), (16, 32), (16, 0, 32), ()])
def test_wrong_widths_are_refused(widths):
    with pytest.raises(ValueError, match="widths"):
        SparseEncoder(in_channels=4, grid=SMALL, widths=widths)


def test_unsorted_voxels_are_refused():
    voxels = random_voxels(SMALL)
    flipped = VoxelBatch(
        features=voxels.features.flip(0), coordinates=voxels.coordinates.flip(0), batch_size=2
    )
    with pytest.raises(ValueError, match="sorted"):
        small_encoder(grid=SMALL)(flipped)


@pytest.mark.skipif(not spconv_backend.available(), reason="spconv is not installed")
def test_backends_agree_on_the_whole_network():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        voxels = random_voxels(SMALL)
        ours, theirs = (small_encoder(grid=SMALL, backend=name) for name in ("torch", "spconv"))
        theirs.load_state_dict(ours.state_dict())
        outputs = [encoder(voxels) for encoder in (ours, theirs)]
        torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
        for out in outputs:
            out.square().mean().backward()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert (a.grad - b.grad).norm() <= 1e-4 * b.grad.norm() + 1e-9
    finally:
        torch.set_num_threads(threads)
