"""Arrays of features on disk, read in blocks so that a file may be larger than memory: .npy, .npz, .safetensors."""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open

SUFFIXES = (".npy", ".npz", ".safetensors")
SHAPES = "[N, D] (N samples) or [N, Q, D] (Q views of each of N samples)"
_BLOCK = 1 << 22  # numbers at a time


@dataclass(frozen=True, kw_only=True)
class FeatureFile:
    """An array on disk.

    Attributes:
        name: of the file, and of the tensor where the file has several.
        shape: [N, D] or [N, Q, D].
        read: yields the rows in order, at most the given number at a time.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[int], Iterator[torch.Tensor]]

    def blocks(self) -> Iterator[torch.Tensor]:
        """The rows in order, a few MB at a time.

        Raises:
            ValueError: if the file ends early, or a row is not finite; the first is named.
        """
        start = 0
        for block in self.read(max(1, _BLOCK // math.prod(self.shape[1:]))):
            bad = ~block.flatten(1).isfinite().all(dim=1)
            if bool(bad.any()):
                row = start + int(bad.nonzero()[0])
                raise ValueError(f"{self.name}: row {row} (counted from 0) holds NaN or infinity")
            start += len(block)
            yield block


def open_features(path: Path, *, key: str | None = None) -> FeatureFile:
    """Open a file of features without reading them.

    Args:
        path: .npy, .npz or .safetensors.
        key: which tensor of an archive; not needed where there is one only.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, has no such tensor, or that is no array of features.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, or the folder of a run"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    opener = {".npy": _open_npy, ".npz": _open_npz, ".safetensors": _open_safetensors}[path.suffix]
    with _readable(path):
        file, kind = opener(path, key)
    if len(file.shape) not in (2, 3):
        raise ValueError(f"{file.name}: shape {list(file.shape)}, expected {SHAPES}")
    if 0 in file.shape:
        raise ValueError(f"{file.name}: empty, shape {list(file.shape)}")
    if not kind.startswith(("F", "BF", "I", "U")):
        raise ValueError(f"{file.name}: holds {kind}, expected real numbers")
    return file


class _Choice(Exception):
    """A tensor must be chosen: no damage, although it is found out while reading."""


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except _Choice as error:
        raise ValueError(str(error)) from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read, it is damaged or cut short ({error})") from error


def _chosen(path: Path, names: Sequence[str], key: str | None) -> tuple[str, str]:
    """The tensor that is meant, and the name to show for it."""
    if key is None and len(names) == 1:
        return names[0], str(path)
    if key in names:
        return key, f"{path}:{key}"
    there = ", ".join(sorted(names)[:20]) or "nothing"
    wanted = "choose a tensor with --key" if key is None else f"no tensor {key!r}"
    raise _Choice(f"{path}: {wanted}; it holds {there}")


def _numpy_kind(dtype: np.dtype) -> str:
    return {"f": "F", "i": "I", "u": "U"}.get(dtype.kind, f"{dtype}")


def _tensor(rows: np.ndarray) -> torch.Tensor:
    rows = np.array(rows)  # a copy in memory, native byte order below
    if rows.dtype.kind == "u" or not rows.dtype.isnative or rows.dtype.itemsize > 8:
        rows = rows.astype(np.float64)
    return torch.from_numpy(rows)


def _open_npy(path: Path, key: str | None) -> tuple[FeatureFile, str]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)

    def read(rows: int) -> Iterator[torch.Tensor]:
        for start in range(0, len(array), rows):
            yield _tensor(array[start : start + rows])

    return FeatureFile(name=str(path), shape=array.shape, read=read), _numpy_kind(array.dtype)


def _open_npz(path: Path, key: str | None) -> tuple[FeatureFile, str]:
    with zipfile.ZipFile(path) as archive:
        members = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        member, name = _chosen(path, members, key)
        with archive.open(f"{member}.npy") as stream:
            shape, fortran, dtype = _npy_header(stream)

    def read(rows: int) -> Iterator[torch.Tensor]:
        with _readable(path), zipfile.ZipFile(path) as archive, archive.open(f"{member}.npy") as stream:
            if fortran:  # columns first: there is no reading it row by row
                stream.seek(0)
                whole = npy.read_array(stream, allow_pickle=False)
                for start in range(0, shape[0], rows):
                    yield _tensor(whole[start : start + rows])
                return
            _npy_header(stream)
            width = math.prod(shape[1:])
            for start in range(0, shape[0], rows):
                size = min(rows, shape[0] - start) * width * dtype.itemsize
                data = stream.read(size)
                if len(data) < size:
                    raise EOFError(f"row {start + len(data) // (width * dtype.itemsize)} is not complete")
                yield _tensor(np.frombuffer(data, dtype).reshape(-1, *shape[1:]))

    return FeatureFile(name=name, shape=shape, read=read), _numpy_kind(dtype)


def _npy_header(stream: object) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format version {version} of .npy is not known")
    return (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)


def _open_safetensors(path: Path, key: str | None) -> tuple[FeatureFile, str]:
    with safe_open(path, framework="pt") as archive:
        member, name = _chosen(path, list(archive.keys()), key)
        tensor = archive.get_slice(member)
        shape, kind = tuple(tensor.get_shape()), tensor.get_dtype()

    def read(rows: int) -> Iterator[torch.Tensor]:
        with _readable(path), safe_open(path, framework="pt") as archive:
            tensor = archive.get_slice(member)
            for start in range(0, shape[0], rows):
                yield tensor[start : start + rows]

    return FeatureFile(name=name, shape=shape, read=read), kind
