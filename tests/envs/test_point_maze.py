"""Point maze: the official dynamics, the way through the maze, held-out places, episodes."""

import numpy as np
import pytest

pytest.importorskip("mujoco")
gymnasium = pytest.importorskip("gymnasium")
robotics = pytest.importorskip("gymnasium_robotics")

from envs.episodes import ActionBlocks, check_episodes  # noqa: E402
from envs.goals import GoalEnv, check_goal_env, trivially_solved  # noqa: E402
from envs.point_maze import Maze, PointMaze, PointMazeEpisodes, place_split  # noqa: E402


@pytest.fixture(scope="module")
def env() -> PointMaze:
    return PointMaze()


def test_dynamics_are_the_official_ones(env: PointMaze) -> None:
    gymnasium.register_envs(robotics)
    official = gymnasium.make("PointMaze_UMaze-v3").unwrapped
    observation, _ = official.reset(seed=0)
    rng = np.random.default_rng(0)
    forces = np.repeat(rng.uniform(-1, 1, (20, 2)), 20, axis=0)  # long pushes meet walls
    path = env.maze.advance(observation["observation"], forces)
    expected = np.stack([official.step(force)[0]["observation"] for force in forces])
    assert abs(path - expected).max() < 1e-6
    assert abs(path[:, 2:]).max() > 2


def test_environment_conforms(env: PointMaze) -> None:
    assert isinstance(env, GoalEnv)
    check_goal_env(env, seeds=4, atol=0.0)


def test_the_waypoint_controller_solves_held_out_problems(env: PointMaze) -> None:
    for seed in range(6):
        problem = env.problem(seed, "test")
        assert not trivially_solved(env, problem)
        assert place_split(problem.start[:2]) == place_split(problem.goal[:2]) == "test"
        state = problem.start
        for _ in range(300):
            state = env.simulate(problem, state[None], env.expert(problem, state)[None, None])[0, 0]
            if env.success(problem, state[None])[0]:
                break
        assert env.success(problem, state[None])[0]


@pytest.mark.parametrize("name", ["UMaze", "Medium", "Large"])
def test_true_distance_agrees_with_the_way_from_cell_to_cell(name: str) -> None:
    maze = Maze(name)
    centres = maze.centre(maze.cells)
    assert maze.free_space.free(centres).all()
    lengths = maze.free_space.path_lengths(centres, centres[0])
    steps = maze._steps_between[(*maze.cells.T, *maze.cells[0])]
    assert np.isfinite(lengths).all()
    assert (lengths <= steps + 1e-9).all()  # corners are cut, cells are 1 m apart
    assert (lengths >= 0.6 * steps).all()
    assert [maze.cell(c) for c in centres] == [tuple(c) for c in maze.cells]


def test_episodes() -> None:
    source = PointMazeEpisodes(split="train", episodes=3, length=120)
    check_episodes(source, steps=20)
    check_episodes(ActionBlocks(source, 10), steps=4)
    whole = source.whole(1)
    states = whole.labels["state"].astype(float)
    after = np.stack(
        [
            source.maze.advance(s, a[None])[0]
            for s, a in zip(states, whole.actions.astype(float), strict=False)
        ]
    )
    assert abs(after - states[1:]).max() < 1e-3  # states are kept as float32
    assert {place_split(goal) for goal in whole.labels["goal"].astype(float)} == {"train"}
    cut = source.sample(1, steps=20, generator=np.random.default_rng(0))
    assert cut.labels["goal"].shape == (20, 2)
    longer = PointMazeEpisodes(split="train", episodes=9, length=120)
    assert np.array_equal(longer.whole(1).observations, whole.observations)


def test_errors_name_the_fix() -> None:
    with pytest.raises(ValueError, match="maze must be one of"):
        PointMaze("Tiny")
    with pytest.raises(ValueError, match="episodes >= 1"):
        PointMazeEpisodes(split="train", episodes=0)
    with pytest.raises(ValueError, match="no stretch of 50"):
        PointMazeEpisodes(split="train", episodes=1, length=20).sample(
            0, steps=50, generator=np.random.default_rng(0)
        )
