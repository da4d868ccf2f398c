"""Sparse 3-D convolution for point clouds: plain torch, or spconv where it is installed and faster."""

from lidar.sparse.functional import sparse_conv
from lidar.sparse.modules import Backend, SparseConv3d, SubMConv3d
from lidar.sparse.sites import Shape, Sites, key_coordinates, linear_keys
from lidar.sparse.tables import PairTable, output_shape, strided_table, submanifold_table
from lidar.sparse.tensor import SparseTensor

__all__ = [
    "Backend",
    "PairTable",
    "Shape",
    "Sites",
    "SparseConv3d",
    "SparseTensor",
    "SubMConv3d",
    "key_coordinates",
    "linear_keys",
    "output_shape",
    "sparse_conv",
    "strided_table",
    "submanifold_table",
]
