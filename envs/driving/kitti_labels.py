"""KITTI object annotation of a simulated frame: calibration, label lines, visible fractions."""

from dataclasses import dataclass

import numpy as np

from envs.sensors.lidar import Scan, SpinningLidar, ray_pattern
from envs.sensors.raycast import EmbreeCaster
from envs.sensors.world import Box, World

MIN_RETURNS = 5


@dataclass(frozen=True, kw_only=True)
class KittiCamera:
    """The left colour camera: KITTI's intrinsics, looking along +x of the LiDAR.

    Camera axes: x right, y down, z forward. The camera stands 0.27 m ahead of the LiDAR and 0.08 m below it.
    """

    focal: float = 721.5377
    center: tuple[float, float] = (609.5593, 172.854)
    size: tuple[int, int] = (1242, 375)
    baseline: float = 0.54
    velo_to_cam: tuple[tuple[float, ...], ...] = ((0, -1, 0, 0), (0, 0, -1, -0.08), (1, 0, 0, -0.27))

    def projection(self, offset: float = 0.0) -> np.ndarray:
        """3 x 4 projection matrix of a camera `offset` metres to the right."""
        f, (cx, cy) = self.focal, self.center
        return np.array([[f, 0, cx, -f * offset if offset else 0.0], [0, f, cy, 0], [0, 0, 1, 0]])

    def from_velo(self, points: np.ndarray) -> np.ndarray:
        """Points [N, 3] from LiDAR to camera axes."""
        matrix = np.array(self.velo_to_cam)
        return points @ matrix[:, :3].T + matrix[:, 3]

    def calib_text(self) -> str:
        """The content of a KITTI object calib file."""
        rows = {f"P{i}": self.projection(self.baseline * (i % 2)) for i in range(4)}
        rows["R0_rect"] = np.eye(3)
        rows["Tr_velo_to_cam"] = np.array(self.velo_to_cam)
        rows["Tr_imu_to_velo"] = np.eye(4)[:3]
        lines = [f"{name}: " + " ".join(f"{v:.12e}" for v in matrix.ravel()) for name, matrix in rows.items()]
        return "\n".join(lines) + "\n"

    def image_box(self, corners: np.ndarray) -> tuple[tuple[float, float, float, float], float]:
        """Image rectangle of corners [8, 3] (camera axes) clipped to the image, and the truncated share.

        A box wholly outside the image gets a rectangle of zero area on its edge and a truncation of 1.
        """
        front = _clip_to_front(corners, near=0.1)
        u = self.focal * front[:, 0] / front[:, 2] + self.center[0]
        v = self.focal * front[:, 1] / front[:, 2] + self.center[1]
        full = np.array([u.min(), v.min(), u.max(), v.max()])
        limit = np.array([self.size[0], self.size[1], self.size[0], self.size[1]]) - 1.0
        x1, y1, x2, y2 = np.clip(full, 0, limit)
        area = max((full[2] - full[0]) * (full[3] - full[1]), 1e-9)
        return (x1, y1, x2, y2), float(1 - (x2 - x1) * (y2 - y1) / area)


_EDGES = [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)]


def _clip_to_front(corners: np.ndarray, *, near: float) -> np.ndarray:
    """The corners in front of the camera and where box edges cross the near plane."""
    points = [c for c in corners if c[2] >= near]
    for i, j in _EDGES:
        a, b = corners[i], corners[j]
        if (a[2] < near) != (b[2] < near):
            points.append(a + (near - a[2]) / (b[2] - a[2]) * (b - a))
    return np.array(points)


def wrap(angle: float) -> float:
    """An angle in radians brought into [-pi, pi)."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def label_line(box: Box, *, mount_height: float, camera: KittiCamera, visible: float) -> str:
    """One line of a KITTI label file (15 columns) for a box in world coordinates.

    Args:
        box: the object.
        mount_height: of the LiDAR above the origin of the world, metres.
        camera: where the label is seen from.
        visible: unoccluded fraction; it sets the occlusion level: 0 above 0.7, 1 above 0.3, else 2.
    """
    shift = np.array([0, 0, mount_height])
    bottom = np.array([*box.center[:2], box.center[2] - box.size[2] / 2])
    x, y, z = camera.from_velo((bottom - shift)[None])[0]
    (x1, y1, x2, y2), truncated = camera.image_box(camera.from_velo(box.corners() - shift))
    rotation = wrap(-box.yaw - np.pi / 2)
    alpha = wrap(rotation - np.arctan2(x, z))
    occluded = 0 if visible > 0.7 else 1 if visible > 0.3 else 2
    length, width, height = box.size
    numbers = (alpha, x1, y1, x2, y2, height, width, length, x, y, z, rotation)
    return f"{box.category} {truncated:.2f} {occluded} " + " ".join(f"{v:.2f}" for v in numbers)


def visible_fraction(
    box: Box, *, hits: int, sensor: SpinningLidar, world: World, azimuth_range: tuple[float, float] | None
) -> float:
    """Rays that hit the object first (`hits`) over those that would if it stood alone, at most 1."""
    pattern = ray_pattern(sensor, azimuth_range)
    corners = box.corners() - np.array([0, 0, sensor.mount_height])
    toward = np.asarray(box.center) - np.array([0, 0, sensor.mount_height])
    distance = float(np.linalg.norm(toward))
    radius = float(np.linalg.norm(corners - toward, axis=1).max())
    radius += max(sensor.height, default=0.0)  # the lasers do not sit quite in the origin
    narrow = np.sqrt(max(1 - (radius / distance) ** 2, 0.0)) if distance > radius else -1.0
    facing = pattern.directions @ (toward / distance).astype(np.float32) >= narrow
    origins = pattern.origins[facing] + np.array([0, 0, sensor.mount_height], np.float32)
    alone = EmbreeCaster(world.triangles[world.object_id == box.object_id]).cast(
        origins, pattern.directions[facing]
    )
    return min(1.0, hits / max(int(np.isfinite(alone.distance).sum()), 1))


def label_text(
    scan: Scan,
    *,
    world: World,
    sensor: SpinningLidar,
    camera: KittiCamera,
    azimuth_range: tuple[float, float] | None = None,
) -> str:
    """The content of a KITTI label file: every box in front of the camera that has 5 or more returns."""
    returns = np.bincount(scan.object_id[scan.object_id >= 0], minlength=len(scan.hits_per_object))
    lines = []
    for box in world.boxes:
        ahead = camera.from_velo(np.array([box.center]))[0, 2] > 0.1
        if not ahead or returns[box.object_id] < MIN_RETURNS:
            continue
        hits = int(scan.hits_per_object[box.object_id])
        visible = visible_fraction(box, hits=hits, sensor=sensor, world=world, azimuth_range=azimuth_range)
        lines.append(label_line(box, mount_height=sensor.mount_height, camera=camera, visible=visible))
    return "".join(line + "\n" for line in lines)
