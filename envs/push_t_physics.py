"""The table of Push-T: a disc that pushes a T-shaped block (gym-pusht's bodies and constants, its rendering left out).

A state is [7] float64: agent x, y (px), agent vx, vy (px/s), block x, y (px), block angle (rad). The block has no
speed: it rests as soon as nothing pushes it. Block x, y is the middle of the bar's outer edge.
"""

import functools
from typing import Any

import numpy as np

from envs.gym_base import require

STATE_DIM = 7
SIDE = 512.0
AGENT_RADIUS = 15.0
STEP_SECONDS, SUBSTEPS = 0.01, 10
STIFFNESS, DAMPING = 100.0, 20.0
# The T in its own frame: the bar, and the stem below it. Rows: low corner, high corner.
BOXES = np.array([[(-60.0, 0.0), (60.0, 30.0)], [(-15.0, 30.0), (15.0, 120.0)]])
OUTLINE = np.array(
    [(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], float
)
CENTRE_OF_GRAVITY = np.array([0.0, 45.0])
_INSIDE = 8.0  # nearest to the edge of the table that a block is put


def to_world(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points [N, 2] of the block's frame on the table; pose is (x, y, angle)."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    return points @ np.array([[cos, sin], [-sin, cos]]) + pose[:2]


def clearance(agent: np.ndarray, pose: np.ndarray) -> float:
    """Distance of the disc's edge to the block, negative if they overlap."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    local = (agent - pose[:2]) @ np.array([[cos, -sin], [sin, cos]])
    outside = np.maximum(np.maximum(BOXES[:, 0] - local, local - BOXES[:, 1]), 0.0)
    return float(np.linalg.norm(outside, axis=1).min() - AGENT_RADIUS)


def sample_pose(*, generator: np.random.Generator) -> np.ndarray:
    """A pose (x, y, angle) of the block, uniform among those with the whole block on the table."""
    while True:
        pose = np.array([*generator.uniform(0, SIDE, 2), generator.uniform(-np.pi, np.pi)])
        corners = to_world(OUTLINE, pose)
        if corners.min() >= _INSIDE and corners.max() <= SIDE - _INSIDE:
            return pose


def sample_agent(pose: np.ndarray, *, generator: np.random.Generator) -> np.ndarray:
    """A place (x, y) of the agent that is clear of the block."""
    while True:
        agent = generator.uniform(50, SIDE - 50, 2)
        if clearance(agent, pose) > 1.0:
            return agent


def coverage(pose: np.ndarray, goal: np.ndarray) -> float:
    """Share of the goal's T that the block covers; poses (x, y, angle)."""
    polygon = require("shapely.geometry").Polygon
    wanted = polygon(to_world(OUTLINE, goal))
    return float(wanted.intersection(polygon(to_world(OUTLINE, pose))).area / wanted.area)


class Table:
    """The physics.

    Raises:
        ImportError: if gym-pusht is missing.
    """

    def __init__(self) -> None:
        pymunk, official = require("pymunk"), require("gym_pusht.envs.pusht").PushTEnv
        self._space = pymunk.Space()
        self._space.gravity = 0, 0
        self._space.damping = 0.0
        low, high = 5, 506
        corners = [(low, high), (low, low), (high, low), (high, high)]
        edges = zip(corners, [*corners[1:], corners[0]], strict=True)
        self._space.add(*(official.add_segment(self._space, a, b, 2) for a, b in edges))
        self._agent: Any = official.add_circle(self._space, (256, 400), AGENT_RADIUS)
        self._block: Any = official.add_tee(self._space, (256, 300), 0)[0]

    def advance(self, state: np.ndarray, actions: np.ndarray, *, relative: bool) -> np.ndarray:
        """States [H, 7] after each of the actions [H, 2], places to head for during 0.1 s.

        The contact solver starts cold at every action, so that the state is all there is; gym-pusht lets it remember
        contacts.

        Args:
            relative: actions are measured from the agent's place at the time.
        """
        path = np.empty((len(actions), STATE_DIM))
        for t, action in enumerate(actions):
            target = np.clip(state[:2] + action if relative else action, 0.0, SIDE)
            self._put(state)
            self._head_for(float(target[0]), float(target[1]))
            agent, block = self._agent, self._block
            path[t] = *agent.position, *agent.velocity, *block.position, block.angle
            state = path[t]
        return path

    def _put(self, state: np.ndarray) -> None:
        space, agent, block = self._space, self._agent, self._block
        # Far apart for longer than contacts are remembered.
        agent.velocity = 0.0, 0.0
        agent.position, block.position = (-5000.0, 0.0), (5000.0, 0.0)
        for _ in range(space.collision_persistence + 1):
            space.step(1e-9)
        ax, ay, vx, vy, bx, by, angle = state.tolist()
        agent.position, agent.velocity = (ax, ay), (vx, vy)
        # The angle first: turning moves the origin of a body, which is not its centre of gravity.
        block.angle = angle
        block.position = bx, by
        block.velocity, block.angular_velocity = (0.0, 0.0), 0.0

    def _head_for(self, x: float, y: float) -> None:
        agent, step = self._agent, self._space.step
        for _ in range(SUBSTEPS):
            place, speed = agent.position, agent.velocity
            agent.velocity = (
                speed.x + (STIFFNESS * (x - place.x) - DAMPING * speed.x) * STEP_SECONDS,
                speed.y + (STIFFNESS * (y - place.y) - DAMPING * speed.y) * STEP_SECONDS,
            )
            step(STEP_SECONDS)


@functools.cache
def shared_table() -> Table:
    """The process's table: it holds no state between calls."""
    return Table()
