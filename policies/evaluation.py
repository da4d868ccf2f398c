"""Closed-loop evaluation of agents on problems fixed beforehand: the same ones for every agent, none of them counted
twice, none that a start already solves.

A problem is (seed, split); nothing is taken from a training file. Success is the environment's own predicate, never
`terminated`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from envs.goals import GoalEnv, Problem, Split, trivially_solved
from policies.episode_files import EpisodeFile, EpisodeFileError, run_names
from policies.rollouts import Agent, Episode, EpisodeBudget, batches, rollout
from worldmodel.training.provenance import code_commit


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """How agents are evaluated; stored with every result, and what a continued evaluation must agree on.

    Attributes:
        environment: its name.
        split: "test" for figures that are reported, "selection" to choose settings with, never the other way round.
        seeds: of the problems, one each.
        budget: of an episode.
        batch: episodes in lockstep.
        play_on: after the first success, to the end of the budget.
        success_at: "any time" or "end": which of the two success rates is the environment's.
    """

    environment: str
    split: Split
    seeds: tuple[int, ...]
    budget: EpisodeBudget
    batch: int = 32
    play_on: bool = True
    success_at: str = "any time"

    def __post_init__(self) -> None:
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise ValueError("problems are named by different seeds, at least one")
        if self.batch < 1:
            raise ValueError(f"a batch holds at least one episode, got {self.batch}")
        if self.success_at == "end" and not self.play_on:
            raise ValueError(
                f"success in {self.environment} counts at the end: episodes must be played on after the first success "
                f"(play_on=true)"
            )

    def json(self) -> dict[str, Any]:
        budget = {"env_steps": self.budget.env_steps, "seconds": self.budget.seconds}
        return {**vars(self), "seeds": list(self.seeds), "budget": budget}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "EvaluationProtocol":
        return cls(
            **{**content, "seeds": tuple(content["seeds"]), "budget": EpisodeBudget(**content["budget"])}
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Episodes of every agent on the same problems.

    Attributes:
        protocol: how they came about.
        trivial: seeds of problems that the start already solved; run by nobody.
        groups: what kind of problem each of the others is: {"rooms": {seed: "same"}}.
        runs: episodes by agent, and within it by training seed; in the order of the protocol's seeds.
        inputs: what each agent reads.
        settings: the whole configuration of the command, and what made the agents.
        commits: of the code that made the episodes, first to last; several if an evaluation was continued.
    """

    protocol: EvaluationProtocol
    trivial: tuple[int, ...]
    groups: dict[str, dict[int, str]]
    runs: dict[str, tuple[tuple[Episode, ...], ...]]
    inputs: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    commits: tuple[str, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the problems that were run."""
        return tuple(s for s in self.protocol.seeds if s not in set(self.trivial))

    def success(self, agent: str, *, at: str | None = None) -> np.ndarray:
        """[training seeds, problems] bool: success "any time" or at the "end"; without `at` as the environment says.

        Raises:
            ValueError: for "end", if episodes were ended at their first success.
        """
        at = at or self.protocol.success_at
        if at == "any time":
            return np.array([[e.any_time for e in run] for run in self.runs[agent]])
        if not self.protocol.play_on:
            raise ValueError("episodes were ended at their first success: success at the end is not known")
        return np.array([[bool(e.at_end) and not e.failed for e in run] for run in self.runs[agent]])

    def json(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol.json(),
            "trivial": list(self.trivial),
            "groups": {k: {str(seed): name for seed, name in v.items()} for k, v in self.groups.items()},
            "runs": {name: [[e.json() for e in run] for run in runs] for name, runs in self.runs.items()},
            "inputs": self.inputs,
            "settings": self.settings,
            "commits": list(self.commits),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "EvaluationResult":
        runs = content["runs"]
        return cls(
            protocol=EvaluationProtocol.from_json(content["protocol"]),
            trivial=tuple(content["trivial"]),
            groups={k: {int(seed): n for seed, n in v.items()} for k, v in content["groups"].items()},
            runs={
                name: tuple(tuple(Episode.from_json(e) for e in run) for run in runs[name]) for name in runs
            },
            inputs=content["inputs"],
            settings=content["settings"],
            commits=tuple(content["commits"]),
        )


def evaluate(
    agents: Mapping[str, Sequence[Agent]],
    *,
    make_env: Callable[[], GoalEnv],
    protocol: EvaluationProtocol,
    settings: Mapping[str, Any] | None = None,
    groups: Callable[[GoalEnv, Problem], Mapping[str, str]] | None = None,
    folder: Path | None = None,
    progress: bool = False,
) -> EvaluationResult:
    """Run every agent on every problem that is not solved at its start.

    Args:
        agents: by name, one per training seed (one in all if nothing was trained).
        make_env: a new environment.
        settings: stored with the result.
        groups: kinds of a problem, by the name of the distinction.
        folder: keeps finished episodes, one file per agent; an evaluation that was stopped continues from them.
        progress: show a bar with the remaining time.

    Raises:
        ValueError: if no problem is left.
        AgentError: an agent does not fit.
        EpisodeFileError: the folder holds episodes of another evaluation, or of another model; before anything is run.
    """
    commit = code_commit()
    files = {} if folder is None else _files(agents, folder, protocol=protocol, commit=commit)
    probe = make_env()
    everything = [probe.problem(seed, protocol.split) for seed in protocol.seeds]
    trivial = {p.seed for p in everything if trivially_solved(probe, p)}
    problems = [p for p in everything if p.seed not in trivial]
    if not problems:
        raise ValueError(f"all {len(everything)} problems are solved at their start: nothing to evaluate")
    envs = [make_env() for _ in range(min(protocol.batch, len(problems)))]
    total = len(problems) * protocol.budget.env_steps * sum(map(len, agents.values()))
    runs: dict[str, tuple[tuple[Episode, ...], ...]] = {}
    with tqdm(total=total, unit="step", smoothing=0.05, disable=not progress) as bar:
        for name, family in agents.items():
            names = run_names(name, len(family))
            runs[name] = tuple(
                _run(agent, run, envs, problems, protocol, files.get(run), bar)
                for run, agent in zip(names, family, strict=True)
            )
    return EvaluationResult(
        protocol=protocol,
        trivial=tuple(sorted(trivial)),
        groups=_groups(probe, problems, groups),
        runs=runs,
        inputs={name: family[0].inputs for name, family in agents.items()},
        settings=dict(settings or {}),
        commits=tuple(dict.fromkeys(c for f in files.values() for c in f.commits())) or (commit,),
    )


def check_nothing_left_out(agents: Mapping[str, Sequence[object]], folder: Path) -> None:
    """Refuse a folder with episodes of agents that an evaluation leaves out: its results would replace theirs.

    Args:
        agents: by name, one per training seed.

    Raises:
        EpisodeFileError: naming the files.
    """
    own = {run for name, family in agents.items() for run in run_names(name, len(family))}
    others = sorted(path.name for path in folder.glob("*.jsonl") if path.stem not in own)
    if others:
        raise EpisodeFileError(
            f"{folder} also holds {', '.join(others)}, which the results of {', '.join(agents)} would leave out: name "
            f"all agents and runs (finished episodes are read, not run again), choose another folder with out=DIR, or "
            f"delete the files"
        )


def _files(
    agents: Mapping[str, Sequence[Agent]], folder: Path, *, protocol: EvaluationProtocol, commit: str
) -> dict[str, EpisodeFile]:
    """Where each run of each agent keeps its episodes, by the name of the run."""
    files = {}
    for name, family in agents.items():
        for run, agent in zip(run_names(name, len(family)), family, strict=True):
            header = {**protocol.json(), "agent": run, "settings": getattr(agent, "settings", {})}
            files[run] = EpisodeFile(folder / f"{run}.jsonl", header=header, commit=commit)
    return files


def _run(
    agent: Agent,
    name: str,
    envs: Sequence[GoalEnv],
    problems: Sequence[Problem],
    protocol: EvaluationProtocol,
    file: EpisodeFile | None,
    bar: "tqdm[Any]",
) -> tuple[Episode, ...]:
    """All episodes of one agent, those of its file first. Batches are never split, so that a continued evaluation
    makes the same numbers, to the last bit, as one that was never stopped."""
    done = {e.seed: e for e in file.read(Episode.from_json)} if file else {}
    bar.set_description(name)
    for indices in batches(len(problems), protocol.batch):
        chosen = [problems[i] for i in indices]
        steps = len(chosen) * protocol.budget.env_steps
        if not all(p.seed in done for p in chosen):
            before = bar.n
            finished = rollout(
                agent,
                envs=envs[: len(chosen)],
                problems=chosen,
                budget=protocol.budget,
                play_on=protocol.play_on,
                on_step=bar.update,
            )
            if file:
                file.append(finished)
            done |= {e.seed: e for e in finished}
            steps -= int(bar.n - before)
        bar.update(steps)
    return tuple(done[p.seed] for p in problems)


def _groups(
    env: GoalEnv,
    problems: Sequence[Problem],
    kinds: Callable[[GoalEnv, Problem], Mapping[str, str]] | None,
) -> dict[str, dict[int, str]]:
    """Terciles of the true distance from start to goal, and what `kinds` says."""
    distances = [float(env.distance(p, p.start[None])[0]) for p in problems]
    edges = np.quantile(distances, [1 / 3, 2 / 3])
    names = (f"below {edges[0]:.3g}", f"{edges[0]:.3g} to {edges[1]:.3g}", f"from {edges[1]:.3g}")
    found = {
        "distance": {
            p.seed: names[int(np.searchsorted(edges, d, side="right"))]
            for p, d in zip(problems, distances, strict=True)
        }
    }
    for problem in problems if kinds else ():
        for distinction, name in kinds(env, problem).items():  # type: ignore[misc]
            found.setdefault(distinction, {})[problem.seed] = name
    return found
