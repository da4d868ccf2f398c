from pathlib import Path

import numpy as np
import pytest

from lidar.datasets.errors import DatasetError
from lidar.datasets.kitti import KittiObject
from lidar.datasets.preflight import PreflightReport, preflight
from tests.lidar.datasets.writers import cloud, write_bin, write_kitti_object

RANGE = (0.0, -40.0, -3.0, 70.4, 40.0, 1.0)


@pytest.fixture
def source(tmp_path: Path) -> KittiObject:
    return KittiObject(root=write_kitti_object(tmp_path, 8))


def _check(source: KittiObject, **options: object) -> PreflightReport:
    return preflight(source, source.frames, RANGE, **{"progress": False, **options})


def _break_three(source: KittiObject) -> None:
    """A truncated file, one with NaN and one outside the range."""
    source.frames[1].path.write_bytes(b"\0" * 17)
    write_bin(source.frames[4].path, np.full((3, 4), np.nan))
    write_bin(source.frames[6].path, cloud() + np.float32([900, 0, 0, 0]))


@pytest.mark.parametrize("mode", ["full", "size", "off"])
@pytest.mark.parametrize("workers", [0, 3])
def test_good_frames_pass(source: KittiObject, mode: str, workers: int) -> None:
    report = _check(source, mode=mode, workers=workers)
    assert report.good == source.frames
    assert report.bad == ()
    assert report.summary() == f"8 of 8 frames can be used (checked: {mode})"


def test_raise_lists_every_kind_of_bad_frame(source: KittiObject) -> None:
    _break_three(source)
    with pytest.raises(DatasetError, match="3 of 8 frames cannot be used") as caught:
        _check(source)
    text = str(caught.value)
    for part in ("000001.bin: 17 bytes", "000004.bin: 3 of 3", "000006.bin: all 50", "data.on_error=skip"):
        assert part in text


def test_skip_leaves_them_out_and_lists_them(source: KittiObject) -> None:
    _break_three(source)
    report = _check(source, on_error="skip")
    assert [ref.frame_id for ref in report.good] == ["000000", "000002", "000003", "000005", "000007"]
    assert [error.path.stem for error in report.bad] == ["000001", "000004", "000006"]
    assert "left out: " + str(report.bad[0]) in report.summary()


def test_size_sees_the_truncated_file_only(source: KittiObject) -> None:
    _break_three(source)
    assert [error.path.stem for error in _check(source, mode="size", on_error="skip").bad] == ["000001"]


def test_off_believes_all(source: KittiObject) -> None:
    _break_three(source)
    assert _check(source, mode="off").good == source.frames


def test_nothing_left_is_an_error_that_names_the_common_remedy(source: KittiObject) -> None:
    for ref in source.frames:
        write_bin(ref.path, cloud() + np.float32([900, 0, 0, 0]))
    with pytest.raises(
        DatasetError, match=r"8 of 8 (.|\n)*and 3 more\nNo frame is left\. Set the point range"
    ):
        _check(source, on_error="skip")


def test_long_lists_are_cut(source: KittiObject) -> None:
    for ref in source.frames[:7]:
        ref.path.write_bytes(b"")
    assert _check(source, on_error="skip").summary().endswith("... and 2 more")


def test_missing_intensity_is_stated(source: KittiObject) -> None:
    write_bin(source.frames[2].path, cloud() * np.float32([1, 1, 1, 0]))
    assert "1 frames have no intensity" in _check(source).summary()


def test_progress_is_shown(source: KittiObject, capsys: pytest.CaptureFixture[str]) -> None:
    _check(source, progress=True)
    assert "checking frames: 100%" in capsys.readouterr().err


def test_arguments_are_validated(source: KittiObject) -> None:
    with pytest.raises(ValueError, match=r"data\.on_error is one of"):
        _check(source, on_error="ignore")
    with pytest.raises(ValueError, match=r"data\.preflight is one of full, size, off"):
        _check(source, mode="quick")
