"""Closed-loop episodes and their evaluation, on a point that heads for a goal."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.demonstrations import Demonstration
from envs.manipulation import EnvOptions
from envs.manipulation.rollout import demonstrate
from policies.episode_files import EpisodeFileError
from policies.imitation.batches import ObservationError, PolicyObservation
from policies.imitation.build import Sizes, build_policy
from policies.imitation.closed_loop import (
    Execution,
    ExpertActor,
    PolicyActor,
    PolicyEpisode,
    RandomActor,
    Seat,
    run_task,
)
from policies.imitation.evaluation import Arm, TaskProtocol, evaluate_arms, table
from policies.imitation.interface import Interface
from policies.imitation.policy import ImitationPolicy
from policies.imitation.statistics import Statistics
from policies.intervals import wilson
from tests.envs.manipulation.toy import ToyReach
from tests.policies.imitation.toys import TINY

SEEDS = tuple(range(100, 111))


def shown(images: bool = False) -> list[Demonstration]:
    return [demonstrate(ToyReach(), seed=seed, image=images) for seed in range(6)]


def policy(
    name: Any = "act", *, chunk: int = 4, images: bool = False, sizes: Sizes = TINY
) -> ImitationPolicy:
    edge = np.ones(2, np.float32)
    interface = Interface(
        state_dim=2, action_dim=2, chunk=chunk, tasks=("toy/reach",), environment_dim=2,
        image_size=(8, 8) if images else None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = build_policy(
            name, interface=interface, sizes=sizes,
            statistics=Statistics.measured(shown(images), action_low=-edge, action_high=edge),
        )  # fmt: skip
    return made.eval()


def episodes(actor: Any, *, batch: int = 3, **options: Any) -> tuple[PolicyEpisode, ...]:
    envs = [ToyReach() for _ in range(batch)]
    return run_task(actor, envs=envs, seeds=SEEDS, max_steps=12, **options)


def without_seconds(found: tuple[PolicyEpisode, ...]) -> list[dict[str, Any]]:
    return [{**e.json(), "seconds": 0} for e in found]


def test_the_expert_solves_what_it_can() -> None:
    found = episodes(ExpertActor())
    assert [e.seed for e in found] == list(SEEDS)
    assert [e.success for e in found] == [seed % 3 != 0 for seed in SEEDS]
    assert all(e.steps == (e.first_success or 12) for e in found)


def test_open_loop_by_hand() -> None:
    """The first episode of a policy, its chunks executed one action after the other."""
    made, env = policy(), ToyReach()
    observation, _ = env.reset(seed=SEEDS[0])
    steps = 0
    success = False
    while not success and steps < 12:
        seen = PolicyObservation(
            state=torch.from_numpy(observation["state"])[None],
            environment=torch.from_numpy(observation["environment"])[None],
            image=None,
            task=torch.zeros(1, dtype=torch.int64),
        )
        for action in made.act(seen)[0, :3]:
            observation, _, _, _, info = env.step(action.numpy())
            steps, success = steps + 1, bool(info["success"])
            if success or steps == 12:
                break
    first = episodes(PolicyActor(made, execution=Execution(execute=3)))[0]
    assert (first.steps, first.success, first.decisions) == (steps, success, -(-steps // 3))


@pytest.mark.parametrize(
    ("name", "ensemble"), [("act", None), ("act", 0.1), ("flow", None), ("autoregressive", None)]
)
def test_an_episode_does_not_depend_on_what_runs_beside_it(name: str, ensemble: float | None) -> None:
    """To the last bit of every state, with a network wide enough for matrix products to round by their size."""
    made = policy(name, sizes=replace(TINY, dim=64, hidden=256))
    memory = 3 if name == "autoregressive" else 0

    def states(envs: int, seeds: tuple[int, ...]) -> dict[tuple[int, int], bytes]:
        seen: dict[tuple[int, int], bytes] = {}

        def look(row: int, seat: Seat) -> None:
            assert isinstance(seat.env, ToyReach)
            seen[seat.seed, seat.step] = seat.env.place.tobytes()

        actor = PolicyActor(made, execution=Execution(ensemble=ensemble), memory=memory)
        run_task(
            actor, envs=[ToyReach() for _ in range(envs)], seeds=seeds, max_steps=8, batch=5, on_step=look
        )
        return seen

    together = states(5, SEEDS[:7])
    some = (*SEEDS[:2], *SEEDS[5:7])  # the first episodes of their environments, and second ones
    alone = {k: v for seed in some for k, v in states(1, (seed,)).items()}
    assert alone == {k: v for k, v in together.items() if k[0] in some}


def test_baselines_do_not_depend_on_what_runs_beside_them() -> None:
    assert without_seconds(episodes(RandomActor(), batch=4)) == without_seconds(
        episodes(RandomActor(), batch=1)
    )


def test_a_memory_draws_each_picture_once_and_nothing_is_decided_for_nobody() -> None:
    envs = [ToyReach(options=EnvOptions(image_size=8)) for _ in range(3)]
    actor = PolicyActor(policy("autoregressive", images=True), execution=Execution(), memory=3)
    found = run_task(actor, envs=envs, seeds=SEEDS[:4], max_steps=6)
    assert sum(env.drawn for env in envs) == sum(e.decisions for e in found) == sum(e.steps for e in found)


def test_execution_is_that_of_the_policy() -> None:
    """What cannot be is refused before anything runs; where there is nothing to choose nothing is stored as chosen."""
    assert PolicyActor(policy(), execution=Execution()).execution == Execution(execute=4)
    assert PolicyActor(policy(), execution=Execution(ensemble=0.1)).execution == Execution(ensemble=0.1)
    for one in (policy("bc", chunk=1), policy("autoregressive")):
        actor = PolicyActor(one, execution=Execution(ensemble=0.1), memory=one.interface.chunk - 1)
        assert actor.execution == Execution(execute=1)
    with pytest.raises(ValueError, match="execute=9 actions, but the policy's chunks hold 4"):
        PolicyActor(policy(), execution=Execution(execute=9))
    with pytest.raises(ValueError, match="give execute or ensemble, not both"):
        Execution(execute=1, ensemble=0.1)
    with pytest.raises(ValueError, match="got execute=0"):
        Execution(execute=0)


def test_pictures_are_drawn_only_where_a_chunk_is_due() -> None:
    envs = [ToyReach(options=EnvOptions(image_size=8)) for _ in range(2)]
    found = run_task(
        PolicyActor(policy(images=True), execution=Execution()), envs=envs, seeds=SEEDS[:4], max_steps=12
    )
    assert (
        sum(env.drawn for env in envs)
        == sum(e.decisions for e in found)
        == sum(-(-e.steps // 4) for e in found)
    )


def test_every_step_is_shown_to_the_camera() -> None:
    seen: list[tuple[int, int]] = []

    def look(row: int, seat: Seat) -> None:
        seen.append((seat.seed, seat.step))

    found = episodes(ExpertActor(), on_step=look)
    assert sorted(seen) == sorted((e.seed, step) for e in found for step in range(e.steps + 1))


def test_wrong_actions_and_settings_are_named() -> None:
    class Broken(RandomActor):
        def act(self, seats: dict[int, Seat]) -> np.ndarray:
            return np.full((len(seats), 2), np.nan)

    with pytest.raises(ObservationError, match="at step 0 of toy/reach, seed 100"):
        episodes(Broken())
    with pytest.raises(ValueError, match="on 2 rows are not enough for 3 environments"):
        run_task(RandomActor(), envs=[ToyReach() for _ in range(3)], seeds=SEEDS, max_steps=3, batch=2)
    other = [ToyReach("reach-too")]
    with pytest.raises(ObservationError, match="has no task 'toy/reach-too'"):
        run_task(PolicyActor(policy(), execution=Execution()), envs=other, seeds=SEEDS, max_steps=3)


PROTOCOL = TaskProtocol(tasks=("toy/reach", "toy/reach-too"), episodes=5, batch=2)


def arms() -> list[Arm]:
    random = Arm(name="random", actors=(RandomActor(),), settings=({},))
    expert = Arm(name="expert", actors=(ExpertActor(), ExpertActor()), settings=({"seed": 0}, {"seed": 1}))
    return [random, expert]


def test_an_evaluation_that_was_stopped_goes_on(tmp_path: Path) -> None:
    whole = evaluate_arms(arms(), protocol=PROTOCOL, folder=tmp_path / "whole")
    stopped = 0

    def stop(name: str, episode: PolicyEpisode) -> None:
        nonlocal stopped
        stopped += 1
        if stopped == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_arms(arms(), protocol=PROTOCOL, folder=tmp_path / "parts", on_episode=stop)
    parts = evaluate_arms(arms(), protocol=PROTOCOL, folder=tmp_path / "parts")
    assert {k: [without_seconds(r) for r in v] for k, v in parts.runs.items()} == {
        k: [without_seconds(r) for r in v] for k, v in whole.runs.items()
    }
    assert whole.success("expert").shape == (2, 2, 5)


def test_rates_and_pairs_of_the_summary(tmp_path: Path) -> None:
    result = evaluate_arms(arms(), protocol=PROTOCOL, folder=tmp_path)
    summary = result.summary()
    solvable = sum(seed % 3 != 0 for seed in PROTOCOL.seeds)
    assert summary["arms"]["expert"]["success"]["value"] == solvable / 5
    count = int(result.success("random").sum())
    assert summary["arms"]["random"]["success"] == vars(wilson(count, 10))
    assert [(p["first"], p["second"], p["training_seed"]) for p in summary["pairs"]] == [
        ("random", "expert", 0),
        ("random", "expert", 1),
    ]
    text = table(json.loads(json.dumps(summary)))
    assert "| toy/reach-too | " in text
    assert "test seeds from 100000 on" in text


def test_another_evaluation_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    evaluate_arms(arms(), protocol=PROTOCOL, folder=tmp_path)
    with pytest.raises(EpisodeFileError, match="split: 'test' -> 'selection'"):
        evaluate_arms(
            arms(),
            protocol=TaskProtocol(tasks=PROTOCOL.tasks, split="selection", episodes=5, batch=2),
            folder=tmp_path,
        )
    with pytest.raises(ValueError, match="a name of its own"):
        evaluate_arms([*arms(), *arms()], protocol=PROTOCOL, folder=tmp_path)
    same_file = Arm(name="expert_0", actors=(ExpertActor(),), settings=({},))
    with pytest.raises(ValueError, match="got expert_0 twice"):
        evaluate_arms([*arms(), same_file], protocol=PROTOCOL, folder=tmp_path)
    with pytest.raises(ValueError, match="a split of test, selection"):
        TaskProtocol(tasks=("toy/reach",), split="train")  # type: ignore[arg-type]
