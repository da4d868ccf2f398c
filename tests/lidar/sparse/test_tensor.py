"""Sites and sparse tensors."""

import pytest
import torch

from lidar.sparse import Sites, SparseTensor, key_coordinates, linear_keys
from tests.lidar.sparse.helpers import random_tensor


def test_keys_and_coordinates_are_inverse():
    shape = (3, 4, 5)
    keys = torch.arange(2 * 3 * 4 * 5)
    coordinates = key_coordinates(keys, shape)
    assert coordinates[-1].tolist() == [1, 2, 3, 4]
    assert torch.equal(linear_keys(coordinates, shape), keys)


def test_dense_and_bev():
    tensor = random_tensor(3, shape=(2, 4, 5))
    dense = tensor.dense()
    for row, (sample, z, y, x) in zip(tensor.features, tensor.coordinates.tolist(), strict=True):
        assert torch.equal(dense[sample, :, z, y, x], row)
    assert int((dense != 0).any(dim=1).sum()) == len(tensor.sites)
    # Channel c * Z + z is the reshape that detectors do.
    assert torch.equal(tensor.bev(), dense.reshape(2, 3 * 2, 4, 5))


def test_bev_gradient():
    tensor = random_tensor(3, shape=(2, 4, 5))
    features = tensor.features.requires_grad_()
    upstream = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    (ours,) = torch.autograd.grad(tensor.bev(), features, upstream)
    (reference,) = torch.autograd.grad(tensor.dense().reshape(2, 6, 4, 5), features, upstream)
    assert torch.equal(ours, reference)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 0, 0, 1], [0, 0, 0, 0]], "sorted"),
        ([[0, 0, 0, 1], [0, 0, 0, 1]], "twice"),
        ([[0, 0, 0, 9]], "leave the grid"),
        ([[0, -1, 0, 0]], "leave the grid"),
        ([[2, 0, 0, 0]], "leave the grid"),
        ([[0, 0, 0]], "int64"),
    ],
)
def test_wrong_coordinates_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        Sites.from_coordinates(torch.tensor(rows), shape=(2, 3, 4), batch_size=2)


def test_features_must_match_the_sites():
    sites = random_tensor(3).sites
    with pytest.raises(ValueError, match="one row per site"):
        SparseTensor(features=torch.zeros(1, 3), sites=sites)
