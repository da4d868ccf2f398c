"""Two rooms joined by a door: a dot to be steered from one picture to another, and episodes of it to learn from."""

from typing import Any, Literal

import numpy as np

from envs import two_rooms_geometry as geometry
from envs.episodes import ActionSpec, Episode
from envs.goals import SPLITS, Problem, Split, clip_action, goal_info, problem_of, require_split
from envs.gym_base import Env, require_gymnasium

MAX_STEP = 2.45
# Of the mean step of an episode, of a step around it, and of all steps.
PACES, STEP_STD, STEPS = (0.5, 1.4), 0.3, (0.05, 2.0)
TURN_STD = 0.2
# Of a step that a wall cut short. A dot that turned at once would show a model little of what walls do: planners then
# push against walls that the model believes to be open from contact.
BOUNCE_RATE = 0.06
_EPISODES_AT_ONCE = 1024


def action_spec() -> ActionSpec:
    """A displacement of the dot of at most 2.45 px."""
    edge = np.full(2, MAX_STEP, np.float32)
    return ActionSpec(names=("dx [px]", "dy [px]"), low=-edge, high=edge, max_norm=MAX_STEP)


class TwoRooms(Env):
    """Steer the dot to where the goal picture shows it (`envs.goals.GoalEnv`).

    State: (x, y) of the dot in px. Observation [2, 65, 65] uint8: dot and walls. Success, at any time: within
    `radius` of the goal. `distance` is the length of the shortest path through the door.

    Layouts of the splits are disjoint (`two_rooms_geometry.layouts`); with a fixed `layout` only starts and goals
    differ.

    Args:
        pairs: "uniform": start and goal independent and uniform over the free positions; "different rooms": as eb_jepa
            evaluates.
        layout: (wall x, door y) for all problems, else one of the split's.
        radius: of success in px. 4.5 is what DINO-WM's Wall and eb_jepa use.
    """

    spec_action = action_spec()
    observation_shape: tuple[int, ...] = (2, geometry.SIZE, geometry.SIZE)
    state_dim = 2
    success_at: Literal["any time", "end"] = "any time"

    def __init__(
        self,
        *,
        pairs: Literal["uniform", "different rooms"] = "uniform",
        layout: tuple[float, float] | None = None,
        radius: float = 4.5,
    ) -> None:
        spaces = require_gymnasium().spaces
        if pairs not in ("uniform", "different rooms"):
            raise ValueError(f'pairs must be "uniform" or "different rooms", got {pairs!r}')
        self.pairs, self.radius = pairs, radius
        self.layout = None if layout is None else geometry.check_layout(np.array(layout))
        self.action_space = spaces.Box(self.spec_action.low, self.spec_action.high, dtype=np.float32)
        self.observation_space = spaces.Box(0, 255, self.observation_shape, np.uint8)

    def problem(self, seed: int, split: Split = "train") -> Problem:
        generator = np.random.default_rng((seed, SPLITS.index(require_split(split)), 0x2200))
        choices = geometry.layouts(split)
        layout = choices[generator.integers(len(choices))] if self.layout is None else self.layout
        if self.pairs == "uniform":
            rooms = (generator.random(2) < _share_right(layout)).astype(int)
        else:
            rooms = generator.permutation(2)
        start, goal = geometry.sample_free(rooms, layout, generator=generator)
        return Problem(seed=seed, split=split, start=start, goal=goal, layout=layout.copy())

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        self._problem = problem_of(self, options, seed=chosen)
        self._state = self._problem.start.copy()
        self._goal_observation = self.render_states(self._problem, self._problem.goal[None])[0]
        return self._report()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        moved = clip_action(self.spec_action, action)
        self._state = geometry.move(self._state[None], moved[None], self._problem.layout)[0]
        observation, info = self._report()
        return observation, float(info["success"]), False, False, info

    def _report(self) -> tuple[np.ndarray, dict[str, Any]]:
        observation = self.render_states(self._problem, self._state[None])[0]
        return observation, goal_info(self, self._problem, self._state, self._goal_observation)

    def simulate(self, problem: Problem, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Exact."""
        moves = clip_action(self.spec_action, actions)
        path = np.empty((*moves.shape[:2], 2))
        position = np.asarray(states, dtype=np.float64)
        for t in range(moves.shape[1]):
            position = path[:, t] = geometry.move(position, moves[:, t], problem.layout)
        return path

    def render_states(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        return geometry.render(states, problem.layout)

    def distance(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        return geometry.free_space(*problem.layout).path_lengths(states, problem.goal)

    def success(self, problem: Problem, states: np.ndarray) -> np.ndarray:
        return np.linalg.norm(states - problem.goal, axis=1) < self.radius


def _share_right(layout: np.ndarray) -> float:
    """Of the free area, that of the right room."""
    inset = geometry.WALL_HALF_WIDTH + 2 * geometry.CLEARANCE
    left = layout[0] - geometry.BORDER_LOW - inset
    right = geometry.BORDER_HIGH - layout[0] - inset
    return float(right / (left + right))


class TwoRoomsEpisodes:
    """Walks of the dot (`envs.episodes.EpisodeSource`); an item is an episode of `length` observations in one layout.

    Behaviour: the direction turns by a normal angle of std 0.2 rad per step, and is drawn anew with a probability of
    0.06 after a step that a wall cut short. Each episode has a pace, uniform in 0.5 to 1.4 px; its steps are normal
    around it with std 0.3 px, clipped to 0.05 to 2.0 px. A share of the episodes, `cross_wall_rate`, starts near the
    door and walks through it first; another, `meet_wall_rate`, starts near the inner wall at any height and walks
    against it, so that a model learns where the door is not.

    Labels: `state` [T, 2] (x, y) of the dot; `layout` [2] (wall x, door y). `actions` are the steps that were asked
    for, also where a wall cut them short.

    Args:
        split: whose layouts; "train", "selection" or "test".
        episodes: number of items; the first ones do not depend on it.
        layout: (wall x, door y) for all episodes, else one of the split's for each.
    """

    action = action_spec()
    observation_shape: tuple[int, ...] = (2, geometry.SIZE, geometry.SIZE)

    def __init__(
        self,
        *,
        split: Split,
        episodes: int = 20_000,
        length: int = 91,
        cross_wall_rate: float = 0.35,
        meet_wall_rate: float = 0.0,
        layout: tuple[float, float] | None = None,
        seed: int = 0,
    ) -> None:
        rates = (cross_wall_rate, meet_wall_rate)
        if episodes < 1 or length < 2 or min(rates) < 0 or sum(rates) > 1:
            raise ValueError(
                "episodes >= 1, length >= 2 and shares cross_wall_rate and meet_wall_rate that sum to at most 1 are "
                f"needed, got {episodes}, {length} and {rates}"
            )
        choices = geometry.layouts(require_split(split))
        if layout is not None:
            choices = geometry.check_layout(np.array(layout))[None]
        chunks = []
        for chunk in range(-(-episodes // _EPISODES_AT_ONCE)):
            generator = np.random.default_rng((seed, SPLITS.index(split), chunk, 0x2201))
            drawn = choices[generator.integers(len(choices), size=_EPISODES_AT_ONCE)]
            walked = walk(
                drawn,
                length,
                cross_wall_rate=cross_wall_rate,
                meet_wall_rate=meet_wall_rate,
                generator=generator,
            )
            chunks.append((drawn, *walked))
        self.layouts, self.states, self.actions = (
            np.concatenate(parts)[:episodes].astype(np.float32) for parts in zip(*chunks, strict=True)
        )

    def __len__(self) -> int:
        return len(self.layouts)

    def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Episode:
        """A random stretch of `steps` observations.

        Raises:
            ValueError: if the episodes are shorter.
        """
        length = self.states.shape[1]
        if not 2 <= steps <= length:
            raise ValueError(f"episodes of {length} observations hold no stretch of {steps}")
        first = int(generator.integers(length - steps + 1))
        states = self.states[item, first : first + steps].copy()
        layout = self.layouts[item].copy()
        return Episode(
            observations=geometry.render(states, layout),
            actions=self.actions[item, first : first + steps - 1].copy(),
            item=item,
            labels={"state": states, "layout": layout},
        )


def walk(
    layouts: np.ndarray,
    length: int,
    *,
    cross_wall_rate: float,
    meet_wall_rate: float = 0.0,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions [N, length, 2] and asked-for steps [N, length - 1, 2] in layouts [N, 2], see `TwoRoomsEpisodes`."""
    count = len(layouts)
    wall, door = layouts.T
    right = generator.random(count) < 0.5
    kind = generator.random(count)
    crossing = kind < cross_wall_rate
    meeting = ~crossing & (kind < cross_wall_rate + meet_wall_rate)
    position = geometry.sample_free(right.astype(int), layouts, generator=generator)
    near = position.copy()
    side = np.where(right, 1.0, -1.0)
    reach = np.minimum(20.0, abs(np.where(right, geometry.BORDER_HIGH, geometry.BORDER_LOW) - wall) - 4.0)
    near[:, 0] = wall + side * generator.uniform(4.0, reach)
    around_door = np.clip(door + generator.uniform(-12.0, 12.0, count), 7.0, geometry.SIZE - 8.0)
    near[:, 1] = np.where(crossing, around_door, generator.uniform(7.0, geometry.SIZE - 8.0, count))
    position = np.where((crossing | meeting)[:, None], near, position)
    # Two places before and behind the door to head for, one after the other.
    ahead = np.stack([wall + 3.0 * side, door], axis=1)
    behind = np.stack([wall - 4.0 * side, door], axis=1)
    stage = np.where(crossing, 0, 2)
    direction = generator.uniform(-np.pi, np.pi, count)
    towards = np.where(right, np.pi, 0.0) + generator.uniform(-0.7, 0.7, count)
    direction = np.where(meeting, towards, direction)

    positions, steps = np.empty((count, length, 2)), np.empty((count, length - 1, 2))
    pace = generator.uniform(*PACES, count)
    positions[:, 0] = position
    for t in range(length - 1):
        heading = np.where((stage == 0)[:, None], ahead, behind) - position
        direction = np.where(stage < 2, np.arctan2(heading[:, 1], heading[:, 0]), direction)
        direction = direction + TURN_STD * generator.standard_normal(count)
        size = np.clip(pace + STEP_STD * generator.standard_normal(count), *STEPS)
        step = size[:, None] * np.stack([np.cos(direction), np.sin(direction)], axis=1)
        after = geometry.move(position, step, layouts)
        blocked = abs(after - position - step).max(axis=1) > 1e-9
        turning = blocked & (generator.random(count) < BOUNCE_RATE)
        direction = np.where(turning, generator.uniform(-np.pi, np.pi, count), direction)
        positions[:, t + 1], steps[:, t], position = after, step, after
        target = np.where((stage == 0)[:, None], ahead, behind)
        stage = np.where((stage < 2) & (np.linalg.norm(position - target, axis=1) < 1.5), stage + 1, stage)
    return positions, steps
