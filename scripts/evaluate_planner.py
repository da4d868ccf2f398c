"""Closed-loop evaluation of planners on problems that no training run has seen, beside floors and an oracle.

python scripts/evaluate_planner.py agents=[noop,random,oracle]                 floors and upper bound
python scripts/evaluate_planner.py run=runs/train_world_model/DIR              a trained world model too
python scripts/evaluate_planner.py run=[DIR_0,DIR_1,DIR_2] report=docs/results three training seeds, tables to the docs
python scripts/evaluate_planner.py run=DIR split=selection planning.execute=1  to choose settings: never on test

Writes results.json, results.md, episodes, videos and paths to `out`. Ctrl-C keeps what is finished; the same command
goes on from there.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from runs import locate
from settings import USER_ERRORS
from world_models import LoadedWorldModel, load_inverse_dynamics, load_world_model

from policies.agents import InverseDynamicsPolicy, LatentPlanner, OraclePlanner, PlanningSettings
from policies.baselines import NoOpAgent, RandomAgent
from policies.diagnostics import diagnose
from policies.environments import Environment, environment
from policies.episode_files import EpisodeFileError
from policies.evaluation import EvaluationProtocol, EvaluationResult, check_nothing_left_out, evaluate
from policies.report import markdown, summarise
from policies.rollouts import Agent, AgentError, EpisodeBudget
from policies.videos import draw_paths, failures_first, frames, write_video
from worldmodel.training.checkpoints import fingerprint, write_json
from worldmodel.training.provenance import provenance

AGENTS = ("noop", "random", "oracle", "planner", "inverse")
DEFAULT_BLOCK = 4
DIAGNOSED = 32  # problems


def folders(value: Any) -> list[Path]:
    """A folder or a list of them."""
    return [Path(v) for v in (value if isinstance(value, list) else [] if value is None else [value])]


def planning_settings(settings: dict[str, Any]) -> PlanningSettings:
    """The `planning` group, with the bound of actions for this environment."""
    options = dict(settings["planning"])
    limits = options.pop("max_norms")
    return PlanningSettings(**options, max_norm=limits.get(settings["env"]["name"]))


def build_agents(settings: dict[str, Any], models: list[LoadedWorldModel]) -> dict[str, list[Agent]]:
    """The agents that were asked for, by name and training seed.

    Raises:
        ValueError: for an unknown agent, or one that lacks its run.
    """
    planning = planning_settings(settings)
    block = settings["oracle"]["block"] or (models[0].block if models else DEFAULT_BLOCK)
    families: dict[str, list[Agent]] = {}
    for name in settings["agents"]:
        if name not in AGENTS:
            raise ValueError(f"agents are {', '.join(AGENTS)}, got {name!r}")
        if name in ("planner", "inverse") and not models:
            raise ValueError(
                f"agent {name} needs a trained world model: run=DIR, or leave it out of `agents`"
            )
        if name == "noop":
            families[name] = [NoOpAgent()]
        elif name == "random":
            families[name] = [RandomAgent(**settings["random"])]
        elif name == "oracle":
            cost = settings["oracle"]["cost"]
            families[name] = [OraclePlanner(block=block, planning=planning, cost=cost)]
        elif name == "planner":
            families[name] = [planner(m, planning, settings["device"]) for m in models]
        else:
            families[name] = inverse(settings, models)
    return families


def described(model: LoadedWorldModel) -> dict[str, Any]:
    """What is stored of a trained model: how it was made, and which weights exactly."""
    return {"model": model.settings, **identified(model.checkpoint)}


def identified(checkpoint: Path) -> dict[str, str]:
    return {"checkpoint": str(checkpoint), "fingerprint": fingerprint(checkpoint)}


def planner(model: LoadedWorldModel, planning: PlanningSettings, device: str) -> LatentPlanner:
    return LatentPlanner(
        model=model.model.to(device),
        block=model.block,
        window=model.window,
        planning=planning,
        device=device,
        settings=described(model),
    )


def inverse(settings: dict[str, Any], models: list[LoadedWorldModel]) -> list[Agent]:
    """Inverse-dynamics policies over the encoders of the runs."""
    heads = folders(settings["head"])
    if len(heads) != len(models):
        raise ValueError(f"agent inverse needs one head per run: {len(models)} runs, {len(heads)} heads")
    return [
        InverseDynamicsPolicy(
            model=model.model,
            head=load_inverse_dynamics(folder, model),
            block=model.block,
            device=settings["device"],
            settings={**described(model), "head": identified(locate(folder)[1])},
        )
        for model, folder in zip(models, heads, strict=True)
    ]


def diagnostics(
    settings: dict[str, Any], models: list[LoadedWorldModel], env: Environment, result: EvaluationResult
) -> list[dict[str, Any]]:
    """Of every trained model, on the first problems of the evaluation."""
    one = env.make()
    problems = [one.problem(seed, result.protocol.split) for seed in result.seeds[:DIAGNOSED]]
    return [
        diagnose(
            m.model, one, problems, block=m.block, window=m.window, device=settings["device"],
            planning=planning_settings(settings), blocks=settings["planning"]["planner"]["horizon"],
        )
        for m in models
    ]  # fmt: skip


def pictures(settings: dict[str, Any], env: Environment, result: EvaluationResult, out: Path) -> None:
    """Videos per agent, and one figure of paths."""
    split, videos = result.protocol.split, settings["videos"]
    for name, runs in result.runs.items():
        for episode in failures_first(runs[0], videos["count"]):
            outcome = "success" if episode.any_time else "failure"
            path = out / "videos" / f"{name}_{episode.seed}_{outcome}.{videos['format']}"
            write_video(path, frames(episode, environment=env, split=split))
    draw_paths(out / "paths.png", {n: r[0] for n, r in result.runs.items()}, environment=env, split=split)


def compact(result: EvaluationResult, more: dict[str, Any]) -> dict[str, Any]:
    """What goes to the docs: all but the paths."""
    content = result.json()
    for runs in content["runs"].values():
        for episode in (e for run in runs for e in run):
            del episode["path"]
    return {"summary": summarise(result), **more, **content, **provenance()}


def run(settings: dict[str, Any]) -> int:
    """One evaluation."""
    options = {k: v for k, v in settings["env"].items() if k != "name"}
    env = environment(settings["env"]["name"], **options)
    models = [load_world_model(path) for path in folders(settings["run"])]
    for model in models:
        trained_in = model.settings.get("episodes", {}).get("name", env.name)
        if trained_in not in (env.name, "lerobot"):  # a recording may be of any environment
            raise ValueError(
                f"{model.checkpoint} was trained in {trained_in}, not in {env.name}: env.name={trained_in}"
            )
    agents = build_agents(settings, models)
    protocol = EvaluationProtocol(
        environment=env.name,
        split=settings["split"],
        seeds=tuple(range(settings["first_seed"], settings["first_seed"] + settings["problems"])),
        budget=EpisodeBudget(**settings["budget"]),
        batch=settings["batch"],
        play_on=settings["play_on"],
        success_at=env.make().success_at,
    )
    out = Path(settings["out"] or f"runs/evaluate_planner/{env.name}_{protocol.split}")
    check_nothing_left_out(agents, out)
    result = evaluate(
        agents, make_env=env.make, protocol=protocol, settings=settings, groups=env.kinds, folder=out,
        progress=settings["progress"],
    )  # fmt: skip
    more = {"diagnostics": diagnostics(settings, models, env, result)}
    write_json(out / "results.json", {**result.json(), **more, "summary": summarise(result), **provenance()})
    (out / "results.md").write_text(markdown(result))
    if settings["report"] is not None:
        path = Path(settings["report"]) / f"planning_{env.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, compact(result, more))
        path.with_suffix(".md").write_text(markdown(result))
    if settings["videos"]["count"]:
        pictures(settings, env, result, out)
    print(markdown(result))
    print(f"episodes, videos and paths: {out}")
    return 0


@hydra.main(version_base="1.3", config_path="../configs", config_name="evaluate_planner")
def main(config: DictConfig) -> None:
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    torch.set_num_threads(1)
    try:
        sys.exit(run(settings))  # type: ignore[arg-type]
    except KeyboardInterrupt:
        print(
            f"stopped: what is finished is kept, go on with\n  {shlex.join(['python', *sys.argv])}",
            file=sys.stderr,
        )
        sys.exit(130)
    except (*USER_ERRORS, AgentError, EpisodeFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
