"""Recording any source of episodes as a LeRobot data set."""

from pathlib import Path
from typing import Any

import numpy as np

from envs.episodes import ActionSpec, Episode, EpisodeSource
from envs.lerobot.schema import SCALARS, Feature
from envs.lerobot.source import LABEL
from envs.lerobot.writer import LeRobotWriter


def write_episodes(
    source: EpisodeSource,
    root: str | Path,
    *,
    steps: int,
    fps: float,
    task: str,
    episodes: int | None = None,
    seed: int = 0,
    video: bool = False,
    robot_type: str | None = None,
    **files: Any,
) -> int:
    """Episodes of `steps` observations of a source, as a LeRobot data set that `LeRobotEpisodes` reads back.

    Episode i is of item i (modulo the number of items) and a function of (seed, i): a recording that was broken off
    continues where it stopped, with the episodes it would have had.

    Images (uint8 with 1 or 3 channels) are "observation.image", vectors "observation.state", anything else
    "observation.grid", bit for bit; labels are "label.NAME", and "label.item" is the item. The last frame has no
    action: it repeats the one before.

    Args:
        source: to record.
        root: folder of the data set, new or begun by the same call.
        steps: observations per episode, at least 2.
        fps: frames per second.
        task: what is done, in words.
        episodes: how many; one per item if None.
        seed: of the draws.
        video: images as MP4 instead of PNG: smaller, with loss.
        robot_type: free text.
        files: `codec` and the file sizes of `LeRobotWriter`.

    Returns:
        The number of episodes the data set holds now.

    Raises:
        ValueError: if an array cannot be stored, `steps` is too small, or the folder holds something else.
    """
    if steps < 2:
        raise ValueError(f"an episode to record has at least 2 observations, got {steps}")
    count = len(source) if episodes is None else episodes

    def draw(index: int) -> Episode:
        generator = np.random.default_rng((seed, index))
        return source.sample(index % len(source), steps=steps, generator=generator)

    features = episode_features(draw(0), source.action, video=video)
    with LeRobotWriter(root, features=features, fps=fps, robot_type=robot_type, **files) as writer:
        for index in range(writer.num_episodes, count):
            writer.append(episode_frames(draw(index)), task=task)
        return writer.num_episodes


def episode_features(episode: Episode, action: ActionSpec, *, video: bool = False) -> dict[str, Feature]:
    """The features that hold an episode of a source.

    Raises:
        ValueError: on a type of number that a data set cannot hold.
    """
    frames = episode_frames(episode)
    found = {
        key: _feature(key, values, per_episode=key == f"{LABEL}item" or _per_episode(key, episode))
        for key, values in frames.items()
    }
    bounds = {
        name: [float(x) if np.isfinite(x) else None for x in edge]
        for name, edge in (("low", action.low), ("high", action.high))
    }
    found["action"] = Feature(
        "float32", (action.dim,), names=action.names, info={**bounds, "max_norm": action.max_norm}
    )
    key = _observation_key(episode.observations)
    if key == "observation.image":
        shape = episode.observations.shape[1:]
        last = shape[-1] in (1, 3)
        names = ("height", "width", "channels") if last else ("channels", "height", "width")
        found[key] = Feature("video" if video else "image", shape, names=names)
    elif video:
        raise ValueError(
            f"observations of shape {episode.observations.shape[1:]} are no images, record without video"
        )
    return found


def episode_frames(episode: Episode) -> dict[str, np.ndarray]:
    """The arrays [T, ...] of an episode by feature."""
    length = len(episode.observations)
    frames = {
        _observation_key(episode.observations): episode.observations,
        "action": np.concatenate([episode.actions, episode.actions[-1:]]),
        f"{LABEL}item": np.full(length, episode.item),
    }
    for name, value in episode.labels.items():
        array = np.asarray(value)
        whole = _per_episode(LABEL + name, episode)
        frames[LABEL + name] = np.repeat(array[None], length, axis=0) if whole else array
    return frames


def _per_episode(key: str, episode: Episode) -> bool:
    value = episode.labels.get(key.removeprefix(LABEL)) if key.startswith(LABEL) else None
    return value is not None and (np.ndim(value) == 0 or len(value) != len(episode.observations))


def _observation_key(observations: np.ndarray) -> str:
    shape = observations.shape[1:]
    if observations.dtype == np.uint8 and len(shape) == 3 and (shape[0] in (1, 3) or shape[-1] in (1, 3)):
        return "observation.image"
    return "observation.state" if len(shape) == 1 else "observation.grid"


def _feature(key: str, values: np.ndarray, *, per_episode: bool) -> Feature:
    dtype = "string" if values.dtype.kind == "U" else values.dtype.name
    if dtype not in (*SCALARS, "string"):
        raise ValueError(
            f"{key} is {dtype}, which a data set cannot hold; convert it to one of {', '.join(SCALARS)}"
        )
    return Feature(dtype, values.shape[1:] or (1,), info={"per": "episode"} if per_episode else {})
