"""The BEV backbone: sizes and names, scales, what is refused."""

import pytest
import torch
from torch import nn

from lidar.detection.bev_backbone import BEVBackbone, batch_norm_2d
from worldmodel.nn.batch_norm import SyncedBatchNorm2d


def test_openpcdet_names_and_normalisation():
    backbone = BEVBackbone(256)
    state = backbone.state_dict()
    assert state["blocks.0.1.weight"].shape == (128, 256, 3, 3)
    assert state["blocks.1.16.weight"].shape == (256, 256, 3, 3)
    assert state["deblocks.1.0.weight"].shape == (256, 256, 2, 2)
    assert len(state) == 2 * (6 + 1) * 6
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}
    assert not any(m.bias is not None for m in backbone.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (16, 8)),
        ({"up_strides": (2, 4)}, (32, 16)),
        ({"strides": (2, 2), "up_strides": (1, 2)}, (8, 4)),
        ({"layers": (1,), "strides": (1,), "widths": (8,), "up_strides": (2,), "up_widths": (6,)}, (32, 16)),
    ],
)
def test_scales(options, shape):
    sizes = {"layers": (1, 0), "widths": (8, 12), "up_widths": (4, 6), **options}
    backbone = BEVBackbone(5, **sizes)
    assert backbone.map_shape((16, 8)) == shape
    assert backbone(torch.randn(2, 5, 16, 8)).shape == (2, backbone.out_channels, *shape)


def test_each_output_cell_lies_over_its_input_cell():
    backbone = BEVBackbone(3, layers=(0, 0), widths=(4, 4), up_widths=(4, 4)).eval()
    for layer in backbone.modules():  # positive weights, so that no ReLU is closed
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.ones_(layer.weight)
    bev = torch.ones(1, 3, 16, 16, requires_grad=True)
    backbone(bev)[0, :, 6, 9].sum().backward()
    rows, columns = bev.grad[0].abs().sum(0).nonzero().unbind(1)
    # 3x3 of the first block around the 3x3 of the second, which is centred on (6, 8).
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 8, 6, 10)


def test_norm_over_all_ranks_where_asked():
    backbone = BEVBackbone(3, norm=batch_norm_2d(synced=True))
    assert sum(isinstance(m, SyncedBatchNorm2d) for m in backbone.modules()) == 14


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="one number per block"):
        BEVBackbone(3, layers=(5,))
    with pytest.raises(ValueError, match="different scales"):
        BEVBackbone(3, up_strides=(1, 1))
    with pytest.raises(ValueError, match=r"25 x 16 cells cannot be made 2 times coarser.*multiples of 2"):
        BEVBackbone(3)(torch.zeros(1, 3, 25, 16))
