"""I-JEPA's rectangles: sizes, shapes, places, disjoint context, a pure function of the seeds."""

import numpy as np
import pytest
import torch

from worldmodel.masking.multiblock import MultiBlock, random_rectangle

ALL = torch.ones(200, 14, 14, dtype=torch.bool)


def sides(mask: torch.Tensor) -> tuple[int, int]:
    """Height and width of the rectangle that a mask [H, W] is."""
    rows, columns = mask.any(1), mask.any(0)
    assert torch.equal(mask, rows.unsqueeze(1) & columns)
    for line in (rows, columns):
        places = line.nonzero().flatten()
        assert int(places[-1] - places[0]) + 1 == len(places)
    return int(rows.sum()), int(columns.sum())


def test_targets_are_rectangles_of_the_configured_size() -> None:
    sequence = MultiBlock()(ALL, seeds=range(200))
    assert sequence.targets.shape == (200, 4, 14, 14)
    found = [sides(m) for m in sequence.targets.flatten(0, 1)]
    areas = torch.tensor([h * w for h, w in found]) / 14**2
    # Rounding both sides moves an area by less than half a row and half a column.
    assert 0.15 - 7 / 196 < float(areas.min()) < 0.15
    assert 0.2 < float(areas.max()) < 0.2 + 7 / 196
    assert float(areas.mean()) == pytest.approx(0.175, abs=0.004)
    ratios = torch.tensor([h / w for h, w in found])
    assert 0.6 < float(ratios.min()) < 0.85
    assert 1.3 < float(ratios.max()) < 1.9


def test_places_are_uniform() -> None:
    generator = np.random.default_rng(0)
    tops = []
    for _ in range(2000):
        mask = random_rectangle((10, 10), scale=(0.09, 0.09), aspect=(1, 1), generator=generator)
        assert mask.sum() == 9
        tops.append(int(np.argwhere(mask)[0, 0]))
    counts = np.bincount(tops, minlength=8)
    assert len(counts) == 8
    assert abs(counts - 250).max() < 5 * (250 * 7 / 8) ** 0.5


def test_rectangles_are_cut_to_the_map() -> None:
    generator = np.random.default_rng(0)
    mask = random_rectangle((4, 30), scale=(1, 1), aspect=(1, 1), generator=generator)
    assert sides(torch.from_numpy(mask)) == (4, 11)
    tiny = random_rectangle((4, 4), scale=(1e-6, 1e-6), aspect=(1, 1), generator=generator)
    assert tiny.sum() == 1


def test_context_is_disjoint_from_every_target() -> None:
    sequence = MultiBlock()(ALL, seeds=range(200))
    assert not (sequence.context(0).unsqueeze(1) & sequence.targets).any()
    assert torch.equal(sequence.context(0), sequence.context(3))  # all steps share it
    assert bool(sequence.valid.all())
    share = sequence.context(0).double().mean((1, 2))
    assert 0.3 < float(share.mean()) < 0.7


def test_only_occupied_cells() -> None:
    occupied = torch.rand(50, 14, 14, generator=torch.Generator().manual_seed(0)) < 0.3
    occupied[0] = False
    sequence = MultiBlock()(occupied, seeds=range(50))
    assert not (sequence.targets & ~occupied.unsqueeze(1)).any()
    assert not (sequence.context(0) & ~occupied).any()
    assert not sequence.valid[0].any()
    assert bool(sequence.valid[1:].any(1).all())


def test_context_keeps_its_minimum() -> None:
    few = MultiBlock(targets=4, min_context=12)(torch.ones(100, 6, 6, dtype=torch.bool), seeds=range(100))
    assert int(few.context(0).flatten(1).sum(1).min()) >= 12
    hopeless = MultiBlock(target_scale=(1.0, 1.0), target_aspect=(1.0, 1.0))(ALL[:1], seeds=[0])
    assert not hopeless.valid.any()  # no context is left: nothing is asked


def test_a_function_of_each_seed() -> None:
    first = MultiBlock()(ALL[:4], seeds=[5, 6, 7, 8])
    again = MultiBlock()(ALL[:2], seeds=[7, -1])
    assert torch.equal(first.targets[2], again.targets[0])
    assert torch.equal(first.rank[2], again.rank[0])
    assert not torch.equal(first.targets[0], first.targets[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_scale": (0.2, 0.1)}, "target_scale"),
        ({"context_scale": (0.5, 1.5)}, "context_scale"),
        ({"target_aspect": (0.0, 1.0)}, "target_aspect"),
        ({"targets": 0}, "targets and min_context"),
        ({"min_context": 0}, "targets and min_context"),
    ],
)
def test_bad_settings(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiBlock(**changes)


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="blocks"):
        MultiBlock(blocks=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="2 seeds for a batch of 200"):
        MultiBlock()(ALL, seeds=[1, 2])
    with pytest.raises(ValueError, match=r"\[B, H, W\] bool"):
        MultiBlock()(ALL.float(), seeds=range(200))
