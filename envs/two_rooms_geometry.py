"""Two rooms, a wall with a door between them, and a dot: how it moves and what it looks like.

Positions are (x, y) in pixels of the image, pixel centres at integers. The measures are those of the Two-Rooms of PLDM
(arXiv:2502.14819) and eb_jepa (arXiv:2602.03604), the code is not.
"""

import functools

import numpy as np

from envs.goals import Split, split_of
from envs.shortest_paths import FreeSpace

SIZE = 65
DOT_STD = 1.3
BORDER_LOW, BORDER_HIGH = 4.0, SIZE - 5.0  # border walls are the 5th pixels from the edges
WALL_HALF_WIDTH = 1.0  # centre to outer pixel of a wall drawn 3 px wide
DOOR_HALF_WIDTH = 4.0
WALL_PADDING, DOOR_PADDING = 20, 10  # least distance of wall and door from the edges of the image
CLEARANCE = 2 * DOT_STD  # of starts and goals from every wall

# Walls are entered by less than this before a move counts as blocked: a dot that touches one can still move along it.
_SKIN = 1e-6


@functools.cache
def layouts(split: Split) -> np.ndarray:
    """All layouts (wall x, door y) [L, 2] float64 of a split: a hash of the pair decides, so none is in two of them."""
    return np.array(
        [
            (wall, door)
            for wall in range(WALL_PADDING, SIZE - WALL_PADDING)
            for door in range(DOOR_PADDING, SIZE - DOOR_PADDING)
            if split_of(wall, door) == split
        ],
        dtype=np.float64,
    )


def check_layout(layout: np.ndarray) -> np.ndarray:
    """A layout (wall x, door y) as float64 [2].

    Raises:
        ValueError: if wall or door are too near to the border for two rooms and a door.
    """
    layout = np.asarray(layout, dtype=np.float64)
    low = np.array([BORDER_LOW + WALL_HALF_WIDTH + 2 * CLEARANCE, BORDER_LOW + DOOR_HALF_WIDTH])
    high = np.array([BORDER_HIGH - WALL_HALF_WIDTH - 2 * CLEARANCE, BORDER_HIGH - DOOR_HALF_WIDTH])
    if layout.shape != (2,) or not ((layout >= low) & (layout <= high)).all():
        raise ValueError(f"a layout is (wall x, door y) between {low} and {high}, got {layout}")
    return layout


def free_fraction(positions: np.ndarray, moves: np.ndarray, layout: np.ndarray) -> tuple[np.ndarray, ...]:
    """How much of each move is free.

    Args:
        positions, moves: [N, 2].
        layout: [2] or [N, 2].

    Returns:
        fraction [N] in [0, 1]; axis [N] across which the obstacle lies (0, 1; -1 if nothing is met); face [N], the
        coordinate of the obstacle on that axis.
    """
    count = len(positions)
    wall, door = np.broadcast_to(layout, (count, 2)).T
    fraction, axis, face = np.ones(count), np.full(count, -1), np.zeros(count)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(moves == 0, np.inf, 1 / moves)
        for a in (0, 1):
            target = np.where(moves[:, a] > 0, BORDER_HIGH, BORDER_LOW)
            reach = (target - positions[:, a]) * inverse[:, a]
            hit = (moves[:, a] != 0) & (reach < fraction)
            fraction[hit], axis[hit], face[hit] = np.maximum(reach[hit], 0), a, target[hit]
        # The wall is two boxes, above and below the door, without ends outside. Both share their faces across x.
        side = np.where(moves[:, 0] > 0, wall - WALL_HALF_WIDTH, wall + WALL_HALF_WIDTH)
        depth = WALL_HALF_WIDTH - _SKIN
        enter_x, leave_x = _crossing(positions[:, 0] - wall, moves[:, 0], inverse[:, 0], -depth, depth)
        for low, high, edge in (
            (-np.inf, door - DOOR_HALF_WIDTH - _SKIN, door - DOOR_HALF_WIDTH),
            (door + DOOR_HALF_WIDTH + _SKIN, np.inf, door + DOOR_HALF_WIDTH),
        ):
            enter_y, leave_y = _crossing(positions[:, 1], moves[:, 1], inverse[:, 1], low, high)
            enter = np.maximum(enter_x, enter_y)
            hit = (enter <= np.minimum(leave_x, leave_y)) & (enter >= 0) & (enter < fraction)
            fraction[hit] = enter[hit]
            axis[hit] = np.where(enter_x >= enter_y, 0, 1)[hit]
            face[hit] = np.where(enter_x >= enter_y, side, edge)[hit]
    return fraction, axis, face


def _crossing(
    position: np.ndarray,
    move: np.ndarray,
    inverse: np.ndarray,
    low: np.ndarray | float,
    high: np.ndarray | float,
) -> tuple[np.ndarray, np.ndarray]:
    """Fractions of the moves at which they enter and leave low < coordinate < high."""
    first, second = (low - position) * inverse, (high - position) * inverse
    inside = (position > low) & (position < high)
    still = move == 0
    enter = np.where(still, np.where(inside, -np.inf, np.inf), np.minimum(first, second))
    leave = np.where(still, np.where(inside, np.inf, -np.inf), np.maximum(first, second))
    return enter, leave


def move(positions: np.ndarray, moves: np.ndarray, layout: np.ndarray) -> np.ndarray:
    """Where dots [N, 2] come to rest that set out by `moves` [N, 2]: at the first wall, without sliding along it.

    Args:
        layout: one [2] or one for each dot [N, 2].
    """
    fraction, axis, face = free_fraction(positions, moves, layout)
    after = positions + fraction[:, None] * moves
    for a in (0, 1):
        after[:, a] = np.where(axis == a, face, after[:, a])
    return after


@functools.lru_cache(maxsize=1024)
def free_space(wall: float, door: float) -> FreeSpace:
    """Where a dot can be, for lengths of paths."""
    far = 2.0 * SIZE
    across = (wall - WALL_HALF_WIDTH, wall + WALL_HALF_WIDTH)
    boxes = [
        [(across[0], -far), (across[1], door - DOOR_HALF_WIDTH)],
        [(across[0], door + DOOR_HALF_WIDTH), (across[1], far)],
    ]
    edge = np.array([[BORDER_LOW] * 2, [BORDER_HIGH] * 2])
    return FreeSpace(low=edge[0], high=edge[1], boxes=np.array(boxes))


def sample_free(rooms: np.ndarray, layout: np.ndarray, *, generator: np.random.Generator) -> np.ndarray:
    """Positions [N, 2], uniform in the rooms [N] (0 left, 1 right) of layouts [2] or [N, 2], clear of the walls."""
    rooms = np.asarray(rooms)
    wall = np.broadcast_to(layout, (len(rooms), 2))[:, 0]
    low = np.where(rooms == 0, BORDER_LOW, wall + WALL_HALF_WIDTH) + CLEARANCE
    high = np.where(rooms == 0, wall - WALL_HALF_WIDTH, BORDER_HIGH) - CLEARANCE
    x = generator.uniform(low, high)
    y = generator.uniform(BORDER_LOW + CLEARANCE, BORDER_HIGH - CLEARANCE, len(rooms))
    return np.stack([x, y], axis=1)


def render_walls(layout: np.ndarray) -> np.ndarray:
    """The channel of the walls [65, 65] uint8, rows are y: 255 where there is one."""
    wall, door = layout
    pixel = np.arange(SIZE)
    image = np.zeros((SIZE, SIZE), np.uint8)
    closed = abs(pixel - door) > DOOR_HALF_WIDTH
    image[np.ix_(closed, abs(pixel - wall) <= WALL_HALF_WIDTH)] = 255
    border = [int(BORDER_LOW), int(BORDER_HIGH)]
    image[border, :] = 255
    image[:, border] = 255
    return image


def render(positions: np.ndarray, layout: np.ndarray) -> np.ndarray:
    """Observations [N, 2, 65, 65] uint8 of dots [N, 2] in one layout [2]: a Gaussian dot, and the walls."""
    pixel = np.arange(SIZE, dtype=np.float32)
    # The Gaussian is the product of one along x and one along y.
    offset = pixel - np.asarray(positions, np.float32)[:, :, None]
    along = np.exp(offset * offset * np.float32(-0.5 / DOT_STD**2))
    images = np.empty((len(positions), 2, SIZE, SIZE), np.uint8)
    np.multiply(
        along[:, 1, :, None] * np.float32(255), along[:, 0, None, :], out=images[:, 0], casting="unsafe"
    )
    images[:, 1] = render_walls(layout)
    return images
