"""Two rooms: exact walls against small steps, pictures, episodes, held-out layouts, planning on the true dynamics."""

import subprocess
import sys

import numpy as np
import pytest

from envs import two_rooms_geometry as geometry
from envs.episodes import ActionBlocks, check_episodes
from envs.goals import SPLITS, GoalEnv, check_goal_env, trivially_solved
from envs.two_rooms import MAX_STEP, TwoRooms, TwoRoomsEpisodes, walk

pytest.importorskip("gymnasium")

LAYOUT = np.array([32.0, 18.0])


def in_wall(positions: np.ndarray, layout: np.ndarray, skin: float = 1e-9) -> np.ndarray:
    x, y = positions[:, 0], positions[:, 1]
    outside = (positions < geometry.BORDER_LOW - skin) | (positions > geometry.BORDER_HIGH + skin)
    across = abs(x - layout[0]) < geometry.WALL_HALF_WIDTH - skin
    return outside.any(axis=1) | (across & (abs(y - layout[1]) > geometry.DOOR_HALF_WIDTH + skin))


def free_positions(count: int, rng: np.random.Generator) -> np.ndarray:
    points = rng.uniform(geometry.BORDER_LOW, geometry.BORDER_HIGH, (4 * count, 2))
    return points[~in_wall(points, LAYOUT)][:count]


def test_moves_stop_where_small_steps_first_meet_a_wall() -> None:
    rng = np.random.default_rng(0)
    start = free_positions(400, rng)
    start[:200, 0] = rng.uniform(28, 36, 200)  # many near wall and door
    start[:200, 1] = rng.uniform(10, 26, 200)
    start = start[~in_wall(start, LAYOUT)]
    step = rng.normal(0, 4, start.shape)
    after = geometry.move(start, step, LAYOUT)
    pieces = 2000
    reached = np.zeros(len(start))
    blocked = np.zeros(len(start), bool)
    for i in range(1, pieces + 1):
        blocked |= in_wall(start + step * i / pieces, LAYOUT)
        reached = np.where(blocked, reached, i / pieces)
    size = np.linalg.norm(step, axis=1)
    error = np.linalg.norm(after - (start + step * reached[:, None]), axis=1)
    assert blocked.sum() > 50
    assert (error <= size / pieces + 1e-9).all()


def test_no_dot_is_ever_in_a_wall_and_the_door_is_open() -> None:
    rng = np.random.default_rng(1)
    position = free_positions(500, rng)
    for _ in range(60):
        position = geometry.move(position, rng.normal(0, 2, position.shape), LAYOUT)
        assert not in_wall(position, LAYOUT).any()
    through = geometry.move(np.array([[30.0, 18.0]]), np.array([[4.0, 0.5]]), LAYOUT)
    assert np.allclose(through, [[34.0, 18.5]])
    against = geometry.move(np.array([[30.0, 30.0]]), np.array([[4.0, 4.0]]), LAYOUT)
    assert np.allclose(against, [[31.0, 31.0]])


def test_a_dot_that_touches_a_wall_can_leave_it_and_move_along_it() -> None:
    touching = np.array([[31.0, 40.0]])
    assert np.allclose(geometry.move(touching, np.array([[0.0, 2.0]]), LAYOUT), [[31.0, 42.0]])
    assert np.allclose(geometry.move(touching, np.array([[-1.0, 1.0]]), LAYOUT), [[30.0, 41.0]])
    assert np.allclose(geometry.move(touching, np.array([[1.0, 1.0]]), LAYOUT), touching)


def test_layouts_of_dots_may_differ() -> None:
    rng = np.random.default_rng(2)
    layouts = geometry.layouts("test")[:50]
    start = geometry.sample_free(rng.integers(0, 2, 50), layouts, generator=rng)
    step = rng.normal(0, 20, (50, 2))
    one_by_one = [geometry.move(start[i : i + 1], step[i : i + 1], layouts[i])[0] for i in range(50)]
    assert np.array_equal(geometry.move(start, step, layouts), np.stack(one_by_one))


def test_pictures() -> None:
    positions = np.array([[20.25, 40.5], [50.0, 10.0]])
    images = geometry.render(positions, LAYOUT)
    y, x = np.mgrid[0:65, 0:65]
    for image, (px, py) in zip(images, positions, strict=True):
        expected = 255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 1.3**2))
        assert abs(image[0] - expected).max() <= 1.0  # rounded down
    walls = images[0, 1] > 0
    assert walls[30, 31:34].all()
    assert not walls[30, 30]
    assert not walls[14:23, 32].any()
    assert walls[13, 32]
    assert walls[23, 32]
    assert walls[4].all()
    assert walls[:, 60].all()
    assert np.array_equal(images[0, 1], images[1, 1])


def test_layouts_of_the_splits_are_disjoint_and_cover_everything() -> None:
    pairs = [{tuple(layout) for layout in geometry.layouts(split)} for split in SPLITS]
    assert len(set.union(*pairs)) == sum(map(len, pairs)) == 25 * 45
    assert 0.75 < len(pairs[0]) / (25 * 45) < 0.85


@pytest.mark.parametrize("pairs", ["uniform", "different rooms"])
def test_environment_conforms(pairs: str) -> None:
    env = TwoRooms(pairs=pairs)  # type: ignore[arg-type]
    assert isinstance(env, GoalEnv)
    check_goal_env(env)
    check_goal_env(TwoRooms(pairs=pairs, layout=(32, 10)))  # type: ignore[arg-type]


def test_gymnasium_accepts_the_environment() -> None:
    checker = pytest.importorskip("gymnasium.utils.env_checker")
    with pytest.warns(UserWarning, match="symmetric and normalized"):
        checker.check_env(TwoRooms(), skip_render_check=True)


def test_problems_lie_clear_of_walls_in_layouts_of_their_split() -> None:
    env = TwoRooms(pairs="different rooms")
    held_out = {tuple(layout) for layout in geometry.layouts("test")}
    for seed in range(50):
        problem = env.problem(seed, "test")
        assert tuple(problem.layout) in held_out
        assert (problem.start[0] < problem.layout[0]) != (problem.goal[0] < problem.layout[0])
        assert not trivially_solved(env, problem)
        for place in (problem.start, problem.goal):
            assert abs(place[0] - problem.layout[0]) >= geometry.WALL_HALF_WIDTH + geometry.CLEARANCE
            assert (abs(place - 32) <= 28 - geometry.CLEARANCE).all()


def test_uniform_pairs_hold_some_trivial_problems_and_both_kinds_of_rooms() -> None:
    env = TwoRooms()
    problems = [env.problem(seed, "selection") for seed in range(400)]
    same = np.mean([(p.start[0] < p.layout[0]) == (p.goal[0] < p.layout[0]) for p in problems])
    trivial = np.mean([trivially_solved(env, p) for p in problems])
    assert 0.4 < same < 0.65
    assert 0.005 < trivial < 0.06


def test_distance_goes_through_the_door() -> None:
    env = TwoRooms(layout=(32, 18))
    problem = env.problem(0, "test")
    positions = np.array([[20.0, 50.0], [31.0, 18.0]])
    goal = np.array([44.0, 50.0])
    lengths = geometry.free_space(*problem.layout).path_lengths(positions, goal)
    over_corners = 2 * np.hypot(11, 28) + 2  # by (31, 22) and (33, 22)
    assert lengths[0] == pytest.approx(over_corners)
    assert lengths[1] == pytest.approx(np.hypot(2, 4) + np.hypot(11, 28))


def test_planning_on_the_true_dynamics_solves_problems() -> None:
    """Greedy choice among random actions by the true distance: the simulator and the distance fit together."""
    env = TwoRooms(pairs="different rooms")
    solved = 0
    for seed in range(10):
        problem = env.problem(seed, "test")
        rng = np.random.default_rng(seed)
        _, info = env.reset(options={"problem": problem})
        for _ in range(60):
            actions = rng.normal(0, 2, (64, 1, 2))
            after = env.simulate(problem, np.tile(info["state"], (64, 1)), actions)[:, 0]
            best = int(np.argmin(env.distance(problem, after)))
            _, _, _, _, info = env.step(actions[best, 0])
            if info["success"]:
                solved += 1
                break
    assert solved == 10


def test_episodes_conform_and_follow_the_dynamics() -> None:
    source = TwoRoomsEpisodes(split="train", episodes=64)
    check_episodes(source, steps=17)
    check_episodes(ActionBlocks(source, 5), steps=4)
    episode = source.sample(3, steps=17, generator=np.random.default_rng(0))
    state, layout = episode.labels["state"], episode.labels["layout"]
    assert tuple(layout) in {tuple(known) for known in geometry.layouts("train")}
    after = geometry.move(state[:-1].astype(float), episode.actions.astype(float), layout)
    assert abs(after - state[1:]).max() < 1e-4
    assert np.array_equal(episode.observations, geometry.render(state, layout))


def test_items_do_not_depend_on_their_number_and_splits_differ() -> None:
    few, many = (TwoRoomsEpisodes(split="test", episodes=n, length=20) for n in (10, 1500))
    assert np.array_equal(few.states, many.states[:10])
    assert not np.array_equal(many.states[:476], many.states[1024:])
    other = TwoRoomsEpisodes(split="train", episodes=10, length=20)
    assert not np.array_equal(few.states, other.states)


def test_behaviour() -> None:
    rng = np.random.default_rng(0)
    layouts = np.tile(LAYOUT, (1500, 1))
    positions, steps = walk(layouts, 91, cross_wall_rate=0.35, generator=rng)
    sizes = np.linalg.norm(steps, axis=2)
    assert sizes.min() >= 0.05 - 1e-9
    assert sizes.max() <= 2.0 + 1e-9 < MAX_STEP
    assert abs(sizes.mean() - 0.95) < 0.01
    paces = sizes.mean(axis=1)
    assert 0.4 < paces.min() < 0.6 < 1.3 < paces.max() < 1.5
    left = positions[:, :, 0] < 32
    crossed = (left != left[:, :1]).any(axis=1)
    assert 0.35 <= crossed.mean() < 0.6
    always, _ = walk(layouts, 91, cross_wall_rate=1.0, generator=rng)
    left = always[:, :, 0] < 32
    assert (left != left[:, :1]).any(axis=1).mean() > 0.95


def test_errors_name_the_fix() -> None:
    with pytest.raises(ValueError, match="pairs must be"):
        TwoRooms(pairs="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a layout is"):
        TwoRooms(layout=(5, 18))
    with pytest.raises(ValueError, match="split must be one of"):
        TwoRoomsEpisodes(split="validation")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cross_wall_rate"):
        TwoRoomsEpisodes(split="train", cross_wall_rate=2.0)
    with pytest.raises(ValueError, match="no stretch of 30"):
        TwoRoomsEpisodes(split="train", episodes=4, length=20).sample(
            0, steps=30, generator=np.random.default_rng(0)
        )


def test_episodes_need_no_gymnasium_and_the_environment_says_what_it_needs() -> None:
    code = """
import sys
sys.modules["gymnasium"] = None
from envs.two_rooms import TwoRooms, TwoRoomsEpisodes
assert len(TwoRoomsEpisodes(split="test", episodes=3, length=5)) == 3
TwoRooms()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'robot-worldmodel[sim]'" in done.stderr, done.stderr


def test_episodes_that_meet_the_wall_start_near_it_and_mostly_stay_on_their_side() -> None:
    layouts = np.repeat([[32.0, 30.0]], 400, axis=0)
    positions, steps = walk(
        layouts, 25, cross_wall_rate=0.0, meet_wall_rate=1.0, generator=np.random.default_rng(0)
    )
    assert (abs(positions[:, 0, 0] - 32) <= 20).all()
    assert np.ptp(positions[:, 0, 1]) > 45  # at any height
    side = np.sign(positions[:, 0, 0] - 32)
    assert (np.sign(steps[:, 0, 0]) == -side).mean() > 0.95
    crossed = np.sign(positions[:, -1, 0] - 32) != side
    assert 0.02 < crossed.mean() < 0.25  # the door is 9 of 53 px high
    with pytest.raises(ValueError, match="sum to at most 1"):
        TwoRoomsEpisodes(split="train", cross_wall_rate=0.6, meet_wall_rate=0.6)
