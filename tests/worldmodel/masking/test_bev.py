"""Random masks of BEV cells: exact shares, a pure function of the seeds, the same for any number of processes."""

import pytest
import torch

from tests.worldmodel.two_processes import TwoProcesses
from worldmodel.masking.bev import BEVMasks, RandomCells, random_subset, uniform_keys


def occupancy(batch: int = 6, size: int = 20, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    share = torch.linspace(0.02, 0.6, batch).view(-1, 1, 1)
    return torch.rand(batch, size, size, generator=generator) < share


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_share_of_non_empty_cells_is_exact_over_the_batch(ratio: float) -> None:
    occupied = occupancy()
    masks = RandomCells(ratio=ratio)(occupied, seeds=range(6))
    assert int(masks.visible_occupied.sum()) == int(int(occupied.sum()) * (1 - ratio))
    empty = float(masks.visible_empty.sum() / (~occupied).sum())
    assert empty == pytest.approx(1 - ratio, abs=4 * (0.25 / int((~occupied).sum())) ** 0.5)


def test_four_sets_partition_the_grid() -> None:
    occupied = occupancy()
    masks = RandomCells()(occupied, seeds=range(6))
    sets = [masks.visible_occupied, masks.visible_empty, masks.masked_occupied, masks.masked_empty]
    assert torch.equal(torch.stack(sets).sum(0), torch.ones_like(occupied, dtype=torch.int64))
    assert torch.equal(sets[0] | sets[2], occupied)
    assert torch.equal(sets[0] | sets[1], masks.visible)


def test_cells_are_drawn_independently_of_place_and_of_each_other() -> None:
    occupied = torch.ones(400, 6, 6, dtype=torch.bool)
    visible = RandomCells()(occupied, seeds=range(400)).visible.double()
    assert float((visible.mean(0) - 0.5).abs().max()) < 5 * 0.5 / 400**0.5
    correlation = torch.corrcoef(visible.flatten(1).T)
    assert float((correlation - torch.eye(36)).abs().max()) < 0.25


def test_a_function_of_the_seeds() -> None:
    occupied = occupancy()
    before = torch.get_rng_state()
    first = RandomCells()(occupied, seeds=range(6))
    assert torch.equal(first.visible, RandomCells()(occupied, seeds=range(6)).visible)
    assert not torch.equal(first.visible, RandomCells()(occupied, seeds=range(1, 7)).visible)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(uniform_keys([3, 4], 5, 5)[1], uniform_keys([4], 5, 5)[0])
    assert bool(uniform_keys([2**64 + 1], 2, 2).isfinite().all())


@pytest.mark.parametrize("cells", [0, 1, 2])
def test_hardly_any_non_empty_cell(cells: int) -> None:
    occupied = torch.zeros(1, 4, 4, dtype=torch.bool)
    occupied.view(-1)[:cells] = True
    masks = RandomCells(ratio=0.75)(occupied, seeds=[0])
    if cells == 2:  # both sets stay populated as long as they can
        assert int(masks.visible_occupied.sum()) == 1
        assert int(masks.masked_occupied.sum()) == 1


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1.0])
def test_bad_ratio(ratio: float) -> None:
    with pytest.raises(ValueError, match="mask ratio"):
        RandomCells(ratio=ratio)


def test_one_seed_per_sample() -> None:
    with pytest.raises(ValueError, match="2 seeds for a batch of 6"):
        RandomCells()(occupancy(), seeds=[1, 2])


def test_random_subset() -> None:
    masks = RandomCells()(occupancy(), seeds=range(6))
    available = int(masks.masked_occupied.sum())
    for count in (0, 1, 50, available, available + 1):
        chosen = random_subset(masks.keys, masks.masked_occupied, count)
        assert int(chosen.sum()) == min(count, available)
        assert not (chosen & ~masks.masked_occupied).any()
    assert not random_subset(masks.keys, torch.zeros_like(masks.visible), 5).any()


def _masks_on_rank(rank: int, occupied: torch.Tensor, split: int) -> tuple[BEVMasks, torch.Tensor]:
    part = slice(0, split) if rank == 0 else slice(split, None)
    seeds = list(range(100, 100 + len(occupied)))
    masks = RandomCells()(occupied[part], seeds=seeds[part])
    return masks, random_subset(masks.keys, masks.masked_occupied, 70)


@pytest.mark.parametrize("split", [3, 1])
def test_two_processes_draw_what_one_draws(two_processes: TwoProcesses, split: int) -> None:
    occupied = occupancy()
    occupied[0] = False  # with split = 1 rank 0 has no non-empty cell at all
    masks = RandomCells()(occupied, seeds=range(100, 106))
    subset = random_subset(masks.keys, masks.masked_occupied, 70)
    results = two_processes.run(_masks_on_rank, occupied, split)
    assert torch.equal(torch.cat([r[0].visible for r in results]), masks.visible)
    assert torch.equal(torch.cat([r[1] for r in results]), subset)
