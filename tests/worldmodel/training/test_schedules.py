"""One-cycle schedules at their corners, against the published shape."""

import math

import pytest

from worldmodel.training.schedules import OneCycle, WarmupCosine

CYCLE = OneCycle(max_lr=3e-4)


def test_corners() -> None:
    assert CYCLE.at(0, 1000) == pytest.approx((3e-5, 0.95))
    assert CYCLE.at(400, 1000) == pytest.approx((3e-4, 0.85))
    assert CYCLE.at(1000, 1000) == pytest.approx((3e-9, 0.95))
    rate, beta1 = CYCLE.at(999, 1000)  # the last step that is taken
    assert 3e-9 < rate < 3e-8
    assert beta1 == pytest.approx(0.95, abs=1e-6)


def test_half_way_of_both_phases() -> None:
    assert CYCLE.at(200, 1000) == pytest.approx(((3e-5 + 3e-4) / 2, 0.9))
    assert CYCLE.at(700, 1000) == pytest.approx(((3e-9 + 3e-4) / 2, 0.9))


def test_one_rise_and_one_fall_without_jumps() -> None:
    rates = [CYCLE.at(s, 500)[0] for s in range(501)]
    peak = rates.index(max(rates))
    assert peak == 200
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(abs(a - b) for a, b in zip(rates[1:], rates[:-1], strict=True)) < 3e-4 * math.pi / 2 / 200


@pytest.mark.parametrize(
    "bad", [{"max_lr": 0.0}, {"max_lr": 1.0, "warmup": 1.0}, {"max_lr": 1.0, "start_div": 0.0}]
)
def test_bad_settings(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        OneCycle(**bad)


def test_warmup_then_cosine_at_their_corners() -> None:
    """4e-4 between two ends of 1e-5: the trace of seq-JEPA's recipe, at a scale of 20 + 80 steps."""
    schedule = WarmupCosine(max_lr=4e-4, warmup=20, start_lr=1e-5, end_lr=1e-5)
    assert schedule.at(0, 100)[0] == pytest.approx(1e-5 + 3.9e-4 / 20)
    assert schedule.at(19, 100)[0] == pytest.approx(4e-4)
    assert schedule.at(20, 100) == pytest.approx((4e-4, 0.9))
    assert schedule.at(60, 100)[0] == pytest.approx((4e-4 + 1e-5) / 2)
    assert schedule.at(100, 100)[0] == pytest.approx(1e-5)
    rates = [schedule.at(s, 100)[0] for s in range(100)]
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert WarmupCosine(max_lr=1.0, warmup=0).at(0, 10) == (1.0, 0.9)


@pytest.mark.parametrize(
    "bad", [{"max_lr": 0.0}, {"max_lr": 1.0, "warmup": -1}, {"max_lr": 1.0, "end_lr": -1.0}]
)
def test_bad_warmup(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        WarmupCosine(**bad)  # type: ignore[arg-type]
