"""Planners as agents: the oracle solves what can be solved, whatever runs beside; errors are named."""

import numpy as np
import pytest
import torch

from envs.two_rooms import TwoRooms
from policies.agents import InverseDynamicsPolicy, LatentPlanner, OraclePlanner, PlanningSettings
from policies.diagnostics import diagnose, random_walks
from policies.evaluation import EvaluationProtocol, evaluate
from policies.rollouts import AgentError, EpisodeBudget, rollout
from policies.simulator_model import SimulatorModel, TrueDistance
from tests.policies.toy import Plane
from worldmodel.batches import LatentState
from worldmodel.planning import InverseDynamics

CEM = {"name": "cem", "horizon": 4, "samples": 40, "iterations": 3, "elites": 5}


def planning(**changes) -> PlanningSettings:
    return PlanningSettings(**{"planner": CEM, "execute": 2, **changes})


def problems(env, count: int):
    found = (env.problem(seed, "selection") for seed in range(100))
    return [p for p in found if not env.success(p, p.start[None])[0]][:count]


def run(agent, make_env, chosen, steps: int = 16, play_on: bool = False):
    envs = [make_env() for _ in chosen]
    budget = EpisodeBudget(env_steps=steps)
    return rollout(agent, envs=envs, problems=chosen, budget=budget, play_on=play_on)


class Identity(torch.nn.Module):
    """The plane's dynamics as a world model of its observations."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block, self.steps = block, 0
        self.register_buffer("action_scale", torch.ones(2 * block))

    def encode(self, observations: torch.Tensor) -> torch.Tensor:
        return observations

    def rollout(self, state: LatentState, future: torch.Tensor) -> torch.Tensor:
        self.steps += future.shape[0] * future.shape[1]
        moves = future.unflatten(-1, (self.block, -1)).clamp(-1, 1).sum(-2)
        return state.latents[:, -1:] + moves.cumsum(1)


def test_the_simulator_is_a_world_model_equal_to_playing():
    env = TwoRooms()
    chosen = problems(env, 3)
    model = SimulatorModel(env, chosen, block=2)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-2, 2, (3, 4, 3, 4)).astype(np.float32)  # problems, candidates, horizon, block * A
    start = torch.from_numpy(np.stack([p.start for p in chosen]))
    state = LatentState(latents=start[:, None], actions=torch.zeros(3, 0, 4)).repeat(4)
    imagined = model.rollout(state, torch.from_numpy(actions).flatten(0, 1)).unflatten(0, (3, 4))
    for i, problem in enumerate(chosen):
        env.reset(options={"problem": problem})
        for block in range(3):
            for action in actions[i, 1, block].reshape(2, 2):
                *_, info = env.step(action)
            assert np.allclose(imagined[i, 1, block], info["state"], atol=1e-9)
    with pytest.raises(ValueError, match="equally many"):
        model.rollout(state, torch.zeros(13, 3, 4))


def test_true_distance_is_the_environments():
    env = TwoRooms()
    chosen = problems(env, 2)
    states = torch.from_numpy(np.stack([[p.start, p.goal] for p in chosen]))[:, None]  # [B, 1, 2, S]
    costs = TrueDistance(env, chosen, reduce="sum")(states, torch.zeros(2, 1, 2, 2))
    want = [env.distance(p, p.start[None])[0] for p in chosen]
    assert costs[:, 0].tolist() == pytest.approx(want)
    one = TrueDistance(env, chosen, reduce="last").rows(torch.tensor([1]))
    assert one.problems == [chosen[1]]


@pytest.mark.parametrize("name", ["cem", "icem", "mppi"])
def test_the_oracle_solves_every_problem_of_the_plane(name: str):
    options = {k: v for k, v in CEM.items() if k != "elites"} | {"name": name}
    options |= {"temperature": 0.1} if name == "mppi" else {"elites": 5}
    agent = OraclePlanner(block=2, planning=planning(planner=options))
    found = run(agent, Plane, problems(Plane(), 12), play_on=True)
    assert all(e.any_time and e.at_end for e in found)
    assert all(e.clipped is not None and 0 < e.clipped < 1 for e in found)


def test_the_oracle_solves_two_rooms():
    """The settings of configs/evaluate_planner.yaml; the stored study has 100 problems."""
    options = {
        "name": "icem",
        "horizon": 15,
        "samples": 100,
        "iterations": 3,
        "elites": 10,
        "noise_beta": 2.0,
    }
    options |= {"momentum": 0.0, "decay": 1.0}
    agent = OraclePlanner(block=4, planning=PlanningSettings(planner=options, execute=4, reduce="min"))
    found = run(agent, TwoRooms, problems(TwoRooms(), 6), steps=200)
    assert sum(e.any_time for e in found) >= 5
    cost = found[0].costs
    assert len(cost) == 3
    assert cost[0] >= cost[1] >= cost[2]


def test_the_oracle_needs_no_cost_but_the_true_distance():
    agent = OraclePlanner(block=2, planning=planning(), cost="distance")
    assert all(e.any_time for e in run(agent, Plane, problems(Plane(), 4)))
    with pytest.raises(ValueError, match="state"):
        OraclePlanner(block=2, planning=planning(), cost="reward")  # type: ignore[arg-type]


def test_episodes_do_not_depend_on_those_beside_them():
    chosen = problems(Plane(), 5)
    for agent in (
        OraclePlanner(block=2, planning=planning()),
        LatentPlanner(model=Identity(2).eval(), block=2, planning=planning()),
    ):
        together, alone = run(agent, Plane, chosen), run(agent, Plane, chosen[3:4])
        assert len({e.steps for e in together}) > 1  # some end before others
        assert np.allclose(together[3].path, alone[0].path, atol=1e-4)


def test_predictor_steps_are_those_of_the_model():
    model = Identity(2).eval()
    found = run(
        LatentPlanner(model=model, block=2, planning=planning()), Plane, problems(Plane(), 3), play_on=True
    )
    assert sum(e.predictor_steps for e in found) == model.steps
    assert {e.decisions for e in found} == {4}  # 16 steps in blocks of 2, two blocks a plan
    assert {e.predictor_steps for e in found} == {4 * 40 * 3 * 4.0}


def test_a_perfect_latent_model_is_as_good_as_the_simulator():
    chosen = problems(Plane(), 6)
    latent = run(LatentPlanner(model=Identity(2).eval(), block=2, planning=planning()), Plane, chosen)
    oracle = run(OraclePlanner(block=2, planning=planning()), Plane, chosen)
    assert [e.first_success for e in latent] == [e.first_success for e in oracle]


def test_a_model_of_other_actions_is_named():
    agent = LatentPlanner(model=Identity(3).eval(), block=2, planning=planning())
    with pytest.raises(AgentError, match="takes actions of 6 numbers, blocks of 2 actions"):
        run(agent, Plane, problems(Plane(), 1))


def test_unknown_planners_and_options_are_named():
    for planner, message in (({"name": "sgd"}, "gradient"), ({**CEM, "sample": 3}, "sample")):
        with pytest.raises(ValueError, match=message):
            run(OraclePlanner(block=1, planning=planning(planner=planner)), Plane, problems(Plane(), 1))


def test_inverse_dynamics_acts_in_blocks_within_the_bounds():
    torch.manual_seed(0)
    head = InverseDynamics(latent_dim=2, action_dim=4, hidden=8).eval()
    agent = InverseDynamicsPolicy(model=Identity(2).eval(), head=head, block=2)
    found = run(agent, Plane, problems(Plane(), 3), steps=6, play_on=True)
    assert {e.decisions for e in found} == {3}
    assert all(np.abs(np.diff(np.array(e.path), axis=0)).max() <= 1 + 1e-6 for e in found)


def test_the_global_generators_are_left_alone():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    protocol = EvaluationProtocol(
        environment="plane", split="test", seeds=(0, 1), budget=EpisodeBudget(env_steps=4), batch=2
    )
    evaluate({"oracle": [OraclePlanner(block=2, planning=planning())]}, make_env=Plane, protocol=protocol)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_diagnostics_of_a_perfect_and_of_a_frozen_model():
    env, chosen = Plane(), problems(Plane(), 8)
    states, actions = random_walks(env, chosen, block=2, blocks=3, hold=4, seed=0)
    assert states.shape == (8, 4, 2)
    assert actions.shape == (8, 3, 4)
    options = {"block": 2, "window": 1, "planning": planning(), "blocks": 6}
    perfect = diagnose(Identity(2).eval(), env, chosen, **options)
    assert perfect["cost_distance_spearman"] == pytest.approx(1.0)
    assert len(perfect["error_over_copy_last"]) == 6
    assert max(perfect["error_over_copy_last"]) < 1e-6
    assert perfect["std"] > 1

    class Frozen(Identity):
        def rollout(self, state, future):
            return state.latents[:, -1:].expand(-1, future.shape[1], -1)

    frozen = diagnose(Frozen(2).eval(), env, chosen, **options)
    assert frozen["error_over_copy_last"] == pytest.approx([1.0] * 6)
