"""The spconv backend: the same parameters and the same row order, computed by spconv 2.

On CUDA spconv runs its implicit GEMM. On the CPU it is there for tests and benchmarks only: it must use its
Native algorithm, its CPU scatter-add has a data race with more than one thread (spconv 2.3.8, results change
from run to run), and its backward asks for a CUDA stream even where torch has none. So on the CPU this module
insists on one thread and stands in for that one call.
"""

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from lidar.sparse.sites import Sites, linear_keys
from lidar.sparse.tables import output_shape
from lidar.sparse.tensor import SparseTensor

if TYPE_CHECKING:
    from lidar.sparse.modules import _SparseConvolution


def available(device: str = "cpu") -> bool:
    """Whether an spconv that runs on this kind of device is installed; the package `spconv` itself is CPU only."""
    if find_spec("spconv") is None:
        return False
    return device != "cuda" or not _cpu_only()


@cache
def _cpu_only() -> bool:
    from spconv import cppconstants

    return bool(getattr(cppconstants, "CPU_ONLY_BUILD", False))


def chosen(backend: str, features: torch.Tensor) -> bool:
    """Whether a layer with this setting computes these features with spconv.

    Raises:
        ModuleNotFoundError: if spconv is asked for and no build for the device is installed.
    """
    device = features.device.type
    if backend == "spconv" and not available(device):
        raise ModuleNotFoundError(
            f'backend="spconv" on {device} needs an spconv built for it: pip install -e ".[gpu]" '
            f'(and pip uninstall spconv, which is CPU only), or use backend="torch"'
        )
    if backend != "auto":
        return backend == "spconv"
    # spconv has no float64 kernels on a GPU.
    return device == "cuda" and features.dtype != torch.float64 and available(device)


def convolve(layer: "_SparseConvolution", tensor: SparseTensor) -> SparseTensor:
    """Run one layer through spconv; rows come out sorted as with the torch backend.

    Raises:
        RuntimeError: on the CPU with more than one thread.
        ValueError: if the grid shrinks to nothing.
    """
    from lidar.sparse.modules import SubMConv3d

    submanifold = isinstance(layer, SubMConv3d)
    shape = output_shape(
        tensor.spatial_shape, kernel=layer.kernel_size, stride=layer.stride, padding=layer.padding
    )
    if len(tensor.sites) == 0:
        # spconv refuses an empty set of sites. The product of no rows keeps the gradients: zeros, not None.
        empty = tensor.features @ layer.weight[:, 0, 0, 0].t()
        empty = empty if layer.bias is None else empty + layer.bias
        sites = Sites(keys=tensor.sites.keys, shape=shape, batch_size=tensor.batch_size)
        return SparseTensor(features=empty, sites=sites, tables=tensor.tables)

    device = tensor.features.device.type
    # spconv casts to float16 inside any autocast region: it gets float32, its output the type asked for.
    wanted = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.features.dtype
    features = tensor.features
    if torch.is_autocast_enabled(device):
        features = features.float()
    spconv = _library(device)
    # spconv keeps its own tables: it finds them in this dictionary under the layer's index key.
    cache_key = f"spconv {tuple(tensor.spatial_shape)}"
    tables = tensor.tables.setdefault(cache_key, {})
    native = spconv.SparseConvTensor(
        features.contiguous(),
        tensor.coordinates.int(),
        list(tensor.spatial_shape),
        tensor.batch_size,
        indice_dict=tables,
    )
    with torch.autocast(device, enabled=False):
        out = _native_layer(layer, submanifold, device)(native)
    made = out.features.to(wanted)
    if layer.bias is not None:
        made = made + layer.bias.to(wanted)
    if submanifold:
        return tensor.with_features(made)
    keys, order = torch.sort(linear_keys(out.indices.long(), shape))
    sites = Sites(keys=keys, shape=shape, batch_size=tensor.batch_size)
    return SparseTensor(features=made.index_select(0, order), sites=sites, tables=tensor.tables)


def _native_layer(layer: "_SparseConvolution", submanifold: bool, device: str) -> Any:
    """An spconv layer that borrows our parameters, made once per layer and kept out of its state dict."""
    native = layer.__dict__.get("_spconv_layer")
    if native is None:
        spconv = _library(device)
        out_channels, *_, in_channels = layer.weight.shape
        kind = spconv.SubMConv3d if submanifold else spconv.SparseConv3d
        native = kind(
            in_channels,
            out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            bias=False,  # added outside: its CPU build refuses one in evaluation mode
            indice_key=layer.index_key,
            algo=spconv.ConvAlgo.Native if device == "cpu" else None,
        )
        layer.__dict__["_spconv_layer"] = native
    native._parameters["weight"] = layer.weight
    native.train(layer.training)
    return native


def _library(device: str) -> Any:
    library = _import()
    if device == "cpu" and torch.get_num_threads() != 1:
        raise RuntimeError(
            "spconv's CPU build gives wrong results with more than one thread: call "
            'torch.set_num_threads(1), or use backend="torch"'
        )
    return library


@cache
def _import() -> Any:
    import spconv.pytorch
    from spconv.pytorch import ops

    if not torch.cuda.is_available():
        ops.get_current_stream = lambda: 0  # its CPU backward asks for a CUDA stream and never uses it
    return spconv.pytorch
