"""The evaluation: trivial starts, pairs, groups, files, and that it can be repeated."""

import json

import numpy as np
import pytest

from policies import evaluation
from policies.baselines import NoOpAgent, RandomAgent
from policies.episode_files import EpisodeFileError
from policies.evaluation import EvaluationProtocol, EvaluationResult, check_nothing_left_out, evaluate
from policies.report import markdown, summarise
from policies.rollouts import EpisodeBudget
from tests.policies.toy import Plane, Walker


def protocol(count: int = 12, **changes) -> EvaluationProtocol:
    options = {"environment": "plane", "split": "test", "seeds": tuple(range(count)), "batch": 5, **changes}
    return EvaluationProtocol(budget=EpisodeBudget(env_steps=12), **options)


def agents():
    return {"noop": [NoOpAgent()], "random": [RandomAgent()], "walker": [Walker(), Walker(speed=0.4)]}


def near_half() -> Plane:
    return Plane(near=0.5)


def test_trivial_starts_are_counted_and_left_out():
    result = evaluate(agents(), make_env=near_half, protocol=protocol(20))
    env = near_half()
    solved = [s for s in range(20) if env.success(p := env.problem(s, "test"), p.start[None])[0]]
    assert 2 < len(solved) < 18
    assert list(result.trivial) == solved
    assert sorted((*result.seeds, *result.trivial)) == list(range(20))
    assert not result.success("noop").any()
    assert result.success("walker").shape == (2, 20 - len(solved))
    for runs in result.runs.values():
        assert all(tuple(e.seed for e in run) == result.seeds for run in runs)
    assert summarise(result)["trivial share"] == len(solved) / 20


def test_nothing_left_is_an_error():
    with pytest.raises(ValueError, match="all 12 problems are solved at their start"):
        evaluate(agents(), make_env=lambda: Plane(near=1.0), protocol=protocol())


def test_result_round_trips_through_json_and_repeats():
    first = evaluate(agents(), make_env=near_half, protocol=protocol(), settings={"a": [1, {"b": None}]})
    again = evaluate(agents(), make_env=near_half, protocol=protocol(), settings={"a": [1, {"b": None}]})
    assert EvaluationResult.from_json(json.loads(json.dumps(first.json()))) == first
    for name in first.runs:
        assert np.array_equal(first.success(name), again.success(name))
        paths = [[e.path for e in run] for run in first.runs[name]]
        assert paths == [[e.path for e in run] for run in again.runs[name]]


class Stops(Walker):
    """Raises KeyboardInterrupt at its n-th decision."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def decide(self, situation):
        if self.calls == self.after:
            raise KeyboardInterrupt
        return super().decide(situation)


def test_a_stopped_evaluation_goes_on_where_it_was(tmp_path):
    chosen = protocol()
    whole = evaluate({"walker": [Walker()]}, make_env=Plane, protocol=chosen)
    with pytest.raises(KeyboardInterrupt):
        evaluate({"walker": [Stops(15)]}, make_env=Plane, protocol=chosen, folder=tmp_path)
    file = tmp_path / "walker.jsonl"
    assert len(file.read_text().splitlines()) == 1 + 5  # the header and the first batch
    with file.open("a") as torn:
        torn.write('{"seed": 5, "first_su')
    continued = Walker()
    result = evaluate({"walker": [continued]}, make_env=Plane, protocol=chosen, folder=tmp_path)
    assert continued.calls == 12 * 2  # two batches of three
    timeless = [[{**e.json(), "seconds": 0} for e in r.runs["walker"][0]] for r in (result, whole)]
    assert timeless[0] == timeless[1]
    untouched = Walker()
    evaluate({"walker": [untouched]}, make_env=Plane, protocol=chosen, folder=tmp_path)
    assert untouched.calls == 0


def test_episodes_of_another_evaluation_are_refused(tmp_path):
    evaluate({"walker": [Walker()]}, make_env=Plane, protocol=protocol(), folder=tmp_path)
    with pytest.raises(EpisodeFileError, match="split: 'test' -> 'selection'"):
        evaluate(
            {"walker": [Walker()]}, make_env=Plane, protocol=protocol(split="selection"), folder=tmp_path
        )
    file = tmp_path / "walker.jsonl"
    lines = file.read_text().splitlines()
    for content, message in (
        ([lines[0], "{broken", lines[1]], "damaged"),
        (lines[1:], "does not begin"),
        ([lines[0], '{"seed": 1}'], "another version"),
    ):
        file.write_text("\n".join(content) + "\n")
        with pytest.raises(EpisodeFileError, match=message):
            evaluate({"walker": [Walker()]}, make_env=Plane, protocol=protocol(), folder=tmp_path)


def test_a_header_cut_by_a_crash_is_written_anew(tmp_path):
    file = tmp_path / "walker.jsonl"
    file.write_text('{"environment": "pl')
    evaluate({"walker": [Walker()]}, make_env=Plane, protocol=protocol(), folder=tmp_path)
    assert len(file.read_text().splitlines()) == 1 + 12


def test_episodes_of_another_model_are_refused_before_anything_is_run(tmp_path):
    def trained(fingerprint: str) -> Walker:
        walker = Walker()
        walker.settings = {"fingerprint": fingerprint, "a": 1, "b": 2, "c": 3, "d": 4}
        return walker

    evaluate({"walker": [trained("0aa")]}, make_env=Plane, protocol=protocol(), folder=tmp_path)
    header = json.loads((tmp_path / "walker.jsonl").read_text().splitlines()[0])
    assert header["settings"]["fingerprint"] == "0aa"
    assert header["commit"]
    first, other = Walker(), trained("0bb")
    other.settings |= dict.fromkeys("abcd", 0)  # the fingerprint is named, however much else differs
    with pytest.raises(EpisodeFileError, match=r"fingerprint: '0aa' -> '0bb'.* and 1 more"):
        evaluate({"first": [first], "walker": [other]}, make_env=Plane, protocol=protocol(), folder=tmp_path)
    assert first.calls == other.calls == 0
    assert not (tmp_path / "first.jsonl").exists()


def test_other_code_may_go_on_and_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "code_commit", lambda: "c0ffee")
    with pytest.raises(KeyboardInterrupt):
        evaluate({"walker": [Stops(15)]}, make_env=Plane, protocol=protocol(), folder=tmp_path)
    monkeypatch.setattr(evaluation, "code_commit", lambda: "decade")
    for _ in range(2):  # the second time only reads
        result = evaluate({"walker": [Walker()]}, make_env=Plane, protocol=protocol(), folder=tmp_path)
        assert result.commits == ("c0ffee", "decade")
        assert len(result.runs["walker"][0]) == 12
    monkeypatch.setattr(evaluation, "code_commit", lambda: "facade")
    agents = {"walker": [Walker()], "noop": [NoOpAgent()]}
    result = evaluate(agents, make_env=Plane, protocol=protocol(), folder=tmp_path)
    assert result.commits == ("c0ffee", "decade", "facade")
    assert evaluate(agents, make_env=Plane, protocol=protocol()).commits == ("facade",)


def test_agents_that_would_be_left_out_are_named(tmp_path):
    check_nothing_left_out(agents(), tmp_path / "new")
    evaluate(agents(), make_env=Plane, protocol=protocol(), folder=tmp_path)
    check_nothing_left_out({**agents(), "another": [NoOpAgent()]}, tmp_path)
    fewer = {"noop": [NoOpAgent()], "walker": [Walker()]}
    with pytest.raises(EpisodeFileError, match=r"also holds random.jsonl, walker_0.jsonl, walker_1.jsonl"):
        check_nothing_left_out(fewer, tmp_path)


def test_protocols_that_make_no_sense():
    with pytest.raises(ValueError, match="different seeds"):
        protocol(seeds=(1, 1))
    with pytest.raises(ValueError, match="batch"):
        protocol(batch=0)
    with pytest.raises(ValueError, match="played on"):
        protocol(success_at="end", play_on=False)
    result = evaluate(agents(), make_env=Plane, protocol=protocol(play_on=False))
    with pytest.raises(ValueError, match="not known"):
        result.success("walker", at="end")


def test_success_at_the_end_is_reported_where_the_environment_says_so():
    overshoot = {"past": [Walker(stop=False)]}
    chosen = protocol(success_at="end")
    result = evaluate(overshoot, make_env=lambda: Plane(success_at="end"), protocol=chosen)
    assert not result.success("past").any()
    assert result.success("past", at="any time").all()


def test_groups_and_pairs():
    def kinds(env, problem):
        return {"side": "right" if problem.goal[0] > problem.start[0] else "left"}

    result = evaluate(agents(), make_env=Plane, protocol=protocol(30), groups=kinds)
    assert {frozenset(v) for v in result.groups.values()} == {frozenset(result.seeds)}
    counts = [
        list(result.groups["distance"].values()).count(n) for n in set(result.groups["distance"].values())
    ]
    assert sorted(counts) == [10, 10, 10]
    numbers = summarise(result)
    walker = numbers["agents"]["walker"]
    by_side = walker["groups"]["side"]
    assert sum(g["problems"] * g["value"] for g in by_side.values()) == pytest.approx(
        30 * walker["success"]["value"]
    )
    assert len(walker["success by training seed"]) == 2
    pairs = {(p["first"], p["second"], p.get("training seed")): p for p in numbers["pairs"]}
    assert set(pairs) == {
        ("noop", "random", None), ("noop", "walker", 0), ("noop", "walker", 1), ("random", "walker", 0),
        ("random", "walker", 1),
    }  # fmt: skip
    table = markdown(result)
    assert "| walker | state and goal state | 2 |" in table
    assert "exact McNemar" in table
    assert walker["predictor steps per decision"] == 7
