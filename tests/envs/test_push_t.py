"""Push-T: the official bodies and coverage, an exact state, success, behaviour, episodes."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("pymunk")
gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("gym_pusht")

from envs.episodes import check_episodes  # noqa: E402
from envs.goals import GoalEnv, Problem, check_goal_env, trivially_solved  # noqa: E402
from envs.push_t import PushT, PushTEpisodes, behave, pose_split, sample_state  # noqa: E402
from envs.push_t_physics import OUTLINE, SIDE, clearance, coverage, shared_table, to_world  # noqa: E402


def official(state: np.ndarray) -> Any:
    env = gymnasium.make("gym_pusht/PushT-v0").unwrapped
    env.reset(seed=0)
    env.agent.position, env.agent.velocity = state[:2].tolist(), state[2:4].tolist()
    env.block.angle = float(state[6])
    env.block.position = state[4:6].tolist()
    return env


def test_physics_is_the_official_one_up_to_the_memory_of_contacts() -> None:
    start = np.array([200.0, 200.0, 0.0, 0.0, 256.0, 256.0, 0.5])
    states, actions = behave(start, 40, relative=False, generator=np.random.default_rng(0))
    env = official(start)
    worst_agent, block = 0.0, []
    for state, action in zip(states[1:], actions.astype(float), strict=True):
        env.step(action)
        worst_agent = max(worst_agent, abs(np.array(env.agent.position) - state[:2]).max())
        block.append(np.linalg.norm(np.array(env.block.position) - state[4:6]))
    assert np.linalg.norm(states[-1, 4:6] - start[4:6]) > 30  # something was pushed
    assert worst_agent < 1e-9
    first_contact = int(np.flatnonzero(abs(states[1:, 4:] - start[4:]).max(axis=1) > 1e-9)[0])
    assert block[first_contact] < 1e-9
    assert max(block) < 0.1 * np.linalg.norm(np.diff(states[:, 4:6], axis=0), axis=1).sum()


def test_coverage_is_the_official_one() -> None:
    state = np.array([50.0, 50.0, 0.0, 0.0, 270.0, 262.0, 1.1])
    env = official(state)
    assert coverage(state[4:], env.goal_pose) == pytest.approx(env._get_coverage(), abs=1e-6)
    assert coverage(state[4:], state[4:]) == pytest.approx(1.0)


@pytest.mark.parametrize(("goals", "relative"), [("behaviour", True), ("random", False)])
def test_environment_conforms(goals: str, relative: bool) -> None:
    env = PushT(goals=goals, relative=relative, ahead=10)  # type: ignore[arg-type]
    assert isinstance(env, GoalEnv)
    check_goal_env(env, seeds=2, atol=0.0)


def test_success_needs_places_and_angle() -> None:
    env = PushT()
    goal = np.array([100.0, 100.0, 0.0, 0.0, 250.0, 250.0, 3.1])
    problem = Problem(seed=0, split="test", start=goal + 50, goal=goal, layout=np.zeros(0))
    near = np.tile(goal, (5, 1))
    near[1, 0] += 19
    near[2, [0, 4]] += 19  # both places count together
    near[3, 6] += 2 * np.pi + np.pi / 9 - 0.01  # whole turns do not count
    near[4, 6] += np.pi / 9 + 0.01
    assert env.success(problem, near).tolist() == [True, True, False, True, False]
    assert env.distance(problem, near)[[0, 1]] == pytest.approx([0, 19])
    assert not trivially_solved(env, problem)


def test_starts_are_legal_and_of_their_split() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        state = sample_state("test", generator=rng)
        assert pose_split(state[4:]) == "test"
        assert clearance(state[:2], state[4:]) > 0
        corners = to_world(OUTLINE, state[4:])
        assert corners.min() >= 0
        assert corners.max() <= SIDE


def test_clearance_is_the_distance_between_the_shapes() -> None:
    pose = np.array([250.0, 250.0, 0.7])
    local = np.array([[80.0, 15.0], [0.0, 150.0], [30.0, 60.0], [0.0, 15.0]])
    expected = [5.0, 15.0, 0.0, -15.0]
    assert [clearance(p, pose) for p in to_world(local, pose)] == pytest.approx(expected)


def test_a_problem_is_solved_by_the_behaviour_that_made_it() -> None:
    env = PushT(ahead=15)
    problem = env.problem(3, "test")
    rng = np.random.default_rng((3, 2, 0x7057))
    start = sample_state("test", generator=rng)
    states, actions = behave(start, 15, relative=True, generator=rng)
    assert np.array_equal(start, problem.start)
    assert env.success(problem, states[-1:])[0]
    assert np.array_equal(env.simulate(problem, start[None], actions[None])[0, -1], states[-1])


def test_episodes() -> None:
    source = PushTEpisodes(split="train", episodes=3, length=60)
    check_episodes(source, steps=10)
    states = source.whole(0).labels["state"]
    assert pose_split(states[0, 4:].astype(float)) == "train"
    assert np.linalg.norm(np.diff(states[:, 4:6], axis=0), axis=1).sum() > 50
    assert states[:, 4:6].min() > 0
    assert states[:, 4:6].max() < SIDE


def test_what_was_simulated_before_leaves_no_trace() -> None:
    rng = np.random.default_rng(0)
    start = np.array([200.0, 200.0, 0.0, 0.0, 256.0, 256.0, 0.5])
    actions = rng.uniform(-100, 100, (10, 2))
    first = shared_table().advance(start, actions, relative=True)
    shared_table().advance(start + 20, rng.uniform(-100, 100, (10, 2)), relative=True)
    assert np.array_equal(first, shared_table().advance(start, actions, relative=True))


def test_errors_name_the_fix() -> None:
    with pytest.raises(ValueError, match="goals must be"):
        PushT(goals="expert")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="episodes >= 1"):
        PushTEpisodes(split="train", episodes=0)
