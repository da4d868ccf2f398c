"""Salient regions: Otsu against brute force, components against flood fill, ranks, partitions, odd maps."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage

from worldmodel.masking.saliency import SaliencyRegions, bin_counts, bin_of, min_max, otsu


def smooth_maps(count: int, *, size: int = 14, sigma: float = 1.5, seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(seed).standard_normal((count, size, size))
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, sigma, sigma)))


def brute_force_otsu(counts: np.ndarray) -> int:
    """Every threshold tried, from the definition: weight below * weight above * squared distance of the means."""
    bins, best, found = np.arange(len(counts)), -1.0, len(counts) - 1
    for t in range(len(counts)):
        below, above = counts[: t + 1], counts[t + 1 :]
        if below.sum() == 0 or above.sum() == 0:
            continue
        apart = np.average(bins[: t + 1], weights=below) - np.average(bins[t + 1 :], weights=above)
        variance = below.sum() * above.sum() * apart**2
        if variance > best * (1 + 1e-12):
            best, found = variance, t
    return found


def flood_fill(above: np.ndarray, *, diagonal: bool) -> list[frozenset[tuple[int, int]]]:
    """Connected components by depth-first search."""
    left, components = set(map(tuple, np.argwhere(above).tolist())), []
    while left:
        stack, component = [left.pop()], set()
        while stack:
            r, c = stack.pop()
            component.add((r, c))
            for dr in (-1, 0, 1):
                for dc in (-1, 0, 1):
                    near = (r + dr, c + dc)
                    if (diagonal or dr == 0 or dc == 0) and near in left:
                        left.remove(near)
                        stack.append(near)
        components.append(frozenset(component))
    return components


def cells_of(mask: torch.Tensor) -> frozenset[tuple[int, int]]:
    return frozenset(map(tuple, mask.nonzero().tolist()))


@pytest.mark.parametrize("seed", range(8))
def test_otsu_is_the_best_of_256_thresholds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.concatenate(
        [rng.normal(0.25, 0.08, 60 * (seed + 1)), rng.normal(0.7, 0.1, 300), rng.random(5)]
    ).clip(0, 1)
    counts = bin_counts(values)
    assert counts.sum() == len(values)
    assert otsu(counts) == brute_force_otsu(counts)


@pytest.mark.parametrize("counts", [[0, 0, 0, 0], [0, 5, 0, 0], [3, 0, 0, 3], [1, 0, 0, 0], [0, 0, 1, 1]])
def test_otsu_of_hardly_any_values(counts: list[int]) -> None:
    assert otsu(np.array(counts)) == brute_force_otsu(np.array(counts))


def test_bins_cover_zero_to_one() -> None:
    assert bin_of(np.array([0.0, 1 / 256, 0.999999, 1.0])).tolist() == [0, 1, 255, 255]


@pytest.mark.parametrize("connectivity", [4, 8])
def test_components_are_those_of_a_flood_fill(connectivity: int) -> None:
    rng = np.random.default_rng(0)
    maps = torch.from_numpy((rng.random((30, 10, 10)) < 0.3).astype(float))
    found = SaliencyRegions(n=200, alpha=0.0, connectivity=connectivity)(maps)  # type: ignore[arg-type]
    for i in range(30):
        components = [cells_of(found.masks[i, k]) for k in range(199) if found.valid[i, k]]
        assert len(set(components)) == len(components)
        assert set(components) == set(flood_fill(maps[i].numpy() > 0.5, diagonal=connectivity == 8))


@pytest.mark.parametrize("alpha", [0.0, 0.02, 0.15])
def test_regions_are_disjoint_cover_the_grid_and_fall_in_saliency(alpha: float) -> None:
    maps = smooth_maps(60)
    found = SaliencyRegions(alpha=alpha)(maps)
    assert torch.equal(found.masks.sum(1), torch.ones(60, 14, 14, dtype=torch.int64))
    assert torch.equal(found.valid, found.masks.flatten(2).any(2))
    for i in range(60):
        scaled = min_max(maps[i].numpy(), np.ones((14, 14), dtype=bool))
        ranked = [scaled[m.numpy()].mean() for m, v in zip(found.masks[i], found.valid[i], strict=True) if v]
        assert all(a >= b for a, b in pairwise(ranked))
        expected = found.scores[i][found.valid[i]].double().numpy()
        np.testing.assert_allclose(expected, ranked, atol=1e-6)
        count = int(found.counts[i])
        assert found.valid[i].tolist() == [k < count or k == 4 for k in range(5)]
        areas = found.masks[i, :count].flatten(1).sum(1)
        assert bool((areas >= alpha * 14 * 14).all())


def test_the_best_components_are_kept() -> None:
    grid = torch.zeros(1, 5, 11)
    for column, value in zip((1, 3, 5, 7, 9), (0.7, 1.0, 0.6, 0.9, 0.8), strict=True):
        grid[0, 1:4, column] = value
    found = SaliencyRegions(n=4, alpha=0.02)(grid)
    assert [int(m.nonzero()[0, 1]) for m in found.masks[0, :3]] == [3, 7, 9]
    assert bool(found.masks[0, 3, 1:4, [1, 5]].all())  # the others are background


def test_small_components_are_background() -> None:
    grid = torch.zeros(1, 10, 10)
    grid[0, :4, :4], grid[0, 9, 9] = 0.8, 1.0  # 16 cells, and one brighter cell
    found = SaliencyRegions(alpha=0.15)(grid)
    assert found.counts.tolist() == [1]
    assert bool(found.masks[0, 0, :4, :4].all())
    assert bool(found.masks[0, -1, 9, 9])
    assert SaliencyRegions(alpha=0.16)(grid).counts.tolist() == [1]  # an area equal to the limit passes
    assert SaliencyRegions(alpha=0.17)(grid).counts.tolist() == [0]


@pytest.mark.parametrize("value", [0.0, -3.0, 1e30])
def test_constant_maps_are_all_background(value: float) -> None:
    found = SaliencyRegions()(torch.full((2, 6, 6), value))
    assert found.counts.tolist() == [0, 0]
    assert bool(found.masks[:, -1].all())
    assert found.histogram().tolist() == [2, 0, 0, 0, 0]


def test_scale_and_shift_do_not_matter() -> None:
    maps = smooth_maps(10)
    assert torch.equal(SaliencyRegions()(maps).masks, SaliencyRegions()(maps * 70 - 5).masks)


def test_only_occupied_cells_are_in_regions() -> None:
    maps = smooth_maps(20)
    occupied = torch.rand(20, 14, 14, generator=torch.Generator().manual_seed(0)) < 0.5
    occupied[3] = False
    found = SaliencyRegions(alpha=0.05)(maps.where(occupied, torch.nan), occupied=occupied)
    assert torch.equal(found.masks.any(1), occupied)
    assert not found.valid[3].any()
    whole = SaliencyRegions(alpha=0.05)(maps, occupied=occupied)
    assert torch.equal(found.masks, whole.masks)  # what lies elsewhere has no say


def test_area_is_a_share_of_the_occupied_cells() -> None:
    grid, occupied = torch.zeros(1, 10, 10), torch.zeros(1, 10, 10, dtype=torch.bool)
    occupied[0, :2], grid[0, 0, :3] = True, 1.0
    assert SaliencyRegions(alpha=0.15)(grid, occupied=occupied).counts.tolist() == [1]
    assert SaliencyRegions(alpha=0.15)(grid).counts.tolist() == [0]


def test_histogram_counts_maps_by_foreground_regions() -> None:
    found = SaliencyRegions(alpha=0.02)(smooth_maps(40))
    assert found.histogram().tolist() == [int((found.counts == n).sum()) for n in range(5)]
    assert int(found.histogram().sum()) == 40


def test_at_the_papers_alpha_most_smooth_maps_have_one_region() -> None:
    counts = SaliencyRegions()(smooth_maps(300)).histogram()
    assert int(counts[1]) > 0.75 * 300
    assert int(counts[4]) == 0


def test_errors() -> None:
    with pytest.raises(ValueError, match="n must be 2"):
        SaliencyRegions(n=1)
    with pytest.raises(ValueError, match="alpha"):
        SaliencyRegions(alpha=1.0)
    with pytest.raises(ValueError, match="4 or 8"):
        SaliencyRegions(connectivity=6)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="threshold"):
        SaliencyRegions(threshold=0.5)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"\[B, H, W\]"):
        SaliencyRegions()(torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"\[B, H, W\]"):
        SaliencyRegions()(torch.zeros(1, 4, 4), occupied=torch.ones(1, 4, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="not finite"):
        SaliencyRegions()(torch.full((1, 4, 4), torch.nan))
