"""The road and the ground around it: a curved strip with kerbs on uneven terrain."""

from dataclasses import dataclass

import numpy as np

from envs.driving.meshes import Mesh, quads

ASPHALT, PAVING, GRASS = 0.34, 0.40, 0.44


@dataclass(frozen=True, kw_only=True)
class Road:
    """A road through the origin, in road coordinates: s metres along the centre line, n metres to its left.

    Attributes:
        curvature: of the centre line in 1/m, positive to the left.
        heading: of the centre line at s = 0 against the x axis, radians.
        offset: n of the ego vehicle; it stands at s = 0 and is the origin of the world.
        lanes: per direction (traffic keeps to the right).
        lane_width: metres.
        parking: width of the parking strips left and right of the lanes, metres (0: none).
        sidewalk: width of the sidewalks left and right, metres (0: none).
        kerb: height of the sidewalks above the road, metres.
        grade: slope of the plane along x and y.
        waves: [K, 4] amplitude (m), wave vector x and y (rad/m), phase: large unevenness.
        banks: rise per metre of the land left and right, from `bank_start` metres beyond the sidewalk.
        end: s at which the road meets a cross street with houses behind it, inf: it goes on.
        side_roads: s of the mouths of side roads, left and right (nan: none), 12 m wide.
    """

    curvature: float
    heading: float
    offset: float
    lanes: int
    lane_width: float
    parking: tuple[float, float]
    sidewalk: tuple[float, float]
    kerb: float
    grade: tuple[float, float]
    waves: np.ndarray
    banks: tuple[float, float]
    bank_start: float
    end: float
    side_roads: tuple[float, float]

    def edge(self, side: int) -> float:
        """|n| of the kerb on the left (side = 1) or the right (-1)."""
        return self.lanes * self.lane_width + self.parking[side < 0]

    def border(self, side: int) -> float:
        """|n| of the outer edge of the sidewalk."""
        return self.edge(side) + self.sidewalk[side < 0]

    def in_side_road(self, s: np.ndarray | float, side: int, *, margin: float = 0.0) -> np.ndarray | bool:
        """Whether s lies in the mouth of the side road on that side."""
        return np.abs(np.asarray(s) - self.side_roads[side < 0]) < 6.0 + margin

    def to_world(
        self, s: np.ndarray | float, n: np.ndarray | float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y and the heading of the road at road coordinates."""
        s, n = np.asarray(s, float), np.asarray(n, float)
        k = self.curvature if abs(self.curvature) > 1e-9 else 1e-9
        turn = k * s
        x = np.sin(turn) / k - n * np.sin(turn)
        y = 2 * np.sin(turn / 2) ** 2 / k + n * np.cos(turn) - self.offset
        c, d = np.cos(self.heading), np.sin(self.heading)
        return c * x - d * y, d * x + c * y, turn + self.heading

    def height(self, s: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Height of the ground at road coordinates, in metres; 0 below the ego vehicle."""
        s, n = np.asarray(s, float), np.asarray(n, float)
        x, y, _ = self.to_world(s, n)
        amplitude, kx, ky, phase = self.waves.T[:, :, None]
        # Roads are levelled: the unevenness grows with the distance from the centre line.
        loose = np.clip((np.abs(n) - 6) / 20, 0.05, 1.0)
        wave = amplitude * (np.sin(kx * x.ravel() + ky * y.ravel() + phase) - np.sin(phase))
        z = self.grade[0] * x + self.grade[1] * y + loose * wave.sum(axis=0).reshape(x.shape)
        for side in (1, -1):
            beyond = np.clip(side * n - self.border(side) - self.bank_start, 0, 25)
            rise = self.banks[side < 0] * beyond
            kerb = (side * n > self.edge(side) + 0.01) & ~self.in_side_road(s, side)
            z = z + rise + self.kerb * kerb
        return z

    def ground(self) -> Mesh:
        """The ground within 85 m along and 75 m across the road."""
        mouths = [v + d for v in self.side_roads if np.isfinite(v) for d in (-6.01, -5.99, 5.99, 6.01)]
        s = np.unique(np.r_[np.arange(-85, -39, 9), np.arange(-36, 45, 4), np.arange(49, 90, 6), mouths])
        near = np.array(
            [
                self.edge(1),
                self.edge(1) + 0.02,
                self.border(1),
                -self.edge(-1),
                -self.edge(-1) - 0.02,
                -self.border(-1),
            ]
        )
        far = [side * (self.border(side) + d) for side in (1, -1) for d in (2.5, 6, 11, 18, 28, 42, 65)]
        n = np.unique(np.r_[near, far, 0.0, self.offset])
        grid_s, grid_n = np.meshgrid(s, n, indexing="ij")
        x, y, _ = self.to_world(grid_s, grid_n)
        vertices = np.stack([x, y, self.height(grid_s, grid_n)], axis=-1)
        cells = np.stack([vertices[:-1, :-1], vertices[1:, :-1], vertices[1:, 1:], vertices[:-1, 1:]], axis=2)
        mid_s = ((s[1:] + s[:-1]) / 2)[:, None]
        mid_n = ((n[1:] + n[:-1]) / 2)[None]
        albedo = np.full((len(s) - 1, len(n) - 1), GRASS)
        relief = np.full(albedo.shape, 0.03)
        for side in (1, -1):
            paved = (side * mid_n > 0) & (side * mid_n < self.border(side))
            road = (side * mid_n > 0) & ((side * mid_n < self.edge(side)) | self.in_side_road(mid_s, side))
            albedo[np.broadcast_to(paved, albedo.shape)] = PAVING
            albedo[np.broadcast_to(road, albedo.shape)] = ASPHALT
            relief[np.broadcast_to(paved | road, albedo.shape)] = 0.004
        triangles = quads(cells.reshape(-1, 4, 3)).astype(np.float32)
        per_triangle = (np.repeat(v.ravel(), 2).astype(np.float32) for v in (albedo, relief))
        return Mesh(triangles, *per_triangle)


def draw_road(rng: np.random.Generator) -> Road:
    """A random road: from a narrow street with cars parked on both sides to two lanes each way."""
    lanes = int(rng.choice([1, 2], p=[0.75, 0.25]))
    lane_width = float(rng.uniform(2.9, 3.6))
    town = rng.random() < 0.8
    own_lane = rng.integers(lanes)
    mouths = np.where(
        rng.random(2) < 0.35, rng.uniform(12, 55, 2) * rng.choice([-1, 1], 2, p=[0.35, 0.65]), np.nan
    )
    angle = rng.uniform(0, 2 * np.pi, 3)
    wave = 2 * np.pi / rng.uniform(18, 60, 3)
    waves = np.stack(
        [rng.uniform(0.05, 0.35, 3), wave * np.cos(angle), wave * np.sin(angle), rng.uniform(0, 6.28, 3)], 1
    )
    return Road(
        curvature=float(rng.normal(0, 0.003)),
        heading=float(rng.normal(0, 0.04)),
        offset=float(-(own_lane + 0.5) * lane_width + rng.normal(0, 0.2)),
        lanes=lanes,
        lane_width=lane_width,
        parking=(2.2 if rng.random() < 0.6 else 0.0, 2.2 if rng.random() < 0.65 else 0.0),
        sidewalk=(float(rng.uniform(1.4, 3.2)), float(rng.uniform(1.4, 3.2))) if town else (1.2, 1.2),
        kerb=float(rng.uniform(0.08, 0.15)) if town else 0.02,
        grade=(float(rng.normal(0, 0.012)), float(rng.normal(0, 0.01))),
        waves=waves,
        banks=(float(max(0, rng.normal(0.02, 0.05))), float(max(0, rng.normal(0.02, 0.05)))),
        bank_start=float(rng.uniform(1, 5)),
        end=float(rng.uniform(40, 70)) if rng.random() < 0.35 else float("inf"),
        side_roads=(float(mouths[0]), float(mouths[1])),
    )
