"""Record a simulator or a set of views as a LeRobot data set (LeRobotDataset v3.0).

python scripts/record_episodes.py two_rooms data/two_rooms_lerobot --episodes 100
python scripts/record_episodes.py point_maze data/maze_lerobot --episodes 20 --steps 101 --option maze=Medium

The same command continues a recording that was broken off.
"""

import argparse
import importlib
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.episodes import EpisodeSource
from envs.lerobot import write_episodes


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A source, and what a recording says of it: what makes it, its rate [1/s], observations per episode, the task."""

    module: str
    factory: str
    fps: float
    steps: int
    task: str


RECIPES = {
    "two_rooms": Recipe(
        module="envs.two_rooms", factory="TwoRoomsEpisodes", fps=10, steps=91, task="walk through two rooms"
    ),
    "point_maze": Recipe(
        module="envs.point_maze",
        factory="PointMazeEpisodes",
        fps=100,
        steps=401,
        task="roll to goals in a maze",
    ),
    "push_t": Recipe(
        module="envs.push_t", factory="PushTEpisodes", fps=10, steps=101, task="push the T block"
    ),
    "digits": Recipe(
        module="envs.views.digits", factory="digits", fps=1, steps=8, task="look at a turned digit"
    ),
    "objects": Recipe(
        module="envs.views.objects", factory="objects", fps=1, steps=8, task="look at an object"
    ),
}


def build(recipe: Recipe, *, wanted: dict[str, object]) -> EpisodeSource:
    """The source, given those of the wanted settings that it has.

    Raises:
        ModuleNotFoundError: if the source, or a package it needs, is not there.
    """
    factory = getattr(importlib.import_module(recipe.module), recipe.factory)
    known = inspect.signature(factory).parameters
    return factory(**{name: value for name, value in wanted.items() if name in known})


def options_of(texts: list[str], recipe: Recipe) -> dict[str, object]:
    """NAME=VALUE pairs for a source; numbers become numbers.

    Raises:
        ValueError: on a pair without "=", or a name that the source does not know.
    """
    factory = getattr(importlib.import_module(recipe.module), recipe.factory)
    found: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in inspect.signature(factory).parameters:
            known = ", ".join(inspect.signature(factory).parameters)
            raise ValueError(f"--option takes NAME=VALUE with a name of {known}; got {text!r}")
        for kind in (int, float, str):
            try:
                found[name] = kind(value)
                break
            except ValueError:
                continue
    return found


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, record, print the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", choices=sorted(RECIPES))
    parser.add_argument("out", type=Path, help="folder of the data set, new or begun by the same command")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--steps", type=int, help="observations per episode; each source has its own default")
    parser.add_argument("--split", default="train", help="of the source (default: train)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fps", type=float, help="frames per second; each source has its own default")
    parser.add_argument("--task", help="what is done, in words")
    parser.add_argument(
        "--video", action="store_true", help="images as MP4 instead of PNG: smaller, with loss"
    )
    parser.add_argument("--codec", default="h264", choices=("h264", "libsvtav1"), help="of the videos")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the source")
    args = parser.parse_args(arguments)
    recipe = RECIPES[args.source]
    steps = args.steps or recipe.steps
    wanted = {"split": args.split, "episodes": args.episodes, "length": steps, "seed": args.seed}
    try:
        source = build(recipe, wanted=wanted | options_of(args.option, recipe))
        count = write_episodes(
            source,
            args.out,
            steps=steps,
            fps=args.fps or recipe.fps,
            task=args.task or recipe.task,
            episodes=args.episodes,
            seed=args.seed,
            video=args.video,
            robot_type=args.source,
            codec=args.codec,
        )
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
    print(f"{args.out}: {count} episodes of {steps} observations")


if __name__ == "__main__":
    main()
