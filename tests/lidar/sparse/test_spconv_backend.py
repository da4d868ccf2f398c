"""The spconv backend against ours: same parameters, same rows, same numbers."""

from types import SimpleNamespace

import pytest
import torch

from lidar.sparse import SparseTensor, spconv_backend
from tests.lidar.sparse.helpers import random_tensor
from tests.lidar.sparse.test_conv import KINDS, forward_backward, make_layer

needs_spconv = pytest.mark.skipif(not spconv_backend.available(), reason="spconv is not installed")


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@needs_spconv
@KINDS
def test_equals_torch_backend(one_thread, submanifold, kernel, stride, padding):
    ours = make_layer(submanifold, kernel, stride, padding, dtype=torch.float32, backend="torch")
    theirs = make_layer(submanifold, kernel, stride, padding, dtype=torch.float32, backend="spconv")
    theirs.load_state_dict(ours.state_dict())
    tensor = random_tensor(5, dtype=torch.float32)
    assert torch.equal(
        ours(tensor).sites.keys, theirs(SparseTensor(features=tensor.features, sites=tensor.sites)).sites.keys
    )
    for a, b in zip(forward_backward(ours, tensor), forward_backward(theirs, tensor), strict=True):
        assert (a - b).abs().max() <= 2e-6 * max(1.0, float(b.abs().max()))


@needs_spconv
def test_several_threads_are_refused():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="more than one thread"):
            make_layer(True, 3, 1, 1, dtype=torch.float32, backend="spconv")(
                random_tensor(5, dtype=torch.float32)
            )
    finally:
        torch.set_num_threads(threads)


@needs_spconv
@KINDS
def test_empty_batch(one_thread, submanifold, kernel, stride, padding):
    layer = make_layer(submanifold, kernel, stride, padding, dtype=torch.float32, backend="spconv")
    out, *grads = forward_backward(layer, random_tensor(5, dtype=torch.float32, density=0.0))
    assert out.shape == (0, 7)
    assert not any(grad.any() for grad in grads)


def test_missing_spconv_is_named(monkeypatch):
    monkeypatch.setattr(spconv_backend, "available", lambda device="cpu": False)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        make_layer(True, 3, 1, 1, backend="spconv")(random_tensor(5))


def features_on(device, dtype=torch.float32):
    return SimpleNamespace(device=torch.device(device), dtype=dtype)


def test_auto_takes_spconv_only_where_it_has_kernels(monkeypatch):
    assert not spconv_backend.chosen("auto", features_on("cpu"))
    for cpu_only in (True, False):
        monkeypatch.setattr(spconv_backend, "find_spec", lambda name: True)
        monkeypatch.setattr(spconv_backend, "_cpu_only", lambda cpu_only=cpu_only: cpu_only)
        assert spconv_backend.chosen("auto", features_on("cuda")) is not cpu_only
        assert not spconv_backend.chosen("auto", features_on("cuda", torch.float64))
    monkeypatch.setattr(spconv_backend, "_cpu_only", lambda: True)
    with pytest.raises(ModuleNotFoundError, match="CPU only"):
        spconv_backend.chosen("spconv", features_on("cuda"))


@needs_spconv
def test_the_cpu_package_says_that_it_is_one():
    assert spconv_backend._cpu_only() == (not torch.cuda.is_available())
