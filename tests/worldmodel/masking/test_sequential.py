"""The order of targets: exact contexts, fallback to rectangles, the unit and mean of the curriculum's coin."""

import pytest
import torch

from tests.worldmodel.masking.test_saliency import smooth_maps
from worldmodel.masking.bev import RandomCells
from worldmodel.masking.multiblock import MultiBlock
from worldmodel.masking.saliency import SaliencyRegions
from worldmodel.masking.sequential import Curriculum, SequentialRegions
from worldmodel.masking.target_sequence import TargetSequence

FINE = SaliencyRegions(alpha=0.02)


def bars(values: tuple[float, ...] = (0.6, 0.9, 0.7, 0.8)) -> torch.Tensor:
    """A map [1, 4, 9] of four bars, one for each value."""
    grid = torch.zeros(1, 4, 9)
    for i, value in enumerate(values):
        grid[0, :, 2 * i + 1] = value
    return grid


def ones(maps: torch.Tensor) -> torch.Tensor:
    return torch.ones(maps.shape, dtype=torch.bool)


def same(a: TargetSequence, b: TargetSequence) -> bool:
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("rank", "targets", "valid"))


def test_context_of_each_step_is_every_region_before_its_target() -> None:
    sequence = SequentialRegions(regions=FINE)(ones(bars()), seeds=[0], saliency=bars())
    by_rank = [3, 7, 5, 1]  # columns of the bars, most salient first
    assert bool(sequence.valid.all())
    for step in range(4):
        context = torch.zeros(1, 4, 9, dtype=torch.bool)
        context[..., by_rank[: step + 1]] = True
        assert torch.equal(sequence.context(step), context)
        target = torch.zeros(1, 4, 9, dtype=torch.bool)
        target[..., [by_rank[step + 1]] if step < 3 else [0, 2, 4, 6, 8]] = True
        assert torch.equal(sequence.targets[:, step], target)


def test_one_region_and_background() -> None:
    grid = bars((0.0, 1.0, 0.0, 0.0))
    sequence = SequentialRegions(regions=FINE)(ones(grid), seeds=[0], saliency=grid)
    assert sequence.valid.tolist() == [[False, False, False, True]]
    assert torch.equal(sequence.context(3), grid > 0)
    assert torch.equal(sequence.targets[:, 3], grid == 0)
    assert torch.equal(sequence.queries().view(1, 4, 4, 9)[:, 3], grid == 0)
    assert int(sequence.queries().sum()) == 32


def test_maps_without_a_region_fall_back_to_rectangles() -> None:
    maps = torch.cat([bars(), torch.zeros(1, 4, 9), bars()])
    sampler = SequentialRegions(regions=FINE)
    mixed = sampler(ones(maps), seeds=[3, 4, 5], saliency=maps)
    blocks = MultiBlock()(ones(maps), seeds=[3, 4, 5])
    assert torch.equal(mixed.rank[1], blocks.rank[1])
    assert torch.equal(mixed.targets[1], blocks.targets[1])
    assert not torch.equal(mixed.rank[0], blocks.rank[0])
    none = sampler(ones(maps), seeds=[3, 4, 5], saliency=torch.zeros_like(maps))
    assert same(none, blocks)
    assert same(sampler(ones(maps), seeds=[3, 4, 5]), blocks)  # without saliency


@pytest.mark.parametrize("blocks", [1, 4, 6])
def test_rows_with_different_numbers_of_steps(blocks: int) -> None:
    maps = torch.cat([bars(), torch.zeros(1, 4, 9)])
    sequence = SequentialRegions(regions=FINE, blocks=MultiBlock(targets=blocks))(
        ones(maps), seeds=[0, 1], saliency=maps
    )
    assert sequence.valid.sum(1).tolist() == [4, blocks]
    assert sequence.targets.shape[:2] == (2, max(4, blocks))


def test_overlapping_targets_are_asked_once_per_step() -> None:
    targets = torch.ones(1, 2, 1, 3, dtype=torch.bool)
    targets[..., 0] = False
    context = torch.tensor([[[True, False, False]]])
    sequence = TargetSequence.of_blocks(context=context, targets=targets)
    assert sequence.queries().tolist() == [[False, True, True] * 2]


def test_a_later_region_can_be_the_first_context() -> None:
    masks = torch.zeros(1, 4, 1, 4, dtype=torch.bool)
    masks[0, [1, 2, 3], 0, [0, 1, 2]] = True  # region 1 is missing
    assert TargetSequence.of_regions(masks).valid.tolist() == [[False, True, True]]


@pytest.mark.parametrize("unit", ["region", "sample", "step"])
def test_lambda_rises_linearly_and_is_the_mean_of_the_coins(unit: str) -> None:
    curriculum = Curriculum(unit=unit, steps=100)  # type: ignore[arg-type]
    assert [curriculum.share(s) for s in (0, 25, 100, 500)] == [0.0, 0.25, 1.0, 1.0]
    draws = 2000
    for step in (0, 30, 70, 100):
        if unit == "step":
            many = [
                Curriculum(unit="step", steps=100, seed=s).coins(step, seeds=[0], count=4)
                for s in range(draws)
            ]
            mean = sum(float(c.mean()) for c in many) / draws
        else:
            mean = float(curriculum.coins(step, seeds=range(draws), count=4).mean())
        expected = curriculum.share(step)
        assert abs(mean - expected) <= 4 * (expected * (1 - expected) / draws) ** 0.5


def test_units_of_the_coin() -> None:
    coins = {
        unit: Curriculum(unit=unit, steps=2).coins(1, seeds=range(100), count=4)  # type: ignore[arg-type]
        for unit in ("region", "sample", "step")
    }
    assert all(c.shape == (100, 4) for c in coins.values())
    assert (coins["step"] == coins["step"][0, 0]).all()
    assert (coins["sample"] == coins["sample"][:, :1]).all()
    assert 0 < coins["sample"][:, 0].mean() < 1
    assert 0 < (coins["region"] == coins["region"][:, :1]).all(1).mean() < 0.4  # 1 / 8 agree by chance
    step = Curriculum(unit="step", steps=2)
    other_ranks = step.coins(1, seeds=range(100, 130), count=4)
    assert bool(other_ranks[0, 0]) == bool(coins["step"][0, 0])  # whatever the samples
    sample = Curriculum(unit="sample", steps=2).coins(1, seeds=[42], count=4)
    assert bool(sample[0, 0]) == bool(coins["sample"][42, 0])  # whatever the batch
    over_steps = [bool(Curriculum(unit="step", steps=100).coins(50, seeds=[0], count=1)[0, 0])]
    over_steps += [
        bool(Curriculum(unit="step", steps=1000).coins(s, seeds=[0], count=1)[0, 0]) for s in range(450, 550)
    ]
    assert 20 < sum(over_steps) < 80


@pytest.mark.parametrize("unit", ["sample", "step"])
def test_start_and_end_of_the_curriculum(unit: str) -> None:
    maps = smooth_maps(12)
    sampler = SequentialRegions(regions=FINE, curriculum=Curriculum(unit=unit, steps=10))  # type: ignore[arg-type]
    blocks = MultiBlock()(ones(maps), seeds=range(12))
    assert same(sampler(ones(maps), seeds=range(12), saliency=maps, step=0), blocks)
    regions = SequentialRegions(regions=FINE)(ones(maps), seeds=range(12), saliency=maps)
    assert same(sampler(ones(maps), seeds=range(12), saliency=maps, step=10), regions)


def test_rejected_regions_become_rectangles() -> None:
    maps = smooth_maps(40)
    sampler = SequentialRegions(regions=FINE, curriculum=Curriculum(unit="region", steps=10))
    start = sampler(ones(maps), seeds=range(40), saliency=maps, step=0)
    first = (start.rank == 0).double().mean((1, 2))
    assert float(first.min()) > 0.1  # region 1 is a whole rectangle of 0.15 to 0.2 of the map
    assert float(first.max()) < 0.25
    assert torch.equal(start.rank, sampler(ones(maps), seeds=range(40), saliency=-maps, step=0).rank)
    half = sampler(ones(maps), seeds=range(40), saliency=maps, step=5)
    for sequence in (start, half):
        covered = torch.cat([(sequence.rank == 0).unsqueeze(1), sequence.targets], dim=1).sum(1)
        assert torch.equal(covered, torch.ones_like(covered))  # disjoint, and everything
        for step in range(4):
            assert not (sequence.context(step) & sequence.targets[:, step]).any()
    end = sampler(ones(maps), seeds=range(40), saliency=maps, step=10)
    assert same(end, SequentialRegions(regions=FINE)(ones(maps), seeds=range(40), saliency=maps))


def test_a_function_of_the_seeds_and_the_step() -> None:
    maps = smooth_maps(6)
    sampler = SequentialRegions(regions=FINE, curriculum=Curriculum(steps=10))
    a = sampler(ones(maps), seeds=range(6), saliency=maps, step=4)
    b = sampler(ones(maps)[2:], seeds=range(2, 6), saliency=maps[2:], step=4)
    assert torch.equal(a.rank[2:], b.rank)
    assert torch.equal(a.targets[2:], b.targets)
    assert not torch.equal(a.rank, sampler(ones(maps), seeds=range(10, 16), saliency=maps, step=4).rank)


def test_birds_eye_view_cells() -> None:
    """Beside the random masks of BEV cells: the same call, with point density as the saliency."""
    generator = torch.Generator().manual_seed(0)
    points = torch.poisson(smooth_maps(8, size=40, sigma=3.0).float().exp() * 1.5 - 1 + 1e-3, generator)
    points = points.nan_to_num().clamp_min(0)
    occupied = points > 0
    samplers = [RandomCells(), SequentialRegions(regions=FINE)]
    for sampler in samplers:
        sampler(occupied, seeds=range(8))  # the protocol both keep
    sequence = SequentialRegions(regions=FINE)(occupied, seeds=range(8), saliency=points)
    assert bool(sequence.valid.any(1).all())
    used = (sequence.rank >= 0) | sequence.targets.any(1)
    assert not (used & ~occupied).any()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"unit": "epoch", "steps": 3}, ValueError, "region, sample or step"),
        ({"steps": 0}, ValueError, "at least 1 step"),
        ({"steps": 3, "units": "step"}, TypeError, "units"),
    ],
)
def test_bad_curriculum(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Curriculum(**changes)


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="order"):
        SequentialRegions(order="random")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="1 seeds for a batch of 2"):
        SequentialRegions()(torch.ones(2, 4, 4, dtype=torch.bool), seeds=[0])
    with pytest.raises(ValueError, match=r"\[B, H, W\] bool"):
        SequentialRegions()(torch.ones(4, 4, dtype=torch.bool), seeds=[0])
