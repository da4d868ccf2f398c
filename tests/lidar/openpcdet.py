"""OpenPCDet states and its 3-D backbone from the layer tables: references for exchanging weights."""

import torch
from torch import nn

from lidar.batch import VoxelBatch

# VoxelBackBone8x (OpenPCDet, spconv_backbone.py): layer, channels in and out, kernel (z, y, x).
LAYERS = (
    ("conv_input", 4, 16, (3, 3, 3)),
    ("conv1.0", 16, 16, (3, 3, 3)),
    ("conv2.0", 16, 32, (3, 3, 3)),
    ("conv2.1", 32, 32, (3, 3, 3)),
    ("conv2.2", 32, 32, (3, 3, 3)),
    ("conv3.0", 32, 64, (3, 3, 3)),
    ("conv3.1", 64, 64, (3, 3, 3)),
    ("conv3.2", 64, 64, (3, 3, 3)),
    ("conv4.0", 64, 64, (3, 3, 3)),
    ("conv4.1", 64, 64, (3, 3, 3)),
    ("conv4.2", 64, 64, (3, 3, 3)),
    ("conv_out", 64, 128, (3, 1, 1)),
)
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def backbone_names(prefix="backbone_3d."):
    return [
        f"{prefix}{layer}.{name}"
        for layer, *_ in LAYERS
        for name in ("0.weight", *(f"1.{name}" for name in BATCH_NORM))
    ]


def batch_norm(name, width):
    state = {f"{name}.{entry}": torch.rand(width) + 0.5 for entry in BATCH_NORM[:4]}
    return {**state, f"{name}.num_batches_tracked": torch.tensor(7)}


def backbone_state(*, prefix="backbone_3d.", layout="spconv2", in_channels=4):
    """A VoxelBackBone8x state from the layer table, random."""
    state = {}
    for layer, c_in, c_out, kernel in LAYERS:
        c_in = in_channels if layer == "conv_input" else c_in
        shape = (c_out, *kernel, c_in) if layout == "spconv2" else (*kernel, c_in, c_out)
        state[f"{prefix}{layer}.0.weight"] = torch.randn(shape) * 0.1
        state |= batch_norm(f"{prefix}{layer}.1", c_out)
    return state


def second_state(**options):
    """SECOND of OpenPCDet on KITTI: 162 tensors and global_step."""
    state = {"global_step": torch.zeros(1, dtype=torch.int64), **backbone_state(**options)}
    for block, (c_in, width, up, kernel) in enumerate(((256, 128, 256, 1), (128, 256, 256, 2))):
        # ZeroPad2d is child 0; then six times convolution, BatchNorm, ReLU.
        for layer in range(6):
            first = c_in if layer == 0 else width
            state[f"backbone_2d.blocks.{block}.{1 + 3 * layer}.weight"] = torch.zeros(width, first, 3, 3)
            state |= batch_norm(f"backbone_2d.blocks.{block}.{2 + 3 * layer}", width)
        state[f"backbone_2d.deblocks.{block}.0.weight"] = torch.zeros(width, up, kernel, kernel)
        state |= batch_norm(f"backbone_2d.deblocks.{block}.1", up)
    for head, width in (("cls", 18), ("box", 42), ("dir_cls", 12)):
        state[f"dense_head.conv_{head}.weight"] = torch.zeros(width, 512, 1, 1)
        state[f"dense_head.conv_{head}.bias"] = torch.zeros(width)
    return state


def spconv_backbone(spatial_shape):
    """VoxelBackBone8x from spconv's own modules and the layer table; on the CPU spconv needs its Native algorithm."""
    import spconv.pytorch as spconv

    geometry = {"conv2.0": 1, "conv3.0": 1, "conv4.0": (0, 1, 1)}  # strided layers and their padding
    stages: dict[str, list] = {}
    for layer, c_in, c_out, kernel in LAYERS:
        stage = layer.split(".")[0]
        common = {"bias": False, "algo": spconv.ConvAlgo.Native}
        if layer == "conv_out":
            conv = spconv.SparseConv3d(
                c_in, c_out, kernel, stride=(2, 1, 1), indice_key="spconv_down2", **common
            )
        elif layer in geometry:
            conv = spconv.SparseConv3d(
                c_in, c_out, kernel, stride=2, padding=geometry[layer], indice_key=f"sp{stage}", **common
            )
        else:
            key = "subm1" if stage == "conv_input" else f"subm{stage[-1]}"
            conv = spconv.SubMConv3d(c_in, c_out, kernel, padding=1, indice_key=key, **common)
        stages.setdefault(stage, []).append((conv, nn.BatchNorm1d(c_out, eps=1e-3, momentum=0.01), nn.ReLU()))
    model = nn.Module()
    for stage, blocks in stages.items():
        built = [spconv.SparseSequential(*block) for block in blocks]
        # The first and the last stage are a bare block, the others a sequence of blocks.
        model.add_module(
            stage, built[0] if stage in ("conv_input", "conv_out") else spconv.SparseSequential(*built)
        )

    def run(voxels: VoxelBatch) -> torch.Tensor:
        tensor = spconv.SparseConvTensor(
            voxels.features, voxels.coordinates.int(), list(spatial_shape), voxels.batch_size
        )
        for stage in stages:
            tensor = model.get_submodule(stage)(tensor)
        dense = tensor.dense()
        return dense.reshape(dense.shape[0], -1, *dense.shape[3:])  # a detector's HeightCompression

    return model, run
