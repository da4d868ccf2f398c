"""Closed-loop evaluation of imitation policies: the same tasks and seeds for every arm, none of them trained on.

Demonstrations are recorded from seed 0 on; selection and test seeds lie far from them and from each other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from envs.manipulation import EnvOptions, ManipulationEnv, make_env
from policies.episode_files import EpisodeFile, run_names
from policies.imitation.closed_loop import Actor, PolicyEpisode, run_task
from policies.report import about_intervals, paired_by_seed, rate
from worldmodel.training.provenance import code_commit

FIRST_SEED = {"test": 100_000, "selection": 200_000}
BATCH = 10  # environments at once; part of what decides an episode, to the last bit
Numbers = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TaskProtocol:
    """How policies are evaluated; stored with every result, and what a continued evaluation must agree on.

    Attributes:
        tasks: environments, as `make_env` takes them.
        split: "test" for figures that are reported, "selection" to choose settings with, never the other way round.
        episodes: per task.
        options: of the environments.
        batch: environments at once, and rows of every decision.
    """

    tasks: tuple[str, ...]
    split: Literal["test", "selection"] = "test"
    episodes: int = 20
    options: EnvOptions = field(default_factory=EnvOptions)
    batch: int = BATCH

    def __post_init__(self) -> None:
        if self.split not in FIRST_SEED or not self.tasks or min(self.episodes, self.batch) < 1:
            raise ValueError(
                f"an evaluation has tasks, a split of {', '.join(FIRST_SEED)}, episodes and a batch, got {self}"
            )

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the episodes of each task."""
        first = FIRST_SEED[self.split]
        return tuple(range(first, first + self.episodes))

    def json(self) -> Numbers:
        return {**asdict(self), "first_seed": FIRST_SEED[self.split]}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Something that acts: one actor per training seed, and what says which one it is (checkpoint, execution)."""

    name: str
    actors: tuple[Actor, ...]
    settings: tuple[Numbers, ...]


@dataclass(frozen=True, kw_only=True)
class PolicyResult:
    """Episodes of every arm.

    Attributes:
        protocol: how they came about.
        runs: by arm and training seed, in the order of tasks, and within a task of seeds.
        commits: of the code that made them, first to last.
    """

    protocol: TaskProtocol
    runs: dict[str, tuple[tuple[PolicyEpisode, ...], ...]]
    commits: tuple[str, ...]

    def success(self, arm: str) -> np.ndarray:
        """[training seeds, tasks, episodes] bool."""
        found = np.array([[e.success for e in run] for run in self.runs[arm]])
        return found.reshape(len(found), len(self.protocol.tasks), self.protocol.episodes)

    def summary(self) -> Numbers:
        """Rates with intervals (Wilson, or a bootstrap over training seeds and episodes), and paired comparisons."""
        flat = {name: self.success(name).reshape(len(run), -1) for name, run in self.runs.items()}
        return {
            "protocol": self.protocol.json(),
            "commits": list(self.commits),
            "arms": {name: self._arm(name) for name in self.runs},
            "pairs": [
                {"first": a, "second": b, "training_seed": i, **asdict(comparison)}
                for a, b, i, comparison in paired_by_seed(flat)
            ],
        }

    def _arm(self, name: str) -> Numbers:
        success, episodes = self.success(name), [e for run in self.runs[name] for e in run]
        decisions, steps = sum(e.decisions for e in episodes), [e.steps for e in episodes if e.success]
        return {
            "training_seeds": len(success),
            "success": asdict(rate(success.reshape(len(success), -1))),
            "of_each_seed": success.mean((1, 2)).tolist(),
            "tasks": {t: asdict(rate(success[:, i])) for i, t in enumerate(self.protocol.tasks)},
            "median_steps": float(np.median(steps)) if steps else None,
            "ms_per_decision": 1e3 * sum(e.seconds for e in episodes) / decisions if decisions else None,
        }


def evaluate_arms(
    arms: Sequence[Arm],
    *,
    protocol: TaskProtocol,
    folder: Path,
    on_episode: Callable[[str, PolicyEpisode], None] | None = None,
    make: Callable[[str, EnvOptions], ManipulationEnv] = make_env,
) -> PolicyResult:
    """Run every arm on every task and seed. Finished episodes are kept in `folder`, and not run again.

    Args:
        on_episode: told of every episode, with the name of the run: also of those found in the folder.

    Raises:
        EpisodeFileError: if the folder holds episodes of other policies or another protocol under the same name.
    """
    names = [run for arm in arms for run in run_names(arm.name, len(arm.actors))]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or len({arm.name for arm in arms}) != len(arms):
        raise ValueError(
            f"every arm, and every run of several (NAME_0, NAME_1 ...), needs a name of its own, got "
            f"{', '.join(twice or names)} twice"
        )
    commit, commits = code_commit(), []
    files: dict[str, list[EpisodeFile]] = {}
    for arm in arms:
        files[arm.name] = []
        for run, settings in zip(run_names(arm.name, len(arm.actors)), arm.settings, strict=True):
            header = {**protocol.json(), "agent": run, "settings": settings}
            files[arm.name].append(EpisodeFile(folder / f"{run}.jsonl", header=header, commit=commit))
    runs: dict[str, list[list[PolicyEpisode]]] = {a.name: [[] for _ in a.actors] for a in arms}
    for task in protocol.tasks:
        envs: list[ManipulationEnv] = []
        for arm in arms:
            for actor, file, found in zip(arm.actors, files[arm.name], runs[arm.name], strict=True):
                done = {e.seed: e for e in file.read(episode_of) if e.task == task}
                missing = [seed for seed in protocol.seeds if seed not in done]
                if missing and not envs:
                    envs = [
                        make(task, protocol.options) for _ in range(min(protocol.batch, protocol.episodes))
                    ]

                def ended(episode: PolicyEpisode, file: EpisodeFile = file, name: str = arm.name) -> None:
                    file.append([episode])
                    if on_episode is not None:
                        on_episode(name, episode)

                if on_episode is not None:
                    for episode in done.values():
                        on_episode(arm.name, episode)
                if missing:
                    run_task(
                        actor, envs=envs, seeds=missing, max_steps=envs[0].max_steps, batch=protocol.batch,
                        on_episode=ended,
                    )  # fmt: skip
                    done = {e.seed: e for e in file.read(episode_of) if e.task == task}
                found += [done[seed] for seed in protocol.seeds]
        for env in envs:
            env.close()
    for group in files.values():
        commits += [c for file in group for c in file.commits()]
    return PolicyResult(
        protocol=protocol,
        runs={name: tuple(tuple(run) for run in family) for name, family in runs.items()},
        commits=tuple(dict.fromkeys(commits)),
    )


def episode_of(line: Mapping[str, Any]) -> PolicyEpisode:
    """An episode from its line."""
    return PolicyEpisode(**line)


def table(summary: Numbers) -> str:
    """The summary as Markdown."""

    def cell(interval: Mapping[str, float]) -> str:
        return f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"

    protocol, arms = summary["protocol"], summary["arms"]
    tasks = protocol["tasks"]
    lines = [
        f"{len(tasks)} tasks, {protocol['episodes']} episodes each, {protocol['split']} seeds from "
        f"{protocol['first_seed']} on. Success at any time. "
        f"{about_intervals(arm['training_seeds'] for arm in arms.values())}",
        "",
        "| policy | training seeds | success | of each seed | median steps to success | ms per decision |",
        "|---|---|---|---|---|---|",
    ]
    for name, arm in arms.items():
        each = " ".join(f"{v:.3f}" for v in arm["of_each_seed"])
        ms = "" if arm["ms_per_decision"] is None else f"{arm['ms_per_decision']:.1f}"
        steps = "" if arm["median_steps"] is None else f"{arm['median_steps']:.0f}"
        lines.append(
            f"| {name} | {arm['training_seeds']} | {cell(arm['success'])} | {each} | {steps} | {ms} |"
        )
    lines += ["", "| task | " + " | ".join(arms) + " |", "|---" * (len(arms) + 1) + "|"]
    for task in tasks:
        lines.append(
            f"| {task} | " + " | ".join(f"{a['tasks'][task]['value']:.2f}" for a in arms.values()) + " |"
        )
    if summary["pairs"]:
        lines += [
            "", "On the same episodes (exact McNemar test):", "",
            "| first | second | training seed | only the first | only the second | difference | p |",
            "|---|---|---|---|---|---|---|",
        ]  # fmt: skip
    for p in summary["pairs"]:
        lines.append(
            f"| {p['first']} | {p['second']} | {p['training_seed']} | {p['first_only']} | {p['second_only']} | "
            f"{cell(p['difference'])} | {p['p_value']:.2g} |"
        )
    return "\n".join([*lines, ""])
