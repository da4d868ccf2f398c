"""Pictures of episodes: files that can be opened, failures first."""

from dataclasses import replace

import numpy as np
import pytest

from policies.baselines import RandomAgent
from policies.environments import environment
from policies.rollouts import EpisodeBudget, rollout
from policies.videos import draw_paths, failures_first, frames, write_video


@pytest.fixture(scope="module")
def episodes():
    env = environment("two_rooms")
    problems = [env.make().problem(seed, "test") for seed in range(3)]
    budget = EpisodeBudget(env_steps=7)
    return rollout(RandomAgent(), envs=[env.make() for _ in problems], problems=problems, budget=budget)


def test_failures_come_first(episodes):
    solved = replace(episodes[0], first_success=3)
    assert [e.seed for e in failures_first([solved, *episodes[1:]], 3)] == [1, 2, 0]
    assert failures_first([solved, *episodes[1:]], 1) == [episodes[1]]


def test_videos_open_again(episodes, tmp_path):
    image, av = pytest.importorskip("PIL.Image"), pytest.importorskip("av")
    pictures = frames(episodes[0], environment=environment("two_rooms"), split="test", most=4, size=120)
    assert pictures.shape == (5, 120, 120, 3)  # steps 0, 2, 4, 6 and the last, 7
    assert pictures.dtype == np.uint8
    assert not np.array_equal(pictures[0], pictures[-1])
    write_video(tmp_path / "a.gif", pictures)
    with image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.size) == (5, (120, 120))
    write_video(tmp_path / "sub" / "a.mp4", pictures)
    with av.open(str(tmp_path / "sub" / "a.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 5
    with pytest.raises(ValueError, match=r"\.gif or \.mp4"):
        write_video(tmp_path / "a.avi", pictures)


def test_paths_of_several_agents_are_one_figure(episodes, tmp_path):
    both = {"random": episodes, "other": episodes}
    draw_paths(tmp_path / "paths.png", both, environment=environment("two_rooms"), split="test", problems=2)
    assert (tmp_path / "paths.png").stat().st_size > 5000


@pytest.mark.parametrize(("name", "extra"), [("point_maze", "gymnasium_robotics"), ("push_t", "pymunk")])
def test_other_environments_are_drawn(name: str, extra: str):
    pytest.importorskip(extra)
    env = environment(name)
    problem = env.make().problem(0, "test")
    budget = EpisodeBudget(env_steps=2)
    (episode,) = rollout(RandomAgent(), envs=[env.make()], problems=[problem], budget=budget)
    pictures = frames(episode, environment=env, split="test", size=120)
    assert pictures.shape == (3, 120, 120, 3)
    if env.kinds:
        assert set(env.kinds(env.make(), problem)) == {"turn of the block"}


def test_unknown_environments_and_options_are_named():
    with pytest.raises(ValueError, match="two_rooms, point_maze, push_t"):
        environment("three_rooms")
    with pytest.raises(ValueError, match="doors"):
        environment("two_rooms", doors=2)


def test_kinds_of_two_rooms_follow_the_layout():
    env = environment("two_rooms", pairs="different rooms")
    assert env.kinds is not None
    one = env.make()
    kinds = [env.kinds(one, one.problem(seed, "test")) for seed in range(20)]
    assert {k["rooms"] for k in kinds} == {"different rooms"}
    assert {k["door"] for k in kinds} == {"near the middle", "near an edge"}
