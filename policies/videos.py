"""Episodes to look at: moving pictures of some, and one page of paths. Failures first: they say more."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from envs.goals import Problem, Split
from policies.environments import Environment
from policies.rollouts import Episode

VIDEO_FORMATS = (".gif", ".mp4")


def failures_first(episodes: Sequence[Episode], count: int) -> list[Episode]:
    """The first `count` episodes, those without success before those with."""
    return sorted(episodes, key=lambda e: e.any_time)[:count]


def frames(
    episode: Episode, *, environment: Environment, split: Split, most: int = 100, size: int = 240
) -> np.ndarray:
    """Pictures [T, size, size, 3] uint8 of an episode: start, goal, walls and the path so far.

    Args:
        most: pictures; of a longer episode every second, third... state is drawn, and the last.
    """
    env = environment.make()
    problem, path = env.problem(episode.seed, split), np.array(episode.path)
    stride = -(-len(path) // most)
    times = sorted({*range(0, len(path), stride), len(path) - 1})
    figure = Figure(figsize=(2.4, 2.4), dpi=size / 2.4)
    canvas = FigureCanvasAgg(figure)
    ax = figure.add_axes((0.02, 0.02, 0.96, 0.88))
    pictures = []
    for t in times:
        ax.clear()
        environment.draw(ax, env, problem, path[: t + 1])
        ax.set_title(_title(episode, t), fontsize=7, pad=2)
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return np.stack(pictures)


def write_video(path: Path, pictures: np.ndarray, *, fps: int = 15) -> None:
    """Pictures [T, H, W, 3] uint8 as .gif (pillow) or .mp4 (av).

    Raises:
        ValueError: on another suffix.
        ImportError: naming the extra that is missing.
    """
    if path.suffix not in VIDEO_FORMATS:
        raise ValueError(f"a video is written as {' or '.join(VIDEO_FORMATS)}, got {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        _write_gif(path, pictures, fps=fps)
    else:
        _write_mp4(path, pictures, fps=fps)


def _write_gif(path: Path, pictures: np.ndarray, *, fps: int) -> None:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("GIFs need pillow: pip install 'robot-worldmodel[sim]'") from error
    images = [Image.fromarray(p).quantize(64) for p in pictures]
    # The last picture stays for a second.
    durations = [1000 // fps] * (len(images) - 1) + [1000]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)


def _write_mp4(path: Path, pictures: np.ndarray, *, fps: int) -> None:
    try:
        import av
    except ImportError as error:
        raise ImportError("MP4 needs av: pip install 'robot-worldmodel[lerobot]'") from error
    height, width = (n - n % 2 for n in pictures.shape[1:3])  # the encoder wants even numbers
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def draw_paths(
    path: Path,
    episodes: dict[str, Sequence[Episode]],
    *,
    environment: Environment,
    split: Split,
    problems: int = 6,
) -> None:
    """A PNG with one row per agent and one column per problem, problems that the last agent failed first."""
    env = environment.make()
    *_, last = episodes.values()
    seeds = [e.seed for e in failures_first(last, problems)]
    figure = Figure(figsize=(1.9 * len(seeds), 2.1 * len(episodes)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(episodes), len(seeds), squeeze=False)
    for axes, (name, run) in zip(grid, episodes.items(), strict=True):
        by_seed = {e.seed: e for e in run}
        for ax, seed in zip(axes, seeds, strict=True):
            problem: Problem = env.problem(seed, split)
            environment.draw(ax, env, problem, np.array(by_seed[seed].path))
            ax.set_title(_title(by_seed[seed], by_seed[seed].steps), fontsize=7)
        axes[0].set_ylabel(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _title(episode: Episode, step: int) -> str:
    found = episode.first_success
    state = "" if found is None or step < found else f", reached at {found}"
    return f"problem {episode.seed}, step {step}{state}"
