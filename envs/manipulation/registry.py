"""Environments by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from envs.manipulation.aloha import TASKS as ALOHA_TASKS
from envs.manipulation.aloha import Aloha
from envs.manipulation.distractors import Distracted
from envs.manipulation.metaworld import MetaWorld, task_names
from envs.manipulation.ogbench import CUBES, OGBenchCube
from envs.manipulation.point_maze import MAX_STEPS as MAZES
from envs.manipulation.point_maze import PointMazeReach
from envs.manipulation.protocol import ManipulationEnv
from envs.manipulation.push_t import PushTKeypoints


@dataclass(frozen=True, kw_only=True)
class EnvOptions:
    """What a suite may be told, apart from the task.

    Attributes:
        image_size: height and width of `render` [px].
        preset: of `envs.manipulation.rendering.PRESETS`; of no effect where MuJoCo does not draw.
        max_steps: of an episode; the suite's own number if None.
        distractors: meaningless numbers added to the state, see `envs.manipulation.distractors`.
    """

    image_size: int = 128
    preset: str = "fast"
    max_steps: int | None = None
    distractors: int = 0

    def _arguments(self, *, drawn_by_mujoco: bool) -> dict[str, Any]:
        found: dict[str, Any] = {"image_size": self.image_size}
        if drawn_by_mujoco:
            found["preset"] = self.preset
        return found if self.max_steps is None else {**found, "max_steps": self.max_steps}


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks of one simulator.

    Attributes:
        tasks: their names.
        make: an environment of one of them.
    """

    tasks: Callable[[], Sequence[str]]
    make: Callable[[str, EnvOptions], ManipulationEnv]


def _push_t(task: str, options: EnvOptions) -> ManipulationEnv:
    if task != "keypoints":
        raise ValueError(f"Push-T has no task {task!r}; there is push_t/keypoints")
    return PushTKeypoints(**options._arguments(drawn_by_mujoco=False))


SUITES = {
    "metaworld": Suite(
        tasks=task_names, make=lambda task, o: MetaWorld(task, **o._arguments(drawn_by_mujoco=True))
    ),
    "ogbench": Suite(
        tasks=lambda: tuple(CUBES),
        make=lambda task, o: OGBenchCube(task, **o._arguments(drawn_by_mujoco=True)),
    ),
    "aloha": Suite(
        tasks=lambda: tuple(ALOHA_TASKS),
        make=lambda task, o: Aloha(task, **o._arguments(drawn_by_mujoco=True)),
    ),
    "push_t": Suite(tasks=lambda: ("keypoints",), make=_push_t),
    "point_maze": Suite(
        tasks=lambda: tuple(MAZES),
        make=lambda task, o: PointMazeReach(task, **o._arguments(drawn_by_mujoco=False)),
    ),
}


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
    options = options or EnvOptions()
    made = _suite(suite).make(task, options)
    return Distracted(made, options.distractors) if options.distractors else made


def _suite(name: str) -> Suite:
    if name not in SUITES:
        raise ValueError(
            f"unknown suite {name!r}; name an environment SUITE/TASK with one of {', '.join(SUITES)}"
        )
    return SUITES[name]
