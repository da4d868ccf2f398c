import warnings
from pathlib import Path

import numpy as np
import pytest

from lidar.datasets.errors import FrameError
from lidar.datasets.points import check_size, read_points
from tests.lidar.datasets.writers import cloud, write_bin, write_pcd, write_ply

POINTS = cloud()


def _write(path: Path, points: np.ndarray) -> Path:
    suffix = path.suffix
    if suffix == ".bin":
        write_bin(path, points)
    elif suffix == ".npy":
        np.save(path, points)
    elif suffix == ".npz":
        np.savez(path, points=points, other=np.zeros(3))
    elif suffix == ".pcd":
        write_pcd(path, points, "binary")
    else:
        write_ply(path, points, "binary_little_endian")
    return path


SUFFIXES = [".bin", ".npy", ".npz", ".pcd", ".ply"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_reads_back(tmp_path: Path, suffix: str) -> None:
    read = read_points(_write(tmp_path / f"a{suffix}", POINTS))
    assert read.dtype == np.float32
    assert read.flags.writeable
    np.testing.assert_array_equal(read, POINTS)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nan_names_the_file_and_the_count(tmp_path: Path, suffix: str) -> None:
    bad = POINTS.copy()
    bad[3, 1], bad[7, 0] = np.nan, np.inf
    with pytest.raises(
        FrameError, match=rf"a\{suffix}: 2 of 50 points hold NaN or infinite values\. .*Remove"
    ):
        read_points(_write(tmp_path / f"a{suffix}", bad))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_cloud_is_an_error(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(FrameError, match=r"the cloud is empty \(0 points\)\. Remove"):
        read_points(_write(tmp_path / f"a{suffix}", POINTS[:0]))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_8_bit_intensity_is_an_error_with_the_setting(tmp_path: Path, suffix: str) -> None:
    raw = POINTS * np.float32([1, 1, 1, 255])
    path = _write(tmp_path / f"a{suffix}", raw)
    with pytest.raises(FrameError, match=r"expected 0 to 1\. Set data\.intensity_scale=255"):
        read_points(path)
    np.testing.assert_allclose(read_points(path, intensity_scale=255), POINTS, rtol=1e-6)


@pytest.mark.parametrize("suffix", [".npz", ".pcd", ".ply"])
def test_a_truncated_file_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = _write(tmp_path / f"a{suffix}", POINTS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FrameError, match=r"truncated.*\. .*again"):
        read_points(path)


def test_a_truncated_npy_is_an_error(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.npy", POINTS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FrameError, match="not a readable numpy file, or truncated"):
        read_points(path)


def test_16_bit_intensity_gets_its_own_scale(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match=r"data\.intensity_scale=65535"):
        read_points(_write(tmp_path / "a.npy", POINTS * np.float32([1, 1, 1, 4000])))


def test_negative_intensity_asks_for_rescaling(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="Rescale the intensity"):
        read_points(_write(tmp_path / "a.npy", POINTS - np.float32([0, 0, 0, 0.5])))


def test_a_bin_that_is_not_whole_names_the_column_counts_that_fit(tmp_path: Path) -> None:
    path = write_bin(tmp_path / "a.bin", np.zeros((7, 5)))
    with pytest.raises(
        FrameError, match=r"140 bytes are not a whole number of points of 4 .*data\.columns=5, 7;"
    ):
        read_points(path)
    assert len(read_points(path, columns=5)) == 7


def test_a_bin_cut_inside_a_float_is_an_error(tmp_path: Path) -> None:
    path = write_bin(tmp_path / "a.bin", POINTS)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FrameError, match=r"not a whole number of points.*Fetch or export the file again"):
        read_points(path)


def test_wrong_columns_that_happen_to_fit_are_hinted_at(tmp_path: Path) -> None:
    five = np.column_stack([POINTS[:40], np.arange(40)])  # 40 x 5 values are also 50 x 4
    with pytest.raises(FrameError, match=r"Check data\.columns=4 \(the size also fits 5, 8\)"):
        read_points(write_bin(tmp_path / "a.bin", five))


def test_nuscenes_files_have_five_columns_by_default(tmp_path: Path) -> None:
    raw = np.column_stack([POINTS, np.arange(50) % 32])
    np.testing.assert_array_equal(read_points(write_bin(tmp_path / "a.pcd.bin", raw)), POINTS)


def test_three_columns_get_intensity_zero_and_say_so(tmp_path: Path) -> None:
    expected = np.column_stack([POINTS[:, :3], np.zeros(50, np.float32)])
    for path, columns in ((write_bin(tmp_path / "a.bin", POINTS[:, :3]), 3), (tmp_path / "a.npy", None)):
        if columns is None:
            np.save(path, POINTS[:, :3])
        with pytest.warns(UserWarning, match="intensity is set to 0"):
            np.testing.assert_array_equal(read_points(path, columns=columns), expected)


def test_the_intensity_warning_comes_once(tmp_path: Path) -> None:
    paths = [write_bin(tmp_path / f"{i}.bin", POINTS[:, :3]) for i in range(3)]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for path in paths:
            read_points(path, columns=3)
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["intensity", "i", "reflectance", "Intensity"])
def test_named_fields_are_found(tmp_path: Path, name: str) -> None:
    table = np.zeros(50, [("ring", "u1"), ("y", "f8"), ("x", "f4"), ("z", "f4"), (name, "f4")])
    table["x"], table["y"], table["z"], table[name] = POINTS.T
    np.save(tmp_path / "a.npy", table)
    np.testing.assert_allclose(read_points(tmp_path / "a.npy"), POINTS, rtol=1e-6)


def test_fields_hold_one_number_per_point(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(5, [("x", "f4", (2,)), ("y", "f4"), ("z", "f4")]))
    with pytest.raises(FrameError, match="not one number per point"):
        read_points(tmp_path / "a.npy")


def test_missing_fields_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(5, [("x", "f4"), ("y", "f4"), ("height", "f4")]))
    with pytest.raises(FrameError, match=r"has no field z \(fields: x, y, height\)"):
        read_points(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "array", [np.zeros(5), np.zeros((5, 2)), np.zeros((5, 4), complex), np.zeros((2, 5, 4))]
)
def test_arrays_that_are_no_clouds_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(FrameError, match="array of shape"):
        read_points(tmp_path / "a.npy")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(FrameError, match="not a readable numpy file"):
        read_points(tmp_path / "a.npy")


def test_npz_takes_the_only_array_or_the_one_named_points(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", scan=POINTS)
    np.testing.assert_array_equal(read_points(tmp_path / "a.npz"), POINTS)
    np.savez(tmp_path / "b.npz", scan=POINTS, other=POINTS)
    with pytest.raises(FrameError, match=r"holds 2 arrays \(scan, other\), none named 'points'"):
        read_points(tmp_path / "b.npz")


def test_unknown_formats_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match=r"'.las' is not known\. Convert to .bin, .npy, .npz, .pcd, .ply"):
        read_points(tmp_path / "a.las")
    with pytest.raises(FrameError, match="there is no such file"):
        read_points(tmp_path / "a.bin")
    (tmp_path / "folder.bin").mkdir()
    with pytest.raises(FrameError, match="cannot be read"):
        read_points(tmp_path / "folder.bin")


def test_too_few_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match=r"Set data\.columns to 3 or more"):
        read_points(write_bin(tmp_path / "a.bin", POINTS), columns=2)


def test_sizes_are_checked_without_reading(tmp_path: Path) -> None:
    check_size(write_bin(tmp_path / "a.bin", POINTS))
    check_size(_write(tmp_path / "a.npy", POINTS))
    with pytest.raises(FrameError, match="there is no such file"):
        check_size(tmp_path / "b.bin")
    with pytest.raises(FrameError, match="0 bytes"):
        check_size(write_bin(tmp_path / "c.bin", POINTS[:0]))
    with pytest.raises(FrameError, match="not a whole number"):
        check_size(tmp_path / "a.bin", columns=7)


@pytest.mark.parametrize(
    "name", ["a.bin", "a.npy", "a.npz", "ascii.pcd", "binary.pcd", "binary_compressed.pcd", "a.ply"]
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_points_or_a_frame_error(tmp_path: Path, name: str) -> None:
    """Nothing else may come out of a reader, or a worker dies of it."""
    path = tmp_path / name
    _ = write_pcd(path, POINTS[:20], path.stem) if path.suffix == ".pcd" else _write(path, POINTS[:20])
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole[: rng.integers(len(whole) // 2, len(whole) + 1)])
        for position in rng.integers(0, min(len(damaged), 250), 2):
            damaged[position] = rng.choice(list(b"0123456789 \n-(\x00\xff"))
        path.write_bytes(damaged)
        try:
            points = read_points(path)
        except FrameError:
            continue
        assert points.shape[1] == 4
        assert np.isfinite(points).all()
