"""What is counted: quotas, terminations, budgets, errors."""

import numpy as np
import pytest

from policies.baselines import NoOpAgent, RandomAgent, uniform_action
from policies.rollouts import AgentError, Decision, EpisodeBudget, batches, rollout
from tests.policies.toy import Plane, Walker


def problems(count: int, **options: float):
    return [Plane(**options).problem(seed, "test") for seed in range(count)]


def run(agent, chosen, *, steps: int = 12, seconds: float | None = None, play_on: bool = True, **options):
    envs = [Plane(**options) for _ in chosen]
    budget = EpisodeBudget(env_steps=steps, seconds=seconds)
    return rollout(agent, envs=envs, problems=chosen, budget=budget, play_on=play_on)


def test_every_problem_is_run_whatever_the_lengths_of_the_episodes():
    """Distances of 2 to 6 and a stop at success: lengths differ by a factor of three, and all ids are there."""
    chosen = problems(9)
    found = run(Walker(speed=0.5), chosen, steps=40, play_on=False)
    assert [e.seed for e in found] == [p.seed for p in chosen]
    assert len({e.steps for e in found}) > 3
    assert all(e.any_time and e.first_success == e.steps and e.at_end is None for e in found)
    for episode, problem in zip(found, chosen, strict=True):
        distance = np.linalg.norm(problem.goal - problem.start)
        assert episode.first_success == np.floor((distance - 0.5) / (0.5 / np.sqrt(2))) + 1


def test_success_at_any_time_is_not_success_at_the_end():
    for episode in run(Walker(stop=False), problems(6), steps=20):
        assert episode.any_time
        assert episode.at_end is False
        assert episode.steps == 20
    assert all(e.any_time and e.at_end for e in run(Walker(), problems(6), steps=20))


def test_termination_before_success_is_a_failure():
    """Every environment terminates at once; `terminated` is no success, nor is passing the goal afterwards."""
    for episode in run(Walker(), problems(4), pit=-100.0):
        assert episode.failed
        assert not episode.any_time
        assert episode.steps == 1


def test_a_chunk_is_executed_open_loop_and_cut_by_the_budget():
    agent = Walker(chunk=5, stop=False)
    found = run(agent, problems(3), steps=12)
    assert agent.calls == 3
    assert {e.steps for e in found} == {12}
    assert {e.decisions for e in found} == {3}
    assert {e.predictor_steps for e in found} == {21}
    assert {len(e.path) for e in found} == {13}


def test_no_time_no_success():
    for episode in run(Walker(), problems(2), seconds=1e-9):
        assert episode.out_of_time
        assert episode.steps == 0
        assert not episode.any_time
        assert episode.at_end is False


class Rows:
    """Records which episodes it is asked about."""

    inputs = "nothing"

    def __init__(self, answer):
        self.answer = answer

    def start(self, env, problems):
        self.asked = []

    def decide(self, situation):
        self.asked.append(len(situation.rows))
        return Decision(actions=self.answer(len(situation.rows)))


def test_nan_is_named_with_its_problem_and_step():
    def answer(count):
        actions = np.zeros((count, 2, 2))
        actions[1, 1, 0] = np.nan
        return actions

    with pytest.raises(AgentError, match=r"returned nan for 'dx \[m\]' at step 1 of problem 1 \(test\)"):
        run(Rows(answer), problems(2))


@pytest.mark.parametrize("shape", [(2, 1, 3), (1, 1, 2), (2, 2)])
def test_wrong_shapes_are_named(shape):
    with pytest.raises(AgentError, match="another environment"):
        run(Rows(lambda count: np.zeros(shape)), problems(2))


def test_no_action_is_an_error_and_so_is_a_missing_environment():
    with pytest.raises(AgentError, match="at least one"):
        run(Rows(lambda count: np.zeros((count, 0, 2))), problems(2))
    with pytest.raises(ValueError, match="as many environments"):
        rollout(Walker(), envs=[Plane()], problems=problems(2), budget=EpisodeBudget(env_steps=1))
    for bad in ({"env_steps": 0}, {"env_steps": 1, "seconds": 0.0}):
        with pytest.raises(ValueError, match="budget"):
            EpisodeBudget(**bad)


def test_random_actions_depend_on_problem_and_step_alone():
    chosen = problems(5)
    together = run(RandomAgent(seed=3), chosen)
    alone = run(RandomAgent(seed=3), chosen[2:3])
    assert together[2].path == alone[0].path
    assert run(RandomAgent(seed=4), chosen)[2].path != alone[0].path
    held = np.diff(np.array(run(RandomAgent(hold=4), chosen)[0].path), axis=0)
    assert np.allclose(held[:4], held[0], atol=1e-4)
    assert not np.allclose(held[4], held[0], atol=1e-4)
    with pytest.raises(ValueError, match="at least 1 step"):
        RandomAgent(hold=0)


def test_random_actions_fill_the_allowed_ones():
    from envs.two_rooms import action_spec

    spec = action_spec()
    drawn = np.stack([uniform_action(spec, np.random.default_rng(i)) for i in range(500)])
    radius = np.linalg.norm(drawn, axis=1) / spec.max_norm
    assert radius.max() <= 1
    assert radius.mean() == pytest.approx(2 / 3, abs=0.03)  # of a uniform disc
    with pytest.raises(ValueError, match="need bounds"):
        uniform_action(type(spec).free("x"), np.random.default_rng(0))


def test_doing_nothing_moves_nothing_and_is_refused_where_zero_is_an_action():
    for episode in run(NoOpAgent(), problems(3)):
        assert episode.start_distance == episode.end_distance

    class Absolute(Plane):
        spec_action = type(Plane.spec_action)(names=("x", "y"), low=np.zeros(2), high=np.ones(2))

    with pytest.raises(ValueError, match="relative actions"):
        NoOpAgent().start(Absolute(), [])


def test_batches_cover_all_once():
    assert [list(b) for b in batches(5, 2)] == [[0, 1], [2, 3], [4]]
