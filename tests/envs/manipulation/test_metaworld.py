"""Meta-World: the protocol, seeds, experts, pictures."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("metaworld")

from envs.manipulation import demonstrate
from envs.manipulation.conformance import check_manipulation_env
from envs.manipulation.metaworld import MetaWorld, task_names
from envs.manipulation.rendering import PRESETS
from tests.envs.manipulation.conftest import can_draw


@pytest.fixture(scope="module")
def drawer() -> Iterator[MetaWorld]:
    env = MetaWorld("drawer-open", image_size=32, max_steps=120)
    yield env
    env.close()


def test_conforms(drawer: MetaWorld) -> None:
    check_manipulation_env(drawer, render=can_draw())


def test_there_are_fifty_tasks() -> None:
    assert len(task_names()) == 50
    assert {"drawer-open", "disassemble", "pick-place", "window-close"} <= set(task_names())


def test_the_expert_opens_the_drawer_and_stays_within_the_bounds(drawer: MetaWorld) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the library warns of actions beyond the bounds
        found = demonstrate(drawer, seed=7, image=False)
    assert found.success
    assert len(found) < 120
    assert abs(found.action).max() <= 1
    assert found.environment is not None
    assert found.state.shape[1:] + found.environment.shape[1:] == (4, 35)
    assert found.environment[0, -3:].any()  # the goal is seen


def test_seeds_place_objects_and_the_hand_starts_where_the_library_has_it() -> None:
    env = MetaWorld("reach")
    starts = [env.reset(seed=seed)[0] for seed in (0, 1, 0)]
    assert not np.array_equal(starts[0]["environment"], starts[1]["environment"])
    assert np.array_equal(starts[0]["environment"], starts[2]["environment"])
    assert np.array_equal(starts[0]["state"], starts[1]["state"])
    assert not np.array_equal(env.reset()[0]["environment"], env.reset()[0]["environment"])


@pytest.mark.usefixtures("opengl")
def test_instances_agree_bit_for_bit_whatever_happened_before(drawer: MetaWorld) -> None:
    other = MetaWorld("drawer-open", image_size=32, max_steps=120)
    first = demonstrate(drawer, seed=3, noise=0.3, image=False)
    second = demonstrate(other, seed=3, noise=0.3, image=False)
    assert np.array_equal(first.state, second.state)
    assert np.array_equal(first.action, second.action)
    assert np.array_equal(drawer.render(), other.render())
    other.close()


@pytest.mark.usefixtures("opengl")
def test_two_environments_draw_in_turn_without_mixing() -> None:
    envs = [MetaWorld(task, image_size=48) for task in ("drawer-open", "button-press")]
    alone = []
    for env in envs:
        env.reset(seed=0)
        alone.append(env.render())
    assert abs(alone[0].astype(int) - alone[1]).mean() > 2
    for _ in range(2):
        for env, image in zip(envs, alone, strict=True):
            env.reset(seed=0)
            assert np.array_equal(env.render(), image)


def test_the_first_picture_has_the_marker_of_the_goal_in_its_place() -> None:
    env = MetaWorld("reach")
    observation, _ = env.reset(seed=1)
    marker = env._env.data.site("goal").xpos
    assert observation["environment"][-3:] == pytest.approx(marker, abs=1e-6)


@pytest.mark.usefixtures("opengl")
def test_pictures_are_upright_and_presets_differ(drawer: MetaWorld) -> None:
    library = MetaWorld("drawer-open", image_size=32, preset="library")
    drawer.reset(seed=0)
    library.reset(seed=0)
    image = drawer.render()
    red = (image[..., 0].astype(int) - image[..., 1:].max(axis=2)) > 80
    assert 8 < np.argwhere(red)[:, 1].mean() < 16  # the arm stands on the left
    assert np.argwhere(red)[:, 0].mean() < 22  # and rises above the table
    assert 0.5 < abs(library.render().astype(int) - image).mean() < 40
    assert {*PRESETS} == {"fast", "library"}


def test_errors_name_the_fix() -> None:
    with pytest.raises(ValueError, match=r"no task 'drawer'.*drawer-open"):
        MetaWorld("drawer")
    with pytest.raises(ValueError, match="preset must be one of fast, library"):
        MetaWorld("reach", preset="ugly")
    with pytest.raises(ValueError, match="1 to 500"):
        MetaWorld("reach", max_steps=501)
    env = MetaWorld("reach", image_size=0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="image size"):  # before OpenGL is asked for
        env.render()
    with pytest.raises(TypeError, match="acts in Meta-World"):
        env.expert().act(object())  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("task", task_names())
def test_every_task_is_solved_by_its_expert(task: str) -> None:
    env = MetaWorld(task, max_steps=500)
    first = demonstrate(env, seed=0, image=False)
    successes = [first.success, *(demonstrate(env, seed=s, image=False).success for s in range(1, 5))]
    assert sum(successes) >= 3
    again = demonstrate(env, seed=0, image=False)
    assert np.array_equal(first.state, again.state)
