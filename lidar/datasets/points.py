"""Read one point cloud from a file: .bin, .npy, .npz, .pcd or .ply to float32 [N, 4]."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lidar.datasets import pcd, ply
from lidar.datasets.errors import FrameError, reason

SUFFIXES = (".bin", ".npy", ".npz", ".pcd", ".ply")
INTENSITY_NAMES = ("intensity", "i", "reflectance", "reflectivity", "scalar_intensity")
_PLAUSIBLE_COLUMNS = range(3, 9)
_SKIP_HINT = "Fetch or export the file again, or set data.on_error=skip"


def read_points(path: str | Path, *, columns: int | None = None, intensity_scale: float = 1.0) -> np.ndarray:
    """Read and validate a point cloud.

    Args:
        path: the file; the suffix decides the format.
        columns: float32 values per point of a .bin file (x, y, z, intensity, then others, which are dropped).
            Default 4, and 5 for nuScenes `.pcd.bin`. The other formats carry their own columns.
        intensity_scale: the sensor's largest intensity; intensities are divided by it. 255 for 8-bit sensors.

    Returns:
        float32 [N, 4], N >= 1: x, y, z in metres as in the file, intensity in 0..1. A cloud of x, y, z only
        gets intensity 0 and a warning (once per process).

    Raises:
        FrameError: if the file is missing, truncated, empty, of an unknown format, holds NaN or infinite
            values, or if its intensities lie outside 0..intensity_scale.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise FrameError(
            path,
            f"the format {suffix or 'without a suffix'!r} is not known",
            f"Convert to {_list(SUFFIXES)}.",
        )
    try:
        if suffix == ".bin":
            points = _read_bin(path, columns)
        elif suffix in (".npy", ".npz"):
            points = _columns_of(path, _read_numpy(path))
        else:
            points = _columns_of(path, pcd.read_pcd(path) if suffix == ".pcd" else ply.read_ply(path))
    except FileNotFoundError as error:
        raise FrameError(path, "there is no such file", "Check data.root and the list of frames.") from error
    except OSError as error:
        raise FrameError(path, f"cannot be read ({reason(error)})", f"{_SKIP_HINT}.") from error
    return _validated(path, points, columns=columns, intensity_scale=intensity_scale)


def check_size(path: str | Path, *, columns: int | None = None) -> None:
    """Validate what the file's size alone tells, without reading it.

    Raises:
        FrameError: if the file is missing, empty, or a .bin that is not a whole number of points.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise FrameError(path, "there is no such file", "Check data.root and the list of frames.") from error
    if size == 0:
        raise FrameError(path, "the file is empty (0 bytes)", f"{_SKIP_HINT}.")
    if path.suffix.lower() == ".bin":
        _check_bin_size(path, size, columns or _default_columns(path))


def _read_bin(path: Path, columns: int | None) -> np.ndarray:
    columns = columns or _default_columns(path)
    values = np.fromfile(path, np.uint8)
    _check_bin_size(path, values.size, columns)
    points = values.view("<f4").reshape(-1, columns)
    if columns == 4:
        return points
    if columns > 4:
        return np.ascontiguousarray(points[:, :4])
    return _with_zero_intensity(points)


def _check_bin_size(path: Path, size: int, columns: int) -> None:
    if columns < 3:
        raise FrameError(path, f"{columns} columns cannot hold x, y, z", "Set data.columns to 3 or more.")
    if size % (columns * 4) == 0:
        return
    fits = _fitting_columns(size)
    remedy = (
        f"Its size fits data.columns={_list(fits)}; otherwise the file is truncated" if fits else _SKIP_HINT
    )
    raise FrameError(
        path, f"{size} bytes are not a whole number of points of {columns} float32 columns", f"{remedy}."
    )


def _fitting_columns(size: int) -> tuple[int, ...]:
    return tuple(c for c in _PLAUSIBLE_COLUMNS if size % (c * 4) == 0)


def _default_columns(path: Path) -> int:
    return 5 if path.name.lower().endswith(".pcd.bin") else 4


def _read_numpy(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            names = list(loaded.keys())
            if "points" in names:
                return loaded["points"]
            if len(names) == 1:
                return loaded[names[0]]
    except OSError:
        raise
    except (
        Exception
    ) as error:  # numpy, zipfile, zlib and tokenize each have their own errors for damaged bytes
        raise FrameError(
            path, f"not a readable numpy file, or truncated ({reason(error)})", f"{_SKIP_HINT}."
        ) from error
    raise FrameError(
        path,
        f"holds {len(names)} arrays ({_list(names)}), none named 'points'",
        "Save the cloud as points=array.",
    )


def _columns_of(path: Path, array: np.ndarray) -> np.ndarray:
    """x, y, z, intensity of a plain [N, C] array or of a structured one with named fields."""
    if array.dtype.names is None:
        if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
            raise FrameError(
                path,
                f"holds a {array.dtype} array of shape {array.shape}",
                "Expected numbers of shape [N, 3 or more]: x, y, z, intensity.",
            )
        points = array[:, :4].astype(np.float32)
        return points if points.shape[1] == 4 else _with_zero_intensity(points)
    fields = {name.lower(): name for name in array.dtype.names}
    missing = [axis for axis in "xyz" if axis not in fields]
    if missing:
        raise FrameError(
            path,
            f"has no field {_list(missing)} (fields: {_list(array.dtype.names)})",
            "Name the columns x, y, z.",
        )
    array = array.reshape(-1)
    intensity = next((fields[name] for name in INTENSITY_NAMES if name in fields), None)
    columns = [array[fields[axis]] for axis in "xyz"] + ([] if intensity is None else [array[intensity]])
    if any(column.ndim != 1 or column.dtype.kind not in "fiu" for column in columns):
        raise FrameError(
            path, "x, y, z or intensity is not one number per point", "Save one number per field."
        )
    points = np.stack([column.astype(np.float32) for column in columns], axis=1)
    return points if intensity is not None else _with_zero_intensity(points)


def _with_zero_intensity(points: np.ndarray) -> np.ndarray:
    warnings.warn("point files hold x, y, z only: their intensity is set to 0", UserWarning, stacklevel=2)
    return np.column_stack([points[:, :3], np.zeros(len(points), np.float32)])


def _validated(path: Path, points: np.ndarray, *, columns: int | None, intensity_scale: float) -> np.ndarray:
    if len(points) == 0:
        raise FrameError(path, "the cloud is empty (0 points)", "Remove the file or set data.on_error=skip.")
    if not np.isfinite(points).all():
        bad = int((~np.isfinite(points)).any(axis=1).sum())
        raise FrameError(
            path,
            f"{bad} of {len(points)} points hold NaN or infinite values",
            f"{_column_hint(path, columns)}Remove these points from the file or set data.on_error=skip.",
        )
    low, high = float(points[:, 3].min()), float(points[:, 3].max())
    if low < 0 or high > intensity_scale * (1 + 1e-5):
        raise FrameError(
            path,
            f"intensity spans {low:g} to {high:g}, expected 0 to {intensity_scale:g}",
            _intensity_remedy(path, low=low, high=high, columns=columns),
        )
    if intensity_scale != 1.0:
        points[:, 3] /= np.float32(intensity_scale)
    return points


def _intensity_remedy(path: Path, *, low: float, high: float, columns: int | None) -> str:
    hint = _column_hint(path, columns)
    if low < 0 or high > 65535:
        return f"{hint}Or rescale the fourth column to 0..1." if hint else "Rescale the intensity to 0..1."
    scale = 255 if high <= 255 else 65535
    return f"Set data.intensity_scale={scale} if that is the sensor's largest value. {hint}".rstrip()


def _column_hint(path: Path, columns: int | None) -> str:
    """A wrong column count reads coordinates as intensities: say which counts the file's size allows."""
    if path.suffix.lower() != ".bin":
        return ""
    used = columns or _default_columns(path)
    others = [c for c in _fitting_columns(path.stat().st_size) if c != used]
    return f"Check data.columns={used} (the size also fits {_list(others)}). " if others else ""


def _list(items: Iterable[object]) -> str:
    return ", ".join(str(item) for item in items)
