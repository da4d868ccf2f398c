"""Environments by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from envs.manipulation import metaworld
from envs.manipulation.protocol import ManipulationEnv


@dataclass(frozen=True, kw_only=True)
class EnvOptions:
    """What a suite may be told, apart from the task.

    Attributes:
        image_size: height and width of `render` [px].
        preset: of `envs.manipulation.rendering.PRESETS`; of no effect where MuJoCo does not draw.
        max_steps: of an episode; the suite's own number if None.
    """

    image_size: int = 128
    preset: str = "fast"
    max_steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks whose observations and actions have the same shapes.

    Attributes:
        tasks: their names.
        make: an environment of one of them.
    """

    tasks: Callable[[], Sequence[str]]
    make: Callable[[str, EnvOptions], ManipulationEnv]


def _metaworld(task: str, options: EnvOptions) -> ManipulationEnv:
    steps = {} if options.max_steps is None else {"max_steps": options.max_steps}
    return metaworld.MetaWorld(task, image_size=options.image_size, preset=options.preset, **steps)


SUITES = {"metaworld": Suite(tasks=metaworld.task_names, make=_metaworld)}


def env_names(suite: str) -> list[str]:
    """Names of all environments of a suite.

    Raises:
        ValueError: on an unknown suite.
    """
    return [f"{suite}/{task}" for task in _suite(suite).tasks()]


def make_env(name: str, options: EnvOptions | None = None) -> ManipulationEnv:
    """The environment "SUITE/TASK", as in `Demonstration.task`.

    Raises:
        ImportError: naming the extra that is missing.
        ValueError: on an unknown suite or task, or options that it does not take.
    """
    suite, _, task = name.partition("/")
    return _suite(suite).make(task, options or EnvOptions())


def _suite(name: str) -> Suite:
    if name not in SUITES:
        raise ValueError(
            f"unknown suite {name!r}; name an environment SUITE/TASK with one of {', '.join(SUITES)}"
        )
    return SUITES[name]
