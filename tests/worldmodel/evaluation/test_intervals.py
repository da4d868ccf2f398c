"""t intervals against SciPy's."""

import math

import pytest
from scipy import stats

from worldmodel.evaluation.intervals import interval, paired

A, B = [0.91, 0.88, 0.95, 0.90], [0.85, 0.87, 0.91, 0.83]


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_interval_against_scipy(confidence: float) -> None:
    found = interval(A, confidence=confidence)
    expected = stats.ttest_1samp(A, 0).confidence_interval(confidence)
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert found.sd == pytest.approx(stats.tstd(A))
    assert found.count == 4


def test_paired_against_scipy() -> None:
    found = paired(A, B)
    expected = stats.ttest_rel(A, B).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_one_seed_has_a_mean_and_no_interval() -> None:
    found = interval([0.5])
    assert found.mean == 0.5
    assert math.isnan(found.sd)
    assert math.isnan(found.low)


def test_errors() -> None:
    with pytest.raises(ValueError, match="finite"):
        interval([])
    with pytest.raises(ValueError, match="finite"):
        interval([1.0, math.nan])
    with pytest.raises(ValueError, match="same seeds"):
        paired(A, B[:2])
    with pytest.raises(ValueError, match="confidence"):
        interval(A, confidence=1.0)
