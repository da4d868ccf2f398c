from pathlib import Path

import pytest

from lidar.datasets.errors import DatasetError
from lidar.datasets.folder import PointFolder
from lidar.datasets.sources import FrameRef, FrameSource, split_scenes


class _Listed:
    name = "listed"

    def __init__(self, scenes: list[str]) -> None:
        self.frames = tuple(FrameRef(Path(f"{i}.bin"), str(i), scene) for i, scene in enumerate(scenes))


def _source(*lengths: int) -> FrameSource:
    return _Listed([f"s{i}" for i, length in enumerate(lengths) for _ in range(length)])  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("val_fraction", [0.01, 0.2, 0.5, 0.99])
def test_no_scene_is_on_both_sides(seed: int, val_fraction: float) -> None:
    source = _source(3, 10, 1, 7, 4, 5)
    train, val = split_scenes(source, val_fraction, seed)
    assert sorted(train + val, key=lambda ref: int(ref.frame_id)) == list(source.frames)
    assert {ref.scene for ref in train}.isdisjoint(ref.scene for ref in val)
    assert train
    assert val
    assert split_scenes(source, val_fraction, seed) == (train, val)


def test_validation_holds_about_its_share() -> None:
    train, val = split_scenes(_source(*[1] * 200), 0.1, 0)
    assert (len(train), len(val)) == (180, 20)
    assert split_scenes(_source(*[1] * 200), 0.1, 1) != (train, val)


def test_one_scene_is_cut_by_time_with_a_gap() -> None:
    with pytest.warns(UserWarning, match="one scene only: its last 31 frames validate, the 10 before them"):
        train, val = split_scenes(_source(154), 0.2, 0)
    assert [int(ref.frame_id) for ref in train] == list(range(113))
    assert [int(ref.frame_id) for ref in val] == list(range(123, 154))


@pytest.mark.parametrize("val_fraction", [0.1, 0.5, 0.95])
def test_the_smallest_cut_keeps_both_sides_and_the_gap(val_fraction: float) -> None:
    with pytest.warns(UserWarning, match="one scene only"):
        train, val = split_scenes(_source(3), val_fraction, 0)
    assert (len(train), len(val)) == (1, 1)


def test_too_few_frames_and_bad_shares() -> None:
    with pytest.raises(
        DatasetError, match=r"2 frame\(s\) of one scene cannot be split.*data\.val_fraction=0"
    ):
        split_scenes(_source(2), 0.5, 0)
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match="share of the frames"):
            split_scenes(_source(5, 5), share, 0)


def test_no_validation_on_request() -> None:
    source = _source(1)
    assert split_scenes(source, 0, 0) == (source.frames, ())


def test_every_source_fits_the_protocol() -> None:
    source: type[FrameSource] = PointFolder
    assert source is PointFolder
