"""What closed-loop evaluation and recording need of a simulator, and a check that it is there."""

from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np

from envs.episodes import ActionSpec


class Observation(TypedDict):
    """What a policy may know without a camera.

    Keys:
        state: [Ds] float32, proprioception.
        environment: [De] float32, objects and goal; absent where an environment has none.
    """

    state: np.ndarray
    environment: NotRequired[np.ndarray]


class NoExpertError(NotImplementedError):
    """The environment comes without a scripted expert."""


@runtime_checkable
class Expert(Protocol):
    """A scripted policy that may look into the simulator. It lives for one episode."""

    def act(self, env: "ManipulationEnv") -> np.ndarray:
        """The action [A] float32 for the present state of `env`, within its bounds, without noise."""
        ...


@runtime_checkable
class ManipulationEnv(Protocol):
    """A gymnasium.Env whose observations are `Observation`s, and whose pictures are drawn only when asked for.

    An episode is a function of the seed of `reset` and of the actions, in whatever process and after whatever came
    before. `step` clips the action to the bounds; `terminated` stays False, `truncated` is True from `max_steps` on.
    Every `info` of `reset` and `step` holds `success`, a bool of this moment: an episode succeeds if it was True once.

    Attributes:
        task: the name that `make_env` takes.
        action: names and bounds of an action.
        max_steps: after which an episode is over.
        fps: steps per second of simulated time.
    """

    task: str
    action: ActionSpec
    max_steps: int
    fps: float

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]: ...

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]: ...

    def render(self) -> np.ndarray:
        """The present state as an image [H, W, 3] uint8."""
        ...

    def expert(self) -> Expert:
        """An expert for the episode that has just begun.

        Raises:
            NoExpertError: if there is none.
        """
        ...

    def close(self) -> None: ...
