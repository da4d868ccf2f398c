"""The environments an evaluation can be asked for by name: how they are made, what kinds of problems they pose, and how
a problem is drawn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Polygon, Rectangle

from envs.goals import GoalEnv, Problem

Kinds = Callable[[GoalEnv, Problem], Mapping[str, str]]
Draw = Callable[[Axes, Any, Problem, np.ndarray], None]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """An environment by name.

    Attributes:
        name: as it was asked for.
        make: a new environment.
        kinds: distinctions between its problems, for tables of success by group.
        draw: axes, environment, problem and states so far [T, S] to a picture.
    """

    name: str
    make: Callable[[], GoalEnv]
    kinds: Kinds | None
    draw: Draw


def environment(name: str, **options: Any) -> Environment:
    """The environment of this name.

    Raises:
        ValueError: if there is none, or it has no such option.
    """
    if name not in _ENVIRONMENTS:
        raise ValueError(f"the environment is one of {', '.join(_ENVIRONMENTS)}, got {name!r}")
    load, kinds, draw = _ENVIRONMENTS[name]
    make = partial(load(), **options)
    try:
        make()
    except TypeError as error:
        raise ValueError(f"environment {name}: {error}") from error
    return Environment(name=name, make=make, kinds=kinds, draw=draw)


def _two_rooms() -> Callable[..., GoalEnv]:
    from envs.two_rooms import TwoRooms

    return TwoRooms


def _point_maze() -> Callable[..., GoalEnv]:
    from envs.point_maze import PointMaze

    return PointMaze


def _push_t() -> Callable[..., GoalEnv]:
    from envs.push_t import PushT

    return PushT


def _rooms(env: GoalEnv, problem: Problem) -> dict[str, str]:
    """Same or different rooms, and how far from the middle the door is (what a policy without a map would bet on)."""
    from envs.two_rooms_geometry import SIZE

    wall, door = problem.layout
    same = (problem.start[0] < wall) == (problem.goal[0] < wall)
    central = abs(door - (SIZE - 1) / 2) <= (SIZE - 1) / 8
    return {
        "rooms": "same room" if same else "different rooms",
        "door": "near the middle" if central else "near an edge",
    }


def _turn(env: GoalEnv, problem: Problem) -> dict[str, str]:
    angle = abs((problem.goal[6] - problem.start[6] + np.pi) % (2 * np.pi) - np.pi)
    return {"turn of the block": "up to 20 degrees" if angle < np.pi / 9 else "more than 20 degrees"}


def _draw_rooms(ax: Axes, env: Any, problem: Problem, states: np.ndarray) -> None:
    from envs.two_rooms_geometry import SIZE, render_walls

    ax.imshow(render_walls(problem.layout), cmap="Greys", vmin=0, vmax=510)
    _trail(ax, states, problem)
    ax.add_patch(Circle(tuple(problem.goal), env.radius, fill=False, color="tab:green"))
    ax.set(xlim=(-0.5, SIZE - 0.5), ylim=(SIZE - 0.5, -0.5))


def _draw_maze(ax: Axes, env: Any, problem: Problem, states: np.ndarray) -> None:
    from envs.point_maze import RADIUS

    for cell in np.argwhere(env.maze.walls):
        x, y = env.maze.centre(cell)
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color="0.75"))
    _trail(ax, states, problem)
    ax.add_patch(Circle((problem.goal[0], problem.goal[1]), RADIUS, fill=False, color="tab:green"))
    ax.autoscale_view()


def _draw_push_t(ax: Axes, env: Any, problem: Problem, states: np.ndarray) -> None:
    from envs.push_t_physics import AGENT_RADIUS, OUTLINE, SIDE, to_world

    for state, colour in ((problem.goal, "tab:green"), (states[-1], "0.4")):
        ax.add_patch(Polygon(to_world(OUTLINE, state[4:]), fill=colour == "0.4", color=colour, alpha=0.6))
        ax.add_patch(Circle((state[0], state[1]), AGENT_RADIUS, fill=False, color=colour))
    _trail(ax, states, problem)
    ax.set(xlim=(0, SIDE), ylim=(SIDE, 0))


def _trail(ax: Axes, states: np.ndarray, problem: Problem) -> None:
    ax.plot(states[:, 0], states[:, 1], "-", color="tab:blue", lw=1)
    ax.plot(*problem.start[:2], "s", color="tab:orange", ms=5)
    ax.plot(*problem.goal[:2], "*", color="tab:green", ms=8)
    ax.plot(*states[-1, :2], "o", color="tab:blue", ms=5)
    ax.set(xticks=[], yticks=[], aspect="equal")


_ENVIRONMENTS: dict[str, tuple[Callable[[], Callable[..., GoalEnv]], Kinds | None, Draw]] = {
    "two_rooms": (_two_rooms, _rooms, _draw_rooms),
    "point_maze": (_point_maze, None, _draw_maze),
    "push_t": (_push_t, _turn, _draw_push_t),
}
