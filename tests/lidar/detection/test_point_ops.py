"""Farthest-point sampling and ball queries against their definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidar.detection import ball_query as ball_query_module
from lidar.detection.ball_query import ball_query
from lidar.detection.point_set import PointSet
from lidar.detection.sampling import _padded, farthest_points


def point_set(*clouds: torch.Tensor) -> PointSet:
    sizes = torch.tensor([len(c) for c in clouds])
    return PointSet(
        xyz=torch.cat(clouds).reshape(-1, 3),
        sample=torch.repeat_interleave(torch.arange(len(clouds)), sizes),
        batch_size=len(clouds),
    )


def scattered(count: int, seed: int, *, scale=(10.0, 8.0, 3.0), dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, generator=generator, dtype=dtype) - 0.5) * torch.tensor(scale, dtype=dtype)


def farthest_by_definition(cloud: torch.Tensor, count: int) -> list[int]:
    chosen = [0]
    distance = torch.cdist(cloud, cloud, compute_mode="donot_use_mm_for_euclid_dist")
    for _ in range(count - 1):
        chosen.append(int(distance[chosen].amin(0).argmax()))
    return chosen


@pytest.mark.parametrize("scale", [(10.0, 8.0, 3.0), (1.0, 50.0, 1.0), (0.0, 0.0, 4.0)])
def test_each_choice_is_the_farthest_from_those_before(scale):
    clouds = [scattered(n, n, scale=scale, dtype=torch.float64) for n in (300, 1, 90)]
    rows = farthest_points(point_set(*clouds), count=60).split(60)
    start = 0
    for cloud, chosen in zip(clouds, rows, strict=True):
        expected = farthest_by_definition(cloud, min(60, len(cloud)))
        assert (chosen - start).tolist()[: len(expected)] == expected
        start += len(cloud)


def test_a_small_cloud_gives_its_points_again_and_an_empty_one_none():
    clouds = [scattered(5, 0), torch.zeros(0, 3), scattered(30, 1)]
    rows = farthest_points(point_set(*clouds), count=12)
    first, second = rows.split(12)
    assert sorted(first[:5].tolist()) == [0, 1, 2, 3, 4]
    assert first.tolist() == [*first[:5].tolist(), *first[:5].tolist(), *first[:2].tolist()]
    assert len(set(second.tolist())) == 12
    assert second.min() >= 5
    assert len(farthest_points(point_set(torch.zeros(0, 3)), count=4)) == 0


def test_copies_of_a_point_come_after_all_others():
    cloud = torch.cat([torch.ones(6, 3), scattered(4, 3)])
    chosen = farthest_points(point_set(cloud), count=10)
    assert sorted(chosen.tolist()) == list(range(10))
    assert set(chosen[:5].tolist()) == {0, 6, 7, 8, 9}


def test_the_way_of_a_gpu_chooses_the_same_points():
    clouds = [scattered(n, n) for n in (200, 400, 40)]
    chosen = _padded(clouds, 64)
    for cloud, choice in zip(clouds, chosen, strict=True):
        expected = farthest_points(point_set(cloud), count=64)[: len(cloud)]
        assert choice[: len(cloud)].tolist() == expected.tolist()


def ball_by_definition(points, centres, radius, count):
    squared = (centres.xyz[:, None] - points.xyz).square()
    squared = squared[..., 0] + squared[..., 1] + squared[..., 2]
    near = (squared < squared.new_tensor(radius).square()) & (centres.sample[:, None] == points.sample)
    rows = torch.zeros(len(centres), count, dtype=torch.int64)
    for i, inside in enumerate(near):
        found = inside.nonzero().flatten()[:count]
        if len(found):
            rows[i] = found[0]
            rows[i, : len(found)] = found
    return rows, ~near.any(1)


@pytest.mark.parametrize("chunk", [50, 2**20])
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 20)), min_size=1, max_size=3),
    radii=st.tuples(st.floats(0.05, 6), st.floats(0.05, 6)),
    counts=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    flat=st.booleans(),
)
def test_a_ball_query_equals_its_definition(chunk, seed, sizes, radii, counts, flat):
    scale = (10.0, 8.0, 0.0 if flat else 3.0)
    points = point_set(*(scattered(n, seed + i, scale=scale) for i, (n, _) in enumerate(sizes)))
    centres = point_set(*(scattered(n, seed + 9 + i) for i, (_, n) in enumerate(sizes)))
    before = ball_query_module.CHUNK
    ball_query_module.CHUNK = chunk
    try:
        found = ball_query(points, centres, radii=radii, counts=counts)
    finally:
        ball_query_module.CHUNK = before
    for neighbours, radius, count in zip(found, radii, counts, strict=True):
        rows, empty = ball_by_definition(points, centres, radius, count)
        assert torch.equal(neighbours.rows, rows)
        assert torch.equal(neighbours.empty, empty)


def test_the_edge_of_a_ball_is_outside_and_padding_repeats_the_first():
    points = point_set(torch.tensor([[1.0, 0, 0], [0, 0.5, 0], [0, 0, -0.5]]))
    centres = point_set(torch.tensor([[0.0, 0, 0], [9, 0, 0]]))
    (found,) = ball_query(points, centres, radii=(1.0,), counts=(4,))
    assert found.rows.tolist() == [[1, 2, 1, 1], [0, 0, 0, 0]]
    assert found.empty.tolist() == [False, True]


def test_what_cannot_be_searched_is_said():
    cloud = point_set(scattered(5, 0))
    with pytest.raises(ValueError, match="positive radii"):
        ball_query(cloud, cloud, radii=(0.0,), counts=(4,))
    with pytest.raises(ValueError, match="positive radii"):
        ball_query(cloud, cloud, radii=(1.0,), counts=(4, 4))
    with pytest.raises(ValueError, match="centres of 2"):
        ball_query(cloud, point_set(scattered(5, 0), scattered(5, 0)), radii=(1.0,), counts=(4,))
    broken = point_set(torch.tensor([[torch.nan, 0, 0]]))
    with pytest.raises(ValueError, match="NaN"):
        ball_query(cloud, broken, radii=(1.0,), counts=(4,))
    with pytest.raises(ValueError, match="NaN"):
        farthest_points(broken, count=4)
    with pytest.raises(ValueError, match="at least 1"):
        farthest_points(cloud, count=0)
    with pytest.raises(ValueError, match="crop them"):
        ball_query(point_set(scattered(5, 0, scale=(1e9, 1e9, 1e9))), cloud, radii=(0.01,), counts=(4,))
    with pytest.raises(ValueError, match="in order"):
        PointSet(xyz=torch.zeros(2, 3), sample=torch.tensor([1, 0]), batch_size=2)
    with pytest.raises(ValueError, match="in order"):
        PointSet(xyz=torch.zeros(2, 3), sample=torch.tensor([0, 2]), batch_size=2)
    with pytest.raises(ValueError, match=r"\[P, 3\]"):
        PointSet(xyz=torch.zeros(2, 4), sample=torch.tensor([0, 0]), batch_size=1)
