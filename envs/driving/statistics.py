"""Statistics by which simulated and real scans are compared (simulation.md 8)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

RANGE_EDGES = (0, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80)
ELEVATION_EDGES = tuple(range(-26, 8, 2))
CAR_RANGE_EDGES = (5, 10, 15, 20, 25, 30, 40, 50, 70)


@dataclass(frozen=True, kw_only=True)
class ScanStatistics:
    """Figures of one full scan.

    Attributes:
        points: number of points.
        ahead: of them within 45 degrees of straight ahead.
        crop: of them in x 0..25.6, y -12.8..12.8 m.
        cells: occupied bird's-eye cells of 0.4 m in x 0..70.4, y -40..40, z -3..1 m.
        ground: most frequent height in 5 cm bins, metres (centre of the bin).
        intensity: mean.
        by_range: share of the points per bin of RANGE_EDGES.
        by_elevation: share of the points per bin of ELEVATION_EDGES (degrees).
    """

    points: int
    ahead: int
    crop: int
    cells: int
    ground: float
    intensity: float
    by_range: tuple[float, ...]
    by_elevation: tuple[float, ...]


def scan_statistics(points: np.ndarray) -> ScanStatistics:
    """Figures of a scan [N, 4]: x forward, y left, z up, intensity 0..1."""
    x, y, z = (points[:, k].astype(np.float64) for k in range(3))
    flat = np.hypot(x, y)
    distance = np.hypot(flat, z)
    heights = np.histogram(z, bins=np.arange(-3.0, 1.0, 0.05))[0]
    return ScanStatistics(
        points=len(points),
        ahead=int((np.abs(np.degrees(np.arctan2(y, x))) < 45).sum()),
        crop=int(((x > 0) & (x < 25.6) & (np.abs(y) < 12.8)).sum()),
        cells=occupied_cells(points),
        ground=float(-3.0 + 0.05 * (heights.argmax() + 0.5)),
        intensity=float(points[:, 3].mean()),
        by_range=_shares(distance, RANGE_EDGES),
        by_elevation=_shares(np.degrees(np.arctan2(z, flat)), ELEVATION_EDGES),
    )


def occupied_cells(points: np.ndarray, *, size: float = 0.4) -> int:
    """Number of bird's-eye cells of `size` metres with a point, over x 0..70.4, y -40..40, z -3..1 m."""
    lo, hi = np.array([0, -40, -3]), np.array([70.4, 40, 1])
    inside = ((points[:, :3] >= lo) & (points[:, :3] < hi)).all(axis=1)
    cell = np.floor((points[inside, :2] - lo[:2]) / size).astype(np.int64)
    return len(np.unique(cell[:, 0] * 100_000 + cell[:, 1]))


def _shares(values: np.ndarray, edges: tuple[int, ...]) -> tuple[float, ...]:
    return tuple((np.histogram(values, bins=edges)[0] / max(len(values), 1)).tolist())


@dataclass(frozen=True, kw_only=True)
class LabelledObject:
    """A labelled object: its category, KITTI occlusion and truncation, range in metres, points inside its box."""

    category: str
    occluded: int
    truncated: float
    range: float
    points: int
    intensity: float


def labelled_objects(points: np.ndarray, *, label: Path, calib: Path) -> list[LabelledObject]:
    """The labelled objects of a KITTI frame (DontCare left out) with the points [N, 4] inside their boxes."""
    to_camera = read_velo_to_camera(calib)
    xyz = points[:, :3] @ to_camera[:, :3].T + to_camera[:, 3]
    objects = []
    for line in label.read_text().splitlines():
        field = line.split()
        if not field or field[0] == "DontCare":
            continue
        height, width, length, x, y, z, rotation = (float(v) for v in field[8:15])
        dx, dy, dz = xyz[:, 0] - x, xyz[:, 1] - y, xyz[:, 2] - z
        c, s = np.cos(rotation), np.sin(rotation)
        inside = (np.abs(c * dx - s * dz) <= length / 2) & (np.abs(s * dx + c * dz) <= width / 2)
        inside &= (dy <= 0) & (dy >= -height)
        objects.append(
            LabelledObject(
                category=field[0],
                occluded=int(field[2]),
                truncated=float(field[1]),
                range=float(np.hypot(x, z)),
                points=int(inside.sum()),
                intensity=float(points[inside, 3].mean()) if inside.any() else float("nan"),
            )
        )
    return objects


def read_velo_to_camera(calib: Path) -> np.ndarray:
    """R0_rect * Tr_velo_to_cam [3, 4] of a KITTI object calib file."""
    rows = dict(line.split(":", 1) for line in calib.read_text().splitlines() if ":" in line)
    rectify = np.array(rows["R0_rect"].split(), float).reshape(3, 3)
    return rectify @ np.array(rows["Tr_velo_to_cam"].split(), float).reshape(3, 4)


def clear_cars(objects: list[LabelledObject]) -> np.ndarray:
    """Range and point count [K, 2] of the cars that are neither occluded nor truncated and hold a point."""
    cars = [o for o in objects if o.category == "Car" and o.occluded == 0 and o.truncated < 0.1 and o.points]
    return np.array([(car.range, car.points) for car in cars]).reshape(-1, 2)


def log_log_slope(cars: np.ndarray, *, nearest: float = 10.0) -> float:
    """Least-squares slope of log points against log range of cars [K, 2] beyond `nearest` metres; nan below 3 cars."""
    cars = cars[cars[:, 0] >= nearest]
    return float(np.polyfit(np.log(cars[:, 0]), np.log(cars[:, 1]), 1)[0]) if len(cars) >= 3 else float("nan")
