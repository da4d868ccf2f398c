"""Statistics: what they are of, units there and back, and every way they can be missing or wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from policies.imitation.batches import ObservationError
from policies.imitation.statistics import MissingStatistics, Statistics
from tests.policies.imitation.toys import DA, DE, DS, batch, demonstration, demonstrations, statistics

LOW, HIGH = -np.ones(DA), np.ones(DA)


def test_they_are_mean_and_deviation_of_all_steps() -> None:
    shown = demonstrations()
    made = statistics(shown)
    states = np.concatenate([d.state for d in shown])
    np.testing.assert_allclose(made.state_mean, states.mean(0), rtol=1e-5)
    np.testing.assert_allclose(made.state_std, states.std(0), rtol=1e-5)
    scores = torch.cat([made.normalise_batch(batch(size=200)).state[:, 0]])
    torch.testing.assert_close(scores.mean(0), torch.zeros(DS), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.std(0, correction=0), torch.ones(DS), atol=1e-5, rtol=0)


def test_what_does_not_vary_is_not_blown_up() -> None:
    shown = [replace(d, state=d.state * 0 + 2) for d in demonstrations()]
    made = statistics(shown)
    assert made.state_std.tolist() == [1.0] * DS
    assert made.environment_std is not None
    assert made.environment_std[3] == pytest.approx(0.01)  # constant 1
    assert made.environment_mean is not None
    assert made.environment_mean[3] == 1


def test_hidden_actions_are_not_read() -> None:
    shown = demonstrations(3)
    wild = replace(shown[0], action=shown[0].action + 100)
    made = Statistics.measured([wild, *shown[1:]], action_low=LOW, action_high=HIGH, action_free={0})
    expected = Statistics.measured(shown[1:], action_low=LOW, action_high=HIGH)
    assert torch.equal(made.action_mean, expected.action_mean)
    assert not torch.equal(made.state_mean, expected.state_mean)


def test_actions_there_and_back() -> None:
    made = Statistics.measured(demonstrations(), action_low=LOW, action_high=HIGH)
    data = batch()
    torch.testing.assert_close(made.executable(made.normalise_batch(data).action), data.action)
    assert torch.equal(made.executable(torch.full((1, DA), 1e3)), torch.ones(1, DA))


def test_without_normalisation() -> None:
    made = Statistics.identity(action_low=LOW, action_high=HIGH, state_dim=DS, environment_dim=DE)
    data = batch()
    assert torch.equal(made.normalise_batch(data).state, data.state)
    assert torch.equal(made.executable(data.action), data.action)
    made.require()


def test_they_round_trip_through_a_state_dict_and_are_required() -> None:
    made = statistics()
    empty = Statistics(state_dim=DS, action_dim=DA, environment_dim=DE)
    with pytest.raises(MissingStatistics, match=r"state_mean.*environment_std"):
        empty.require()
    with pytest.raises(RuntimeError, match="Missing key"):
        empty.load_state_dict({})
    empty.load_state_dict({}, strict=False)
    with pytest.raises(MissingStatistics):
        empty.require()
    empty.load_state_dict(made.state_dict())
    empty.require()
    assert all(torch.equal(a, b) for a, b in zip(empty.buffers(), made.buffers(), strict=True))
    assert len(made.state_dict()) == 8


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="training split is empty"):
        Statistics.measured([], action_low=LOW, action_high=HIGH)
    with pytest.raises(ValueError, match="at least one demonstration with actions"):
        Statistics.measured(demonstrations(1), action_low=LOW, action_high=HIGH, action_free={0})
    mixed = [demonstration(0), replace(demonstration(1), environment=None)]
    with pytest.raises(ObservationError, match="width of environment: 4, none"):
        Statistics.measured(mixed, action_low=LOW, action_high=HIGH)
    for low, high in ((HIGH, LOW), (np.ones(3), np.ones(3)), (LOW * np.nan, HIGH)):
        with pytest.raises(ValueError, match="low <= high"):
            Statistics.measured(demonstrations(), action_low=low, action_high=high)
