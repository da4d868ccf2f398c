"""The residual variant of the encoder: size, shapes, a block against dense convolutions, both backends."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lidar.encoder import SparseEncoder, _ResidualBlock, voxel_res_backbone_8x
from lidar.grid import VoxelGrid
from lidar.interop import export_encoder, load_encoder
from lidar.sparse import spconv_backend
from tests.lidar.sparse.helpers import random_tensor
from tests.lidar.test_encoder import SMALL, random_voxels

NUSCENES = VoxelGrid(point_range=(-54, -54, -5, 54, 54, 3), voxel_size=(0.075, 0.075, 0.2))


def small(**options):
    return SparseEncoder(in_channels=4, grid=SMALL, widths=(4, 8, 8, 16), residual=True, **options)


def test_size_and_shapes():
    encoder = voxel_res_backbone_8x(grid=NUSCENES)
    # The layer table: an input layer, two blocks of two convolutions with bias per stage, three strided layers, an
    # output layer, and a scale and shift for each.
    convolutions = 27 * 5 * 16 + 3 * 128 * 128 + 27 * (16 * 32 + 32 * 64 + 64 * 128)
    blocks = sum(4 * (27 * width * width + width) for width in (16, 32, 64, 128))
    norms = 2 * (16 + 4 * 16 + 5 * (32 + 64 + 128) + 128)
    assert sum(p.numel() for p in encoder.parameters()) == convolutions + blocks + norms == 2_695_312
    assert len(encoder.state_dict()) == 142
    assert (encoder.stride, encoder.bev_channels, encoder.bev_shape) == (8, 256, (180, 180))


@torch.no_grad()
def test_a_block_by_dense_convolutions():
    block = _ResidualBlock(6, index_key="k", norm=nn.BatchNorm1d, backend="torch").double().eval()
    for norm in (block.bn1, block.bn2):
        norm.running_mean.normal_(generator=torch.Generator().manual_seed(0))
        norm.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    tensor = random_tensor(6)
    active = tensor.with_features(torch.ones_like(tensor.features[:, :1])).dense()

    def dense(x, conv, norm):
        x = F.conv3d(x, conv.weight.permute(0, 4, 1, 2, 3), conv.bias, padding=1)
        return (
            F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
            * active
        )

    inner = dense(tensor.dense(), block.conv1, block.bn1).relu()
    expected = (dense(inner, block.conv2, block.bn2) + tensor.dense()).relu()
    torch.testing.assert_close(block(tensor).dense(), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("count", [3000, 1, 0])
def test_gradients_are_finite_for_few_voxels(training, count):
    encoder = small().train(training)
    bev = encoder(random_voxels(SMALL, count=count))
    bev.square().sum().backward()
    assert bev.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_a_stage_shares_one_table():
    tables: dict = {}
    small()(random_voxels(SMALL), tables=tables)
    assert set(tables) == {"subm1", "spconv2", "subm2", "spconv3", "subm3", "spconv_down2"}


@pytest.mark.skipif(not spconv_backend.available(), reason="spconv is not installed")
@pytest.mark.parametrize("training", [True, False])
def test_backends_agree(training):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        voxels = random_voxels(SMALL)
        ours, theirs = (small(backend=name).train(training) for name in ("torch", "spconv"))
        theirs.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(voxels), theirs(voxels), atol=1e-5, rtol=1e-5)
    finally:
        torch.set_num_threads(threads)


def test_exchange(tmp_path):
    first, second = small(), small()
    export_encoder(first, tmp_path / "e.pth")
    assert load_encoder(second, tmp_path / "e.pth").loaded == len(first.state_dict())
    assert all(torch.equal(v, second.state_dict()[n]) for n, v in first.state_dict().items())
    with pytest.raises(ValueError, match="mmdetection3d builds a residual encoder in another order"):
        export_encoder(first, tmp_path / "m.pth", framework="mmdet3d")
