"""Roll trained imitation policies out on seeds they were not trained on, beside random actions and the expert.

python scripts/evaluate_policy.py +runs.act_jepa=[DIR,DIR,DIR] +runs.act=[DIR,DIR,DIR]
python scripts/evaluate_policy.py +runs.act_jepa=[DIR] split=selection execution.execute=10 videos=3

The same command goes on where it was stopped.
"""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from imitation import LoadedPolicy, env_options, load_policy
from omegaconf import DictConfig, OmegaConf
from settings import USER_ERRORS
from tqdm import tqdm

from envs.manipulation import NoExpertError, make_env
from envs.manipulation.rendering import RenderError
from policies.episode_files import EpisodeFileError
from policies.evaluation import check_nothing_left_out
from policies.imitation.closed_loop import (
    Execution,
    ExpertActor,
    PolicyActor,
    RandomActor,
    Seat,
    run_task,
)
from policies.imitation.evaluation import Arm, PolicyResult, TaskProtocol, evaluate_arms, table
from policies.videos import write_video
from worldmodel.training.checkpoints import fingerprint, write_json
from worldmodel.training.provenance import provenance

BASELINES: dict[str, type[RandomActor] | type[ExpertActor]] = {"random": RandomActor, "expert": ExpertActor}


def arms_of(settings: dict[str, Any], loaded: dict[str, list[LoadedPolicy]]) -> list[Arm]:
    """Baselines and policies.

    Raises:
        ValueError: on an unknown agent, or an execution that does not suit a policy.
    """
    arms, chosen = [], Execution(**settings["execution"])
    for name in settings["agents"]:
        if name not in BASELINES:
            raise ValueError(
                f"agents are {', '.join(BASELINES)}; policies are given as +runs.NAME=[DIR], got {name!r}"
            )
        arms.append(Arm(name=name, actors=(BASELINES[name](),), settings=({},)))
    for name, family in loaded.items():
        actors: list[PolicyActor] = []
        for model in family:
            try:
                actors.append(
                    PolicyActor(
                        model.policy, execution=chosen, memory=model.memory, device=settings["device"]
                    )
                )
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        described = tuple(
            {
                "policy": m.settings["policy"],
                "seed": m.settings["seed"],
                "execution": asdict(actor.execution),
                "checkpoint": str(m.checkpoint),
                "fingerprint": fingerprint(m.checkpoint),
            }
            for m, actor in zip(family, actors, strict=True)
        )
        arms.append(Arm(name=name, actors=tuple(actors), settings=described))
    return arms


def videos(arms: list[Arm], result: PolicyResult, folder: Path, count: int) -> None:
    """The first episodes of each arm and its first training seed, failures first, played again."""
    for arm in arms:
        episodes = sorted(result.runs[arm.name][0], key=lambda e: e.success)[:count]
        for episode in episodes:
            env = make_env(episode.task, result.protocol.options)
            shots: list[np.ndarray] = []

            def shoot(row: int, seat: Seat, shots: list[np.ndarray] = shots) -> None:
                shots.append(seat.env.render())

            (again,) = run_task(
                arm.actors[0], envs=[env], seeds=[episode.seed], max_steps=env.max_steps,
                batch=result.protocol.batch, on_step=shoot,
            )  # fmt: skip
            outcome = "success" if again.success else "failure"
            name = f"{arm.name}_{episode.task.replace('/', '_')}_{episode.seed}_{outcome}.gif"
            write_video(folder / name, np.stack(shots[:: max(1, len(shots) // 100)]))
            env.close()


def run(settings: dict[str, Any]) -> None:
    """One evaluation."""
    loaded = {
        name: [
            load_policy(Path(path), device=settings["device"])
            for path in ([paths] if isinstance(paths, str) else paths)
        ]
        for name, paths in settings["runs"].items()
    }
    everyone = [m for family in loaded.values() for m in family]
    tasks = settings["tasks"] or (everyone[0].policy.interface.tasks if everyone else None)
    if not tasks:
        raise ValueError("name policies (+runs.NAME=[DIR]) or tasks (tasks=[metaworld/reach])")
    for model in everyone:
        for task in tasks:
            model.policy.interface.task_index(task)
    protocol = TaskProtocol(
        tasks=tuple(tasks),
        split=settings["split"],
        episodes=settings["per_task"],
        options=env_options(settings["env"], everyone),
        batch=settings["batch"],
    )
    arms = arms_of(settings, loaded)
    out = Path(settings["out"] or f"runs/evaluate_policy/{protocol.split}")
    check_nothing_left_out({arm.name: arm.actors for arm in arms}, out)
    total = sum(len(a.actors) for a in arms) * len(tasks) * protocol.episodes
    with tqdm(total=total, unit="episode", disable=not settings["progress"]) as bar:
        try:
            result = evaluate_arms(
                arms, protocol=protocol, folder=out, on_episode=lambda name, _: bar.update()
            )
        except NoExpertError as error:
            raise ValueError(f"{error}: leave the expert out with agents=[random]") from error
    summary = result.summary()
    text = table(summary)
    episodes = {name: [[e.json() for e in run] for run in family] for name, family in result.runs.items()}
    content = {"summary": summary, "settings": settings, "episodes": episodes, **provenance()}
    places = [out / "results.json"]
    if settings["report"] is not None:
        places.append(Path(settings["report"]) / f"{settings['report_name']}.json")
    for path in places:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
        path.with_suffix(".md").write_text(text)
    if settings["videos"]:
        videos(arms, result, out / "videos", settings["videos"])
    print(text)
    print(f"episodes and videos: {out}")


@hydra.main(version_base="1.3", config_path="../configs", config_name="evaluate_policy")
def main(config: DictConfig) -> None:
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    torch.set_num_threads(1)
    try:
        run(settings)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        words = shlex.join(["python", *sys.argv])
        print(f"stopped: what is finished is kept, go on with\n  {words}", file=sys.stderr)
        sys.exit(130)
    except (*USER_ERRORS, EpisodeFileError, RenderError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
