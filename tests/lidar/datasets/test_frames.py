import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lidar.augment import Augmentation
from lidar.datasets.errors import DatasetError, FrameError
from lidar.datasets.frames import LidarFrames, Sample, check_range, collate
from lidar.datasets.kitti import KittiObject
from lidar.grid import VoxelGrid, inside
from tests.lidar.datasets.writers import cloud, write_bin, write_kitti_object

RANGE = (0.0, -40.0, -3.0, 70.4, 40.0, 1.0)


@pytest.fixture
def source(tmp_path: Path) -> KittiObject:
    return KittiObject(root=write_kitti_object(tmp_path, 6))


def _frames(source: KittiObject, **options: object) -> LidarFrames:
    return LidarFrames(source=source, refs=source.frames, point_range=RANGE, **options)


def _break(source: KittiObject, *indices: int) -> None:
    for index in indices:
        source.frames[index].path.write_bytes(b"\0" * 17)


def test_without_augmentation_the_crop_is_as_recorded(source: KittiObject) -> None:
    narrow = (0.0, -5.0, -3.0, 20.0, 5.0, 1.0)
    sample = LidarFrames(source=source, refs=source.frames, point_range=narrow)[2, 0]
    points = source.read(source.frames[2])
    grid = VoxelGrid(point_range=narrow, voxel_size=(0.5, 0.5, 0.5))
    np.testing.assert_array_equal(sample.points.numpy(), points[grid.inside(points)])
    assert 0 < len(sample.points) < len(points)
    assert (sample.frame_id, sample.seed, sample.skipped) == ("000002", 0, ())


def test_a_key_gives_one_sample(source: KittiObject) -> None:
    frames, again = (_frames(source, augment=Augmentation(), seed=3) for _ in range(2))
    torch.testing.assert_close(frames[1, 7].points, again[1, 7].points, rtol=0, atol=0)
    assert not torch.equal(frames[1, 7].points, frames[1, 8].points)
    assert not torch.equal(frames[1, 7].points, _frames(source, augment=Augmentation(), seed=4)[1, 7].points)


def test_the_view_is_augmented_then_cropped_then_shuffled(source: KittiObject) -> None:
    augment = Augmentation()
    sample = _frames(source, augment=augment, seed=3)[4, 11]
    moved = augment.transform(source.read(source.frames[4]), np.random.default_rng((3, 11)))
    expected = moved[inside(moved, RANGE)]
    assert not np.array_equal(sample.points.numpy(), expected)
    order = np.lexsort(sample.points.numpy().T)
    np.testing.assert_array_equal(sample.points.numpy()[order], expected[np.lexsort(expected.T)])


def test_a_view_that_leaves_the_range_is_not_used(source: KittiObject) -> None:
    write_bin(source.frames[0].path, np.array([[1, 39.9, 0, 0.5]]))
    frames = _frames(source, augment=Augmentation(flip_y=False, scaling=(1.05, 1.05), rotation=0))
    np.testing.assert_allclose(frames[0, 0].points.numpy(), [[1, 39.9, 0, 0.5]], rtol=1e-6)


@pytest.mark.parametrize("key", [3, (1, 2, 3), [0, 1]])
def test_other_keys_are_refused(source: KittiObject, key: object) -> None:
    with pytest.raises(TypeError, match=r"\(frame_index, draw_seed\)"):
        _frames(source)[key]  # type: ignore[index]


def test_indices_and_seeds_have_bounds(source: KittiObject) -> None:
    frames = _frames(source)
    assert len(frames) == 6
    for index in (-1, 6):
        with pytest.raises(IndexError, match=f"frame index {index} of 6"):
            frames[index, 0]
    with pytest.raises(ValueError, match="draw seed is 0 or more"):
        frames[0, -1]


def test_constructor_errors(source: KittiObject) -> None:
    with pytest.raises(ValueError, match=r"data\.on_error is one of raise, skip"):
        _frames(source, on_error="ignore")
    with pytest.raises(DatasetError, match="no frames"):
        LidarFrames(source=source, refs=(), point_range=RANGE)


def test_a_cloud_outside_the_range_is_an_error_with_both_extents(source: KittiObject) -> None:
    write_bin(source.frames[0].path, cloud() + np.float32([500, 0, 0, 0]))
    with pytest.raises(
        FrameError, match=r"all 50 points lie outside .*x 0 to 70\.4.* spans \(x 50\d.*\. Set the"
    ):
        _frames(source)[0, 0]
    check_range(Path("a.bin"), cloud(), RANGE)


def test_skip_takes_the_next_readable_frame(source: KittiObject) -> None:
    _break(source, 1, 2, 5)
    frames = _frames(source, on_error="skip", augment=Augmentation())
    sample = frames[1, 9]
    assert (sample.frame_id, sample.seed, sample.skipped) == ("000003", 9, ("000001", "000002"))
    torch.testing.assert_close(sample.points, frames[3, 9].points, rtol=0, atol=0)
    assert frames[5, 0].frame_id == "000000"  # past the end comes the first
    assert collate([frames[1, 0], frames[0, 0], frames[5, 0]]).skipped == ("000001", "000002", "000005")


def test_skip_with_nothing_left_is_an_error(source: KittiObject) -> None:
    _break(source, *range(6))
    with pytest.raises(DatasetError, match=r"none of the 6 frames can be used.*data\.on_error=raise"):
        _frames(source, on_error="skip")[0, 0]


def test_collate_concatenates() -> None:
    samples = [
        Sample(points=torch.full((n, 4), float(n)), frame_id=f"f{n}", seed=n, skipped=("x",) * (n == 2))
        for n in (2, 0, 3)
    ]
    batch = collate(samples)
    assert batch.points[:, 0].tolist() == [2, 2, 3, 3, 3]
    assert batch.batch_index.tolist() == [0, 0, 2, 2, 2]
    assert batch.batch_index.dtype == torch.int64
    assert (batch.batch_size, batch.frame_ids, batch.seeds) == (3, ("f2", "f0", "f3"), (2, 0, 3))
    assert batch.skipped == ("x",)


KEYS = [[(0, 5), (3, 6)], [(5, 7), (0, 8)], [(2, 9)]]


def test_workers_change_nothing(source: KittiObject) -> None:
    frames = _frames(source, augment=Augmentation())
    plain, workers = (
        list(DataLoader(frames, batch_sampler=KEYS, collate_fn=collate, num_workers=n)) for n in (0, 2)
    )
    assert len(plain) == len(workers) == 3
    for a, b in zip(plain, workers, strict=True):
        torch.testing.assert_close(a.points, b.points, rtol=0, atol=0)
        assert (a.frame_ids, a.seeds) == (b.frame_ids, b.seeds)
        assert torch.equal(a.batch_index, b.batch_index)


def test_a_frame_error_crosses_the_worker_boundary_intact(source: KittiObject) -> None:
    _break(source, 3)
    batches = iter(DataLoader(_frames(source), batch_sampler=[[(3, 0)]], collate_fn=collate, num_workers=1))
    with pytest.raises(FrameError) as caught:
        next(batches)
    # End the worker now: left in the traceback's reference cycle, the iterator waits 5 s for it when collected.
    traceback.clear_frames(caught.tb)
    del batches
    with pytest.raises(FrameError) as direct:
        _frames(source)[3, 0]
    there, here = caught.value, direct.value
    assert (there.path, there.problem, there.remedy) == (here.path, here.problem, here.remedy)
    assert str(there) == str(here)
