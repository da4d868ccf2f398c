"""Columns of the data files to and from numpy arrays, and the check of what may be written."""

import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from envs.lerobot.pixels import decode_image, encode_png, from_pixels, to_pixels
from envs.lerobot.schema import BOOKKEEPING, DatasetFormatError, EpisodeError, Feature, arrow_type

_THREADS = min(8, os.cpu_count() or 1)  # that decode the images of a column
_FRAMES_PER_THREAD = 16  # fewer are not worth a thread


def check_episode(frames: Mapping[str, Any], features: Mapping[str, Feature]) -> dict[str, np.ndarray]:
    """The arrays [T, *shape] of an episode, one per feature that is not bookkeeping.

    Raises:
        EpisodeError: naming the feature, and the frame where one is at fault: wrong keys, no frames, unequal lengths,
            wrong shape or dtype, NaN or infinite numbers.
    """
    wanted = features.keys() - BOOKKEEPING.keys()
    if frames.keys() != wanted:
        missing, unknown = sorted(wanted - frames.keys()), sorted(frames.keys() - wanted)
        raise EpisodeError(
            f"wrong keys: missing {missing}, unknown {unknown}; the writer itself adds {[*BOOKKEEPING]}"
        )
    arrays = {name: np.asarray(frames[name]) for name in features if name in wanted}
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise EpisodeError(f"features need the same number of frames, at least 1, got {lengths}")
    for name, array in arrays.items():
        _check_feature(name, array, features[name])
    return arrays


def _check_feature(name: str, array: np.ndarray, feature: Feature) -> None:
    if feature.dtype == "string":
        if array.dtype.kind not in "UO" or not all(isinstance(x, str) for x in array.ravel()):
            raise EpisodeError(f"feature {name!r} holds strings, got {array.dtype}")
    elif array.dtype != np.dtype("uint8" if feature.visual else feature.dtype):
        expected = "uint8 in 0..255" if feature.visual else feature.dtype
        raise EpisodeError(f"feature {name!r} is {expected}, got {array.dtype}: convert it before writing")
    scalar = array.ndim == 1 and feature.shape == (1,)
    if array.shape[1:] != feature.shape and not scalar:
        raise EpisodeError(f"feature {name!r} has frames of shape {feature.shape}, got {array.shape[1:]}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        frame = int(np.argwhere(~np.isfinite(array))[0][0])
        raise EpisodeError(f"feature {name!r} holds NaN or infinite numbers, first in frame {frame}")


def to_column(values: np.ndarray, feature: Feature) -> "pa.Array":
    """[T, *shape] as the column of a data file; images are encoded as PNG."""
    if feature.dtype == "image":
        content = [encode_png(image) for image in to_pixels(values, feature)]
        paths = [f"frame-{i:06d}.png" for i in range(len(content))]
        return pa.StructArray.from_arrays(
            [pa.array(content, pa.binary()), pa.array(paths, pa.string())], names=["bytes", "path"]
        )
    kind = arrow_type(feature)
    if feature.shape == (1,):
        return pa.array(
            values.reshape(len(values)).tolist() if feature.dtype == "string" else values.reshape(-1), kind
        )
    flat = values.ravel()
    if len(feature.shape) == 1:
        scalars = pa.array(flat.tolist() if feature.dtype == "string" else flat, kind.value_type)
        return pa.FixedSizeListArray.from_arrays(scalars, feature.shape[0])
    column = pa.array(flat)
    for size in reversed(feature.shape):
        column = pa.ListArray.from_arrays(pa.array(np.arange(0, len(column) + 1, size), pa.int32()), column)
    return column


def from_column(column: "pa.ChunkedArray", feature: Feature, *, name: str) -> np.ndarray:
    """The column of a feature as [T, *shape]; a scalar feature as [T].

    Raises:
        DatasetFormatError: if the column does not hold what the feature says.
    """
    if feature.dtype == "image":
        return _decode_images(column, feature, name=name)
    array = column.combine_chunks()
    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    length = len(array)
    while pa.types.is_nested(array.type):
        if pa.types.is_struct(array.type):
            raise DatasetFormatError(f"feature {name!r} is {feature.dtype}, but its column is {array.type}")
        array = array.flatten()
    if array.null_count:
        raise DatasetFormatError(f"feature {name!r} has {array.null_count} missing values")
    values = np.asarray(array.to_numpy(zero_copy_only=False))
    if len(values) != length * int(np.prod(feature.shape)):
        raise DatasetFormatError(
            f"feature {name!r} has {len(values)} numbers in {length} frames of {feature.shape}"
        )
    kind = object if feature.dtype == "string" else feature.dtype
    shape = () if feature.shape == (1,) else feature.shape
    return values.astype(kind, copy=False).reshape(length, *shape)


def _decode_images(column: "pa.ChunkedArray", feature: Feature, *, name: str) -> np.ndarray:
    pixels = np.empty((len(column), *feature.height_width, feature.channels), np.uint8)

    def decode(i: int, entry: Any) -> None:
        content = entry.get("bytes") if isinstance(entry, dict) else entry
        if content is None:
            raise DatasetFormatError(
                f"feature {name!r}: an image is not embedded in the Parquet file ({entry})"
            )
        image = decode_image(content, channels=feature.channels)
        if image.shape != pixels.shape[1:]:
            raise DatasetFormatError(
                f"feature {name!r} says images {pixels.shape[1:]} (H, W, C), found {image.shape}"
            )
        pixels[i] = image

    entries = column.to_pylist()
    workers = min(_THREADS, len(entries) // _FRAMES_PER_THREAD)
    if workers < 2:
        for i, entry in enumerate(entries):
            decode(i, entry)
    else:  # pillow decodes without holding Python's lock
        with ThreadPoolExecutor(workers) as pool:
            deque(pool.map(decode, range(len(entries)), entries), maxlen=0)  # raises what a thread raised
    return from_pixels(pixels, feature)
