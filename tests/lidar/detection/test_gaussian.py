"""Peaks of heat maps against a drawing cell by cell, and their radius against the formula."""

import math

import pytest
import torch

from lidar.detection.gaussian import draw_peaks, gaussian_radius


def test_radius_by_hand():
    """10 x 4 cells at overlap 0.1: the third quadratic decides, divided by 2."""
    expected = (-2.8 + math.sqrt(2.8**2 + 4 * 0.4 * 0.9 * 40)) / 2
    r = gaussian_radius(torch.tensor([10.0, 4.0]), torch.tensor([4.0, 10.0]), overlap=0.1)
    torch.testing.assert_close(r, torch.full((2,), expected))
    for overlap in (0.1, 0.5, 0.7):
        h, w, o = 10.0, 4.0, overlap
        roots = [
            (h + w + math.sqrt((h + w) ** 2 - 4 * w * h * (1 - o) / (1 + o))) / 2,
            (2 * (h + w) + math.sqrt(4 * (h + w) ** 2 - 16 * (1 - o) * w * h)) / 2,
            (-2 * o * (h + w) + math.sqrt(4 * o * o * (h + w) ** 2 - 16 * o * (o - 1) * w * h)) / 2,
        ]
        r = gaussian_radius(torch.tensor([h]), torch.tensor([w]), overlap=o)
        assert float(r) == pytest.approx(min(roots), rel=1e-6)


def slowly_drawn(shape, objects):
    heat = torch.zeros(shape)
    for sample, label, (y, x), radius in objects:
        for i in range(max(0, y - radius), min(shape[2], y + radius + 1)):
            for j in range(max(0, x - radius), min(shape[3], x + radius + 1)):
                value = math.exp(-((i - y) ** 2 + (j - x) ** 2) / (2 * ((2 * radius + 1) / 6) ** 2))
                heat[sample, label, i, j] = max(heat[sample, label, i, j], value)
    return heat


def test_peaks_cell_by_cell():
    objects = [
        (0, 0, (5, 6), 2), (0, 0, (6, 8), 3), (1, 0, (0, 0), 4), (1, 1, (11, 15), 2), (0, 1, (11, 0), 20),
        (1, 0, (0, 0), 2),
    ]  # fmt: skip
    sample, label, cell, radius = (torch.tensor(v) for v in zip(*objects, strict=True))
    heat = draw_peaks((2, 2, 12, 16), sample=sample, label=label, cell=cell, radius=radius)
    torch.testing.assert_close(heat, slowly_drawn((2, 2, 12, 16), objects), atol=1e-6, rtol=0)
    assert int((heat == 1).sum()) == 5


def test_a_peak_is_symmetric():
    first = torch.tensor([0])
    heat = draw_peaks((1, 1, 9, 9), sample=first, label=first, cell=torch.tensor([[4, 4]]), radius=first + 3)
    one = heat[0, 0]
    assert torch.equal(one, one.T)
    assert torch.equal(one, one.flip(0))
    assert torch.equal(one, one.flip(1))


def test_nothing_to_draw():
    none = torch.zeros(0, dtype=torch.int64)
    assert not draw_peaks((1, 1, 4, 4), sample=none, label=none, cell=none.view(0, 2), radius=none).any()
