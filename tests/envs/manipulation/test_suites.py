"""The other simulators behind the protocol: what each of them promises, and its expert."""

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("gymnasium_robotics")

from envs.manipulation import EnvOptions, NoExpertError, demonstrate, env_names, make_env
from envs.manipulation.conformance import check_manipulation_env
from tests.envs.manipulation.conftest import can_draw

NEEDS = {
    "ogbench": "ogbench",
    "aloha": "gym_aloha",
    "push_t": "gym_pusht",
    "point_maze": "gymnasium_robotics",
}


def made(name: str, **options: int) -> object:
    pytest.importorskip(NEEDS[name.partition("/")[0]])
    return make_env(name, EnvOptions(image_size=32, **options))


@pytest.mark.parametrize(
    "name",
    ["ogbench/cube-single", "aloha/transfer-cube", "push_t/keypoints", "point_maze/UMaze"],
)
def test_conforms(name: str) -> None:
    drawn_by_mujoco = name.startswith(("ogbench", "aloha"))
    check_manipulation_env(made(name, max_steps=30), render=not drawn_by_mujoco or can_draw())


@pytest.mark.parametrize(
    "name",
    [
        "ogbench/cube-single",
        "aloha/transfer-cube",
        "point_maze/UMaze",
        pytest.param("ogbench/cube-double", marks=pytest.mark.slow),
        pytest.param("aloha/insertion", marks=pytest.mark.slow),
    ],
)
def test_experts_succeed_within_the_bounds_and_their_episodes_repeat(name: str) -> None:
    env = made(name)
    found = demonstrate(env, seed=2, image=False)
    assert found.success
    assert 5 < len(found) < env.max_steps
    again = demonstrate(made(name), seed=2, image=False)
    assert np.array_equal(found.state, again.state)


def test_steps_of_the_suites() -> None:
    usual = {
        name: make_env(name).max_steps
        for name in ("point_maze/UMaze", "point_maze/Large", "push_t/keypoints")
    }
    assert usual == {"point_maze/UMaze": 300, "point_maze/Large": 800, "push_t/keypoints": 300}


def test_a_goal_of_ogbench_is_seen_and_away_from_its_cube() -> None:
    env = made("ogbench/cube-double")
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        rows = observation["environment"]
        wanted, goal = int(rows[18:20].argmax()), rows[20:23]
        assert np.linalg.norm(goal - rows[9 * wanted :][:3]) > 0.8  # 8 cm


def test_aloha_starts_within_its_bounds_and_holds_its_pose() -> None:
    env = made("aloha/transfer-cube")
    start, _ = env.reset(seed=0)
    pose = start["state"]
    assert (env.action.low - 0.01 <= pose).all()
    assert (pose <= env.action.high + 0.01).all()
    for _ in range(50):
        later, *_ = env.step(pose)
    assert abs(later["state"][:6] - pose[:6]).max() < 0.1


def test_the_ball_and_the_goal_are_drawn_where_they_are() -> None:
    env = made("point_maze/UMaze")
    env.reset(seed=3)
    image = env.render().astype(int)
    ball, goal = (
        np.argwhere((image == colour).all(axis=2)).mean(axis=0) for colour in ((200, 60, 50), (60, 160, 75))
    )
    place = env.info["state"][:2] - env.problem.goal[:2]
    pixel = 5 / 32  # m
    assert (ball - goal)[::-1] * [pixel, -pixel] == pytest.approx(place, abs=2 * pixel)


def test_success_of_push_t_is_coverage() -> None:
    pytest.importorskip("gym_pusht")
    env = make_env("push_t/keypoints")
    env.reset(seed=0)
    env._env.block.angle = float(env._env.goal_pose[2])
    env._env.block.position = env._env.goal_pose[:2].tolist()
    _, reward, _, _, info = env.step(np.array([30.0, 30.0]))
    assert info["success"]
    assert reward == pytest.approx(1)


def test_where_there_is_no_expert_the_error_says_so() -> None:
    with pytest.raises(NoExpertError, match="Push-T has no scripted expert; load demonstrations"):
        made("push_t/keypoints").expert()


def test_errors_name_the_fix() -> None:
    for name in ("ogbench/maze", "aloha/fold", "push_t/pull", "point_maze/Huge"):
        with pytest.raises(ValueError, match=name.partition("/")[2]):
            make_env(name)
    for name in ("ogbench/cube-single", "aloha/insertion", "push_t/keypoints", "point_maze/UMaze"):
        with pytest.raises(ValueError, match="max_steps"):
            make_env(name, EnvOptions(max_steps=0))
    assert "ogbench/cube-triple" in env_names("ogbench")
    with pytest.raises(TypeError, match="acts in OGBench"):
        made("ogbench/cube-single").expert().act(made("point_maze/UMaze"))
    aloha = made("aloha/insertion")
    aloha.reset(seed=0)
    with pytest.raises(TypeError, match="ALOHA acts there"):
        aloha.expert().act(made("point_maze/UMaze"))
    with pytest.raises(TypeError, match="acts there"):
        made("point_maze/UMaze").expert().act(made("push_t/keypoints"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ogbench.manipspace.envs.cube_env", None)
    with pytest.raises(ImportError, match=r"pip install 'robot-worldmodel\[manipulation\]'"):
        make_env("ogbench/cube-single")
