"""Every layer kind against dense conv3d, forward and gradients, and the properties the training relies on."""

import pytest
import torch

from lidar.sparse import SparseConv3d, SparseTensor, SubMConv3d, submanifold
from tests.lidar.sparse.helpers import LAYER_KINDS, dense_conv, random_tensor

KINDS = pytest.mark.parametrize(
    ("submanifold", "kernel", "stride", "padding"),
    [kind[1:] for kind in LAYER_KINDS],
    ids=[kind[0] for kind in LAYER_KINDS],
)


def make_layer(submanifold, kernel, stride, padding, *, channels=(5, 7), dtype=torch.float64, **options):
    torch.manual_seed(3)
    if submanifold:
        layer = SubMConv3d(*channels, kernel, index_key="a", **options)
    else:
        layer = SparseConv3d(*channels, kernel, stride=stride, padding=padding, index_key="a", **options)
    return layer.to(dtype)


def forward_backward(layer, tensor: SparseTensor):
    """Output features and gradients of input and weight for one fixed output gradient."""
    features = tensor.features.clone().requires_grad_()
    out = layer(SparseTensor(features=features, sites=tensor.sites)).features
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    return out, *torch.autograd.grad(out, (features, layer.weight), upstream)


@KINDS
@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
def test_equals_dense_convolution(submanifold, kernel, stride, padding, density):
    layer = make_layer(submanifold, kernel, stride, padding)
    tensor = random_tensor(5, density=density)
    features = tensor.features.requires_grad_()
    out = layer(tensor)
    reference = dense_conv(
        tensor, layer.weight, submanifold=submanifold, stride=stride, padding=padding, sites=out.sites
    )
    upstream = torch.randn_like(reference)
    grads = torch.autograd.grad(out.features, (features, layer.weight), upstream)
    expected = torch.autograd.grad(reference, (features, layer.weight), upstream)
    assert (out.features - reference).abs().max() <= 1e-12
    for grad, correct in zip(grads, expected, strict=True):
        assert (grad - correct).abs().max() <= 1e-11


@KINDS
def test_gradcheck(submanifold, kernel, stride, padding):
    layer = make_layer(submanifold, kernel, stride, padding, channels=(2, 3))
    tensor = random_tensor(2, shape=(5, 4, 4), batch_size=1, density=0.3)

    def run(features, weight):
        layer.weight.data = weight.data
        return torch.func.functional_call(
            layer, {"weight": weight}, SparseTensor(features=features, sites=tensor.sites)
        ).features

    weight = layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(run, (tensor.features.requires_grad_(), weight))


@pytest.mark.parametrize("dense_cells", [0, 2**22])
@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 3, 3), (1, 3, 1), (3, 1, 3), (3, 3, 5), (5, 1, 1)])
def test_submanifold_kernels_by_table_and_by_bisection(monkeypatch, kernel, dense_cells):
    monkeypatch.setattr(submanifold, "DENSE_CELLS", dense_cells)
    layer = make_layer(True, kernel, 1, 0)
    tensor = random_tensor(5, density=0.4)
    reference = dense_conv(
        tensor,
        layer.weight,
        submanifold=True,
        stride=(1, 1, 1),
        padding=tuple(k // 2 for k in kernel),
        sites=tensor.sites,
    )
    assert (layer(tensor).features - reference).abs().max() <= 1e-12


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((2, 2, 2), (2, 2, 2), (0, 0, 0)), ((3, 3, 3), (1, 1, 1), (1, 1, 1)), ((3, 2, 5), (1, 2, 3), (2, 0, 1))],
)
def test_other_strided_geometries(kernel, stride, padding):
    layer = make_layer(False, kernel, stride, padding)
    tensor = random_tensor(5, density=0.2)
    features = tensor.features.requires_grad_()
    out = layer(tensor)
    reference = dense_conv(
        tensor, layer.weight, submanifold=False, stride=stride, padding=padding, sites=out.sites
    )
    assert (out.features - reference).abs().max() <= 1e-12
    upstream = torch.randn_like(reference)
    (grad,) = torch.autograd.grad(out.features, features, upstream)
    (correct,) = torch.autograd.grad(reference, features, upstream)
    assert (grad - correct).abs().max() <= 1e-11


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_gives_the_same_bits(submanifold, kernel, stride, padding, dtype):
    layer = make_layer(submanifold, kernel, stride, padding, channels=(16, 32), dtype=dtype)
    # More rows than one block of the table, so that blocks are exercised too.
    tensor = random_tensor(16, dtype=dtype, shape=(21, 48, 48), density=0.3)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(forward_backward(layer, tensor))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@KINDS
def test_bfloat16_under_autocast(submanifold, kernel, stride, padding):
    layer = make_layer(submanifold, kernel, stride, padding, channels=(16, 16), dtype=torch.float32)
    tensor = random_tensor(16, dtype=torch.float32)
    exact = forward_backward(layer, tensor)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(tensor).features
    assert out.dtype == torch.bfloat16
    rounded = forward_backward_autocast(layer, tensor)
    for value, correct in zip(rounded, exact, strict=True):
        assert (value.float() - correct).norm() <= 0.02 * correct.norm()
    assert rounded[1].dtype == rounded[2].dtype == torch.float32


def forward_backward_autocast(layer, tensor):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return forward_backward(layer, tensor)


@KINDS
def test_empty_batch_and_empty_sample(submanifold, kernel, stride, padding):
    layer = make_layer(submanifold, kernel, stride, padding)
    full = random_tensor(5)
    lone = full.sites.coordinates[:, 0] == 1
    for keep in (torch.zeros_like(lone), lone):
        sites = type(full.sites)(keys=full.sites.keys[keep], shape=full.sites.shape, batch_size=2)
        features = full.features[keep].clone().requires_grad_()
        out = layer(SparseTensor(features=features, sites=sites))
        dense = out.dense()
        assert dense.shape[0] == 2
        assert dense.isfinite().all()
        assert not dense[0].any()
        for grad in torch.autograd.grad(dense.sum(), (features, layer.weight)):
            assert grad.isfinite().all()


def test_bias_is_added_to_active_sites():
    layer = make_layer(True, 3, 1, 1, bias=True)
    tensor = random_tensor(5)
    out = layer(tensor).features
    bias, layer.bias = layer.bias, None
    assert torch.equal(out, layer(tensor).features + bias)


def test_layers_of_one_key_and_passes_share_the_table():
    first, second = (SubMConv3d(4, 4, index_key="subm1").double() for _ in range(2))
    tensor = random_tensor(4)
    out = second(first(tensor))
    assert list(out.tables) == ["subm1"]
    table = out.tables["subm1"]
    again = SparseTensor(features=tensor.features, sites=random_tensor(4).sites, tables=out.tables)
    first(again)
    assert again.tables["subm1"] is table


def test_a_table_of_other_sites_is_refused():
    layer = SubMConv3d(4, 4, index_key="subm1").double()
    tables = layer(random_tensor(4)).tables
    other = random_tensor(4, seed=5)
    with pytest.raises(ValueError, match="empty table cache"):
        layer(SparseTensor(features=other.features, sites=other.sites, tables=tables))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="odd kernel"):
        SubMConv3d(4, 4, 2, index_key="a")(random_tensor(4, dtype=torch.float32))
    with pytest.raises(ValueError, match="input channels"):
        SubMConv3d(5, 4, index_key="a")(random_tensor(4, dtype=torch.float32))
    with pytest.raises(ValueError, match="backend must be"):
        SubMConv3d(4, 4, index_key="a", backend="minkowski")
    with pytest.raises(ValueError, match="kernel_size"):
        SparseConv3d(4, 4, (3, 3), index_key="a")
    with pytest.raises(ValueError, match="channels must be positive"):
        SparseConv3d(0, 4, index_key="a")


def test_an_axis_that_shrinks_to_nothing_is_an_error():
    layer = make_layer(False, (3, 3, 3), (2, 2, 2), (0, 1, 1))
    with pytest.raises(ValueError, match=r"no cell along z.*\(2, 10, 11\).*more cells along z"):
        layer(random_tensor(5, shape=(2, 10, 11)))
