"""What the sparse tests share: random sites and the dense reference."""

import torch
from torch.nn import functional as F

from lidar.sparse import Shape, Sites, SparseTensor, key_coordinates

# The four layer kinds of the encoder: name, submanifold, kernel, stride, padding.
LAYER_KINDS = [
    ("submanifold", True, (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    ("stride 2", False, (3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ("stride 2, no padding along z", False, (3, 3, 3), (2, 2, 2), (0, 1, 1)),
    ("conv_out", False, (3, 1, 1), (2, 1, 1), (0, 0, 0)),
]


def random_sites(
    *, shape: Shape = (9, 10, 11), batch_size: int = 2, density: float = 0.2, seed: int = 0
) -> Sites:
    """Each cell is active with the given probability."""
    generator = torch.Generator().manual_seed(seed)
    cells = batch_size * shape[0] * shape[1] * shape[2]
    keys = (torch.rand(cells, generator=generator) < density).nonzero().squeeze(1)
    return Sites.from_coordinates(key_coordinates(keys, shape), shape=shape, batch_size=batch_size)


def random_tensor(
    channels: int, *, dtype: torch.dtype = torch.float64, seed: int = 0, **sites
) -> SparseTensor:
    """Normal features on random sites."""
    where = random_sites(seed=seed, **sites)
    generator = torch.Generator().manual_seed(seed + 1)
    features = torch.randn(len(where), channels, generator=generator, dtype=torch.float64)
    return SparseTensor(features=features.to(dtype), sites=where)


def dense_conv(
    tensor: SparseTensor,
    weight: torch.Tensor,
    *,
    submanifold: bool,
    stride: Shape,
    padding: Shape,
    sites: Sites,
) -> torch.Tensor:
    """The reference: conv3d on the dense grid, read at the output sites. [N_out, C_out]"""
    out = F.conv3d(tensor.dense(), weight.permute(0, 4, 1, 2, 3), stride=stride, padding=padding)
    if not submanifold:
        window = weight.new_ones(1, 1, *weight.shape[1:4])
        occupied = tensor.with_features(torch.ones_like(tensor.features[:, :1])).dense()
        active = F.conv3d(occupied, window, stride=stride, padding=padding) > 0
        found = active[:, 0].flatten().nonzero().squeeze(1)
        assert torch.equal(found, sites.keys), "the active sites differ from the dense reference"
    sample, z, y, x = sites.coordinates.unbind(1)
    return out[sample, :, z, y, x]
