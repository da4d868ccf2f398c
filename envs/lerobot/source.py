"""A LeRobot data set as a source of episodes for world models."""

from collections.abc import Sequence

import numpy as np

from envs.episodes import ActionSpec, Episode
from envs.lerobot.reader import LeRobotDataset

LABEL = "label."


class LeRobotEpisodes:
    """An `envs.episodes.EpisodeSource`: an item is an episode of the data set, a sample a window of it.

    The action of frame t leads from frame t to frame t + 1; that of the last frame leads nowhere and is not used.
    Features named "label.NAME" become the label NAME. Images and videos are uint8.

    Args:
        dataset: to draw from.
        observation: feature to observe. Without it the only image or video, or "observation.state".
        action: feature to act by, a vector of numbers.
        labels: further features to return as labels, by their own names.
        channels_first: images as [T, C, H, W] (True) or [T, H, W, C] (False); None leaves them as they are stored.
        in_memory: decode what is used once, and keep it.

    Raises:
        KeyError: on an unknown feature.
        ValueError: if the data set leaves open what to observe, or the action is not a vector of numbers.
    """

    def __init__(
        self,
        dataset: LeRobotDataset,
        *,
        observation: str | None = None,
        action: str = "action",
        labels: Sequence[str] = (),
        channels_first: bool | None = None,
        in_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.observation_key = observation or _only_observation(dataset)
        self.action_key = action
        own = {key: key for key in labels}
        recorded = {key: key.removeprefix(LABEL) for key in dataset.features if key.startswith(LABEL)}
        self.labels = {**own, **recorded}
        self._observation, self._action = dataset.feature(self.observation_key), dataset.feature(action)
        for key in labels:
            dataset.feature(key)
        if self._action.dtype in ("string", "image", "video") or len(self._action.shape) != 1:
            raise ValueError(f"an action is a vector of numbers, feature {action!r} is {self._action}")
        first = self._observation.channels_first
        self._layout_changes = self._observation.visual and channels_first not in (None, first)
        if in_memory:
            dataset.load((self.observation_key, action, *self.labels))

    @property
    def action(self) -> ActionSpec:
        """Bounds are those a recorded source stated, else none."""
        names, info, size = self._action.names, self._action.info, self._action.shape[0]
        if isinstance(names, dict):  # {"motors": [...]} or {"axes": [...]}, as older data sets have it.
            names = next(iter(names.values()), None)
        if not isinstance(names, list | tuple) or len(names) != size:
            names = [f"{self.action_key} {i}" for i in range(size)]
        low, high = (
            np.array([edge if x is None else x for x in info.get(name) or [None] * size], np.float32)
            for name, edge in (("low", -np.inf), ("high", np.inf))
        )
        return ActionSpec(names=tuple(map(str, names)), low=low, high=high, max_norm=info.get("max_norm"))

    @property
    def observation_shape(self) -> tuple[int, ...]:
        shape = self._observation.shape
        if not self._layout_changes:
            return shape
        return (*shape[1:], shape[0]) if self._observation.channels_first else (shape[2], *shape[:2])

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Episode:
        """A window of `steps` frames, its start uniform over those that fit.

        Raises:
            ValueError: if the episode is shorter.
        """
        length = self.dataset.episodes[item].length
        if not 1 <= steps <= length:
            raise ValueError(
                f"episode {item} of {self.dataset.root} has {length} frames, asked for {steps}: leave "
                f"short episodes out (episodes.min_frames={steps})"
            )
        return self.window(item, start=int(generator.integers(length - steps + 1)), steps=steps)

    def window(self, item: int, *, start: int, steps: int) -> Episode:
        """Frames `start` to `start + steps` of an episode.

        Raises:
            IndexError: if the episode or some of the frames do not exist.
        """

        def read(key: str) -> np.ndarray:
            return self.dataset.frames(key, episode=item, start=start, stop=start + steps)

        observations = read(self.observation_key).reshape(steps, *self._observation.shape)
        if self._layout_changes:
            axes = (1, -1) if self._observation.channels_first else (-1, 1)
            observations = np.moveaxis(observations, *axes)
        if observations.dtype != np.uint8:
            observations = observations.astype(np.float32)
        labels = {}
        for key, name in self.labels.items():
            values = read(key)
            labels[name] = values[0] if self.dataset.feature(key).info.get("per") == "episode" else values
        return Episode(
            observations=observations,
            actions=read(self.action_key).reshape(steps, -1)[:-1].astype(np.float32),
            item=item,
            labels=labels,
        )


def _only_observation(dataset: LeRobotDataset) -> str:
    images = dataset.info.keys("image", "video")
    if len(images) == 1:
        return images[0]
    observed = [key for key in dataset.features if key.startswith("observation.")]
    if not images and len(observed) == 1:
        return observed[0]
    if not images and "observation.state" in observed:
        return "observation.state"
    raise ValueError(
        f"{dataset.root}: choose the observation, one of {', '.join(images or observed) or 'no features'}"
    )
