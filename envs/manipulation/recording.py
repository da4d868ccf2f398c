"""Recording experts as a LeRobot data set that grows until it holds what was asked for, whatever happens on the way."""

import contextlib
import json
from collections.abc import Callable, Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from envs.demonstrations import ACTION, ENVIRONMENT, IMAGE, SEED, STATE, SUCCESS, Demonstration
from envs.lerobot import Feature, LeRobotDataset, LeRobotWriter
from envs.lerobot.schema import write_json
from envs.manipulation.protocol import ManipulationEnv
from envs.manipulation.registry import EnvOptions, make_env
from envs.manipulation.rollout import RolloutSettings
from envs.manipulation.workers import Make, Workers

SETTINGS_PATH = "meta/recording.json"
MAX_FAILURES = 50  # in a row, before a recording is given up
_PACKAGES = ("mujoco", "metaworld", "gymnasium-robotics", "gym-pusht", "ogbench", "gym-aloha")


class RecordingError(RuntimeError):
    """The expert does not solve the task, the folder holds a recording that was made otherwise, or a worker died."""


@dataclass(frozen=True, kw_only=True)
class RecordingSettings:
    """What decides the content of a recording, apart from its tasks and the number of episodes.

    Attributes:
        rollout: how the experts are run.
        first_seed: of every task; the seeds after it follow one by one.
        keep_failures: keep the episodes in which the expert fails as well.
        video: pictures as MP4 instead of PNG: smaller, with loss.
        codec: of the videos, "h264" or "libsvtav1".
        expert: what acts, if it is not the environment's own expert: a name that no other has.
    """

    rollout: RolloutSettings
    first_seed: int = 0
    keep_failures: bool = False
    video: bool = False
    codec: str = "h264"
    expert: str | None = None


@dataclass(frozen=True)
class Tally:
    """How many seeds of a task were tried, and in how many of them the expert succeeded."""

    attempts: int = 0
    successes: int = 0

    def after(self, success: bool) -> "Tally":
        return Tally(self.attempts + 1, self.successes + success)

    def kept(self, settings: RecordingSettings) -> int:
        return self.attempts if settings.keep_failures else self.successes


def record(
    root: str | Path,
    *,
    names: Sequence[str],
    episodes: int,
    settings: RecordingSettings,
    workers: int = 1,
    make: Make = make_env,
    report: Callable[[dict[str, Tally]], object] = lambda tallies: None,
) -> dict[str, Tally]:
    """Record until the data set holds `episodes` of each environment, in the order of names and seeds.

    The content is a function of all arguments but `workers`. A recording that was broken off is continued by the same
    call, and is then as if it had not been; more episodes and more environments may be asked for later.

    Args:
        root: folder of the data set, new or begun by this function.
        names: of environments, as `make_env` takes them, of one suite.
        episodes: of each environment.
        settings: the rest of what decides the content.
        workers: processes that run experts.
        make: an environment by name, where `settings.expert` says that another expert comes with it.
        report: called with the tallies at the beginning and after each episode.

    Returns:
        The tallies by name.

    Raises:
        RecordingError: if the folder was recorded with other settings, an expert fails `MAX_FAILURES` times in a row,
            or a worker process is killed.
        ValueError: on an unknown name, environments that do not fit in one data set, or a folder that holds something
            else.
    """
    suites = {name.partition("/")[0] for name in names}
    if episodes < 1 or len(suites) != 1 or len(set(names)) != len(names):
        raise ValueError(
            f"at least one episode of different environments of one suite is needed, got {episodes} of {[*names]}"
        )
    root = Path(root)
    _check_settings(root, settings)
    features, fps = _common_features(names, settings, make)
    with (
        LeRobotWriter(
            root, features=features, fps=fps, robot_type=suites.pop(), codec=settings.codec
        ) as writer,
        Workers(workers, make=make) as pool,
    ):
        write_json(root / SETTINGS_PATH, _description(settings))
        tallies = dict.fromkeys(names, Tally()) | _tallies(root, settings, count=writer.num_episodes)
        report(tallies)
        for name in names:

            def missing(name: str = name) -> int:
                return episodes - tallies[name].kept(settings)

            seed = settings.first_seed + tallies[name].attempts
            with contextlib.closing(_attempts(pool, name, seed, settings, missing)) as attempts:
                while missing() > 0:
                    demonstration = next(attempts)
                    if demonstration.success or settings.keep_failures:
                        writer.append(demonstration_frames(demonstration), task=name)
                    tallies[name] = tallies[name].after(demonstration.success)
                    report(tallies)
    return tallies


def _attempts(
    pool: Workers, name: str, seed: int, settings: RecordingSettings, missing: Callable[[], int]
) -> Generator[Demonstration, None, None]:
    """Demonstrations of the seeds from `seed` on, as long as there is hope."""
    failures = 0
    made = pool.demonstrations(name, first_seed=seed, settings=settings.rollout, wanted=missing)
    with contextlib.closing(made):
        try:
            for demonstration in made:
                yield demonstration
                failures = 0 if demonstration.success else failures + 1
                if failures == MAX_FAILURES and not settings.keep_failures:
                    raise RecordingError(
                        f"the expert of {name} failed {failures} times in a row: lower the noise, raise the number of "
                        "steps, or keep failures"
                    )
        except BrokenProcessPool as error:
            raise RecordingError(
                "a worker process was ended from outside, perhaps for want of memory: the same command with fewer "
                "workers goes on from here"
            ) from error


def _common_features(
    names: Sequence[str], settings: RecordingSettings, make: Make
) -> tuple[dict[str, Feature], float]:
    """Features and frames per second of all environments, before hours are spent on the first."""
    found: dict[str, tuple[dict[str, Feature], float]] = {}
    for name in names:
        env = make(name, settings.rollout.options)
        found[name] = demonstration_features(env, settings), env.fps
        env.close()
        if found[name] != found[names[0]]:
            raise ValueError(
                f"{name} and {names[0]} do not fit in one data set ({_told(found[name])} and "
                f"{_told(found[names[0]])}): record them into folders of their own"
            )
    return found[names[0]]


def _told(described: tuple[dict[str, Feature], float]) -> str:
    features, fps = described
    return ", ".join(f"{key} {list(feature.shape)}" for key, feature in features.items()) + f", {fps:g} fps"


def demonstration_features(env: ManipulationEnv, settings: RecordingSettings) -> dict[str, Feature]:
    """The features that hold demonstrations of an environment."""
    observation, _ = env.reset(seed=settings.first_seed)
    spec = env.action
    found = {STATE: Feature("float32", observation["state"].shape)}
    if "environment" in observation:
        found[ENVIRONMENT] = Feature("float32", observation["environment"].shape)
    if settings.rollout.image:
        size = settings.rollout.options.image_size
        kind = "video" if settings.video else "image"
        found[IMAGE] = Feature(kind, (size, size, 3), names=("height", "width", "channels"))
    bounds = {"low": spec.low.tolist(), "high": spec.high.tolist()}
    found[ACTION] = Feature("float32", (spec.dim,), names=spec.names, info=bounds)
    found[SUCCESS] = Feature("bool", (1,))
    found[SEED] = Feature("int64", (1,), info={"per": "episode"})
    return found


def demonstration_frames(demonstration: Demonstration) -> dict[str, np.ndarray]:
    """The arrays [T, ...] of a demonstration by feature. Success is that of the last frame, whose action led to it."""
    steps = len(demonstration)
    optional = {ENVIRONMENT: demonstration.environment, IMAGE: demonstration.image}
    return {
        STATE: demonstration.state,
        **{key: rows for key, rows in optional.items() if rows is not None},
        ACTION: demonstration.action,
        SUCCESS: (np.arange(steps) == steps - 1) & demonstration.success,
        SEED: np.full(steps, demonstration.seed),
    }


def _description(settings: RecordingSettings) -> dict[str, Any]:
    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {**asdict(settings), "versions": {package: installed(package) for package in _PACKAGES}}


def _check_settings(root: Path, settings: RecordingSettings) -> None:
    path = root / SETTINGS_PATH
    if not path.is_file():
        return
    found, asked = json.loads(path.read_text(encoding="utf-8")), _description(settings)
    differences = [
        f"{key}: {found.get(key)}, now {asked[key]}" for key in asked if found.get(key) != asked[key]
    ]
    if differences:
        raise RecordingError(
            f"{root} was recorded with other settings ({'; '.join(differences)}): give another folder, or the same "
            "settings"
        )


def recorded_options(root: str | Path) -> EnvOptions | None:
    """Of the environments that a data set was recorded from, None if it is not a recording of this project."""
    path = Path(root) / SETTINGS_PATH
    if not path.is_file():
        return None
    return EnvOptions(**json.loads(path.read_text(encoding="utf-8"))["rollout"]["options"])


def _tallies(root: Path, settings: RecordingSettings, *, count: int) -> dict[str, Tally]:
    """Of a recording of `count` episodes. Seeds that failed since the last one kept are not counted: they are tried
    again."""
    if not count:
        return {}
    dataset = LeRobotDataset(root)
    found: dict[str, Tally] = {}
    for entry in dataset.episodes:
        last = {"episode": entry.index, "start": entry.length - 1}
        seed, success = (int(dataset.frames(key, **last)[0]) for key in (SEED, SUCCESS))
        before = found.get(entry.tasks[0], Tally())
        found[entry.tasks[0]] = Tally(seed - settings.first_seed + 1, before.successes + success)
    return found
