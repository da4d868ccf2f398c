"""The EMA teacher: its momentum, what it follows, what it does not."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from worldmodel.targets import EMATarget, SharedTarget, cosine_momentum, linear_momentum


def encoder(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("total", [1, 10, 6960])
def test_momentum_runs_linearly_from_start_to_just_below_one(total: int) -> None:
    momenta = [linear_momentum(start=0.996, progress=i / total) for i in range(total)]
    assert momenta[0] == pytest.approx(0.996, abs=1e-15)
    assert momenta[-1] == pytest.approx(1 - 0.004 / total, abs=1e-15)
    if total > 1:
        steps = [b - a for a, b in pairwise(momenta)]
        assert steps == pytest.approx([0.004 / total] * (total - 1), abs=1e-12)


def test_update_against_the_formula() -> None:
    online, target = encoder(0), EMATarget(encoder(1), momentum=0.9)
    before = [p.clone() for p in target.encoder.parameters()]
    assert target.update(online, progress=0.5) == pytest.approx(0.95)
    for old, new, source in zip(before, target.encoder.parameters(), online.parameters(), strict=True):
        torch.testing.assert_close(new, 0.95 * old + 0.05 * source, atol=1e-7, rtol=0)


def test_parameters_only_buffers_are_its_own() -> None:
    online = encoder()
    target = EMATarget(online, momentum=0.0)
    online(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) + 5)
    with torch.no_grad():
        online[0].weight.mul_(2)
    target.update(online, progress=0.0)
    torch.testing.assert_close(target.encoder[0].weight, online[0].weight)
    assert not target.encoder[1].running_mean.any()
    target(online, torch.ones(8, 3))
    assert target.encoder[1].num_batches_tracked == 1  # it normalises with, and tracks, what it sees
    assert online[1].num_batches_tracked == 1


def test_no_gradient_and_no_shared_memory() -> None:
    online = encoder()
    target = EMATarget(online, momentum=0.996)
    assert not any(p.requires_grad for p in target.parameters())
    assert not target(online, torch.ones(2, 3)).requires_grad
    with torch.no_grad():
        online[0].weight.zero_()
    assert target.encoder[0].weight.any()


def test_continues_from_a_saved_state() -> None:
    def run(target: EMATarget, online: nn.Module, steps: range) -> None:
        for step in steps:
            with torch.no_grad():
                for p in online.parameters():
                    p.add_(0.1 * (step + 1))
            target.update(online, progress=step / 10)

    whole, online = EMATarget(encoder(), momentum=0.9), encoder()
    run(whole, online, range(10))
    first, again = EMATarget(encoder(), momentum=0.9), encoder()
    run(first, again, range(4))
    saved = copy.deepcopy(first.state_dict())
    resumed = EMATarget(encoder(seed=9), momentum=0.9)
    resumed.load_state_dict(saved)
    run(resumed, again, range(4, 10))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_bad_momentum(momentum: float) -> None:
    with pytest.raises(ValueError, match="momentum"):
        EMATarget(encoder(), momentum=momentum)


def test_shared_target_is_the_encoder_with_gradient() -> None:
    online, target = encoder(), SharedTarget()
    assert target(online, torch.randn(4, 3)).requires_grad
    assert not list(target.parameters())
    assert target.update(online, progress=0.0) is None  # type: ignore[func-returns-value]


def test_cosine_momentum_at_the_first_and_the_last_step() -> None:
    total = 1000
    momenta = [cosine_momentum(start=0.99, progress=i / total) for i in range(total)]
    assert momenta[0] == pytest.approx(0.99, abs=1e-15)
    assert momenta[500] == pytest.approx(0.995, abs=1e-12)
    assert 1 - 1e-7 < momenta[-1] < 1
    assert momenta == sorted(momenta)
    target = EMATarget(encoder(1), momentum=0.99, schedule="cosine")
    assert target.update(encoder(0), progress=0.5) == pytest.approx(0.995)
    with pytest.raises(ValueError, match="schedule is linear or cosine"):
        EMATarget(encoder(), momentum=0.9, schedule="square")  # type: ignore[arg-type]


def test_buffers_are_taken_over_where_asked() -> None:
    online = encoder()
    target = EMATarget(online, momentum=0.9, copy_buffers=True)
    online(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) + 5)
    target.update(online, progress=0.0)
    for mine, its in zip(target.encoder.buffers(), online.buffers(), strict=True):
        assert torch.equal(mine, its)
