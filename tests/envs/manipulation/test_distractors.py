"""Distractors: the task is what it was, the noise is a function of the seed, with the statistics it claims."""

import numpy as np
import pytest

from envs.manipulation import EnvOptions, demonstrate, make_env
from envs.manipulation.distractors import PERSISTENCE, Distracted
from tests.envs.manipulation import toy

assert toy.SUITES


def test_the_task_is_as_without_and_only_the_state_is_longer() -> None:
    plain = demonstrate(make_env("toy/reach"), seed=1)
    noisy = demonstrate(make_env("toy/reach", EnvOptions(distractors=3)), seed=1)
    assert np.array_equal(noisy.state[:, :2], plain.state)
    assert np.array_equal(noisy.action, plain.action)
    assert np.array_equal(noisy.environment, plain.environment)  # type: ignore[arg-type]
    assert noisy.state.shape[1] == 5
    assert noisy.state.dtype == np.float32


def test_noise_is_a_function_of_the_seed() -> None:
    env = make_env("toy/reach", EnvOptions(distractors=2))
    first, again, other = (demonstrate(env, seed=s).state[:, 2:] for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[:1], other[:1])


def test_noise_is_stationary_and_drifts() -> None:
    env = Distracted(make_env("toy/reach", EnvOptions(max_steps=10_000)), 20)
    seen = [env.reset(seed=4)[0]["state"]]
    seen += [env.step(np.zeros(2, np.float32))[0]["state"] for _ in range(5000)]
    noise = np.stack(seen)[:, 2:]
    assert noise.var() == pytest.approx(1.0, abs=0.05)
    assert (noise[1:] * noise[:-1]).mean() == pytest.approx(PERSISTENCE, abs=0.05)


def test_a_count_below_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Distracted(make_env("toy/reach"), -1)
