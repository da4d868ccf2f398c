"""Scripted routes of the ego vehicle: a path along a street, a speed profile, and a unicycle that follows both."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from envs.driving.terrain import Road

Manoeuvre = Literal["keep", "lane_change", "weave", "turn"]
MANOEUVRES: tuple[Manoeuvre, ...] = get_args(Manoeuvre)
MAX_SPEED = 14.0  # m/s
MAX_YAW_RATE = 0.8  # rad/s
_MAX_ACCELERATION = 3.0  # m/s^2, along the path and, as far as the path allows, across it
_SPACING = 0.25  # metres between the points of a path


@dataclass(frozen=True, kw_only=True)
class Motion:
    """A driven route.

    Attributes:
        poses: [T, 3] x, y (m), yaw (rad) in the frame of the street.
        actions: [T - 1, 2] speed (m/s) and yaw rate (rad/s), constant between two poses.
    """

    poses: np.ndarray
    actions: np.ndarray


def unicycle(pose: np.ndarray, actions: np.ndarray, *, period: float) -> np.ndarray:
    """Poses [T, 3] of a unicycle from pose [3] under actions [T - 1, 2]: exact arcs of `period` seconds."""
    poses = np.empty((len(actions) + 1, 3))
    poses[0] = pose
    for i, (speed, rate) in enumerate(np.asarray(actions, float)):
        x, y, yaw = poses[i]
        half = rate * period / 2
        chord = speed * period * np.sinc(half / np.pi)
        poses[i + 1] = x + chord * np.cos(yaw + half), y + chord * np.sin(yaw + half), yaw + 2 * half
    return poses


def to_road(road: Road, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Road coordinates s, n of points; the inverse of `Road.to_world` within half a turn of the centre line."""
    c, d = np.cos(road.heading), np.sin(road.heading)
    along, across = c * x + d * y, c * y - d * x + road.offset
    k = road.curvature if abs(road.curvature) > 1e-9 else 1e-9
    s = np.arctan2(k * along, 1 - k * across) / k
    # 1/k - sqrt(along^2 + (1/k - across)^2), without the cancellation of large radii.
    root = np.hypot(k * along, 1 - k * across)
    n = (2 * across - k * (along**2 + across**2)) / (1 + root)
    return s, n


def speed_profile(steps: int, rng: np.random.Generator, *, period: float) -> np.ndarray:
    """A random speed [steps] in m/s: phases of 0.5 to 3 s that accelerate or brake to a drawn speed, or to a stop."""
    speed = rng.uniform(0, MAX_SPEED)
    profile: list[float] = []
    while len(profile) < steps:
        target = 0.0 if rng.random() < 0.15 else rng.uniform(0, MAX_SPEED)
        limit = rng.uniform(0.5, _MAX_ACCELERATION) * period
        for _ in range(max(1, round(rng.uniform(0.5, 3.0) / period))):
            speed += float(np.clip(target - speed, -limit, limit))
            profile.append(speed)
    return np.array(profile[:steps])


def draw_path(
    road: Road, rng: np.random.Generator, *, manoeuvre: Manoeuvre, start: float, length: float
) -> np.ndarray:
    """Points [K, 2] along a path of about `length` metres from s = `start`, in the frame of the street.

    Raises:
        ValueError: if a turn is asked for and the road has no side road ahead of `start`.
    """
    lanes = np.array([side * (i + 0.5) * road.lane_width for side in (-1, 1) for i in range(road.lanes)])
    lane = float(rng.choice(lanes[: road.lanes]))
    if manoeuvre == "turn":
        s, n = _turn(road, rng, start=start, lane=lane, length=length)
    else:
        s = np.arange(start, start + length + 20.0, _SPACING)
        n = np.full(len(s), lane)
        if manoeuvre == "lane_change":
            low, high = sorted(rng.uniform(start, start + length, 2))
            share = np.clip((s - low) / max(high - low, 12.0), 0, 1)
            n += (rng.choice(lanes) + rng.normal(0, 0.3) - lane) * share**2 * (3 - 2 * share)
        elif manoeuvre == "weave":
            phase = 2 * np.pi * (s - start) / rng.uniform(18, 45)
            n += rng.choice([-1, 1]) * rng.uniform(0.4, 1.5) * (1 - np.cos(phase)) / 2
    x, y, _ = road.to_world(s, n)
    return _resampled(np.stack([x, y], axis=1))


def _turn(
    road: Road, rng: np.random.Generator, *, start: float, lane: float, length: float
) -> tuple[np.ndarray, np.ndarray]:
    """Along the lane, a quarter of a circle into a side road, on along that road's right-hand lane."""
    radius = rng.uniform(7, 10)
    exits = [
        (side, mouth + side * 2.5)
        for side, mouth in zip((1, -1), road.side_roads, strict=True)
        if np.isfinite(mouth) and mouth + side * 2.5 - radius > start
    ]
    if not exits:
        raise ValueError(f"the road has no side road ahead of s = {start:.1f} to turn into")
    side, at = exits[rng.integers(len(exits))]
    angle = np.linspace(0, np.pi / 2, 40)
    straight = np.arange(start, at - radius, _SPACING)
    away = np.arange(0, length + 20.0, _SPACING)[1:]
    s = np.r_[straight, at - radius + radius * np.sin(angle), np.full(len(away), at)]
    n = np.r_[
        np.full(len(straight), lane),
        lane + side * radius * (1 - np.cos(angle)),
        lane + side * (radius + away),
    ]
    return s, n


def _resampled(points: np.ndarray) -> np.ndarray:
    """The same polyline with points every `_SPACING` metres."""
    step = np.hypot(*np.diff(points, axis=0).T)
    at = np.r_[0, np.cumsum(step)]
    keep = np.r_[True, step > 1e-9]
    even = np.arange(0, at[-1], _SPACING)
    return np.stack([np.interp(even, at[keep], points[keep, k]) for k in range(2)], axis=1)


def follow(path: np.ndarray, profile: np.ndarray, *, period: float) -> Motion:
    """Drive along a path by pure pursuit at a speed profile, slower where the path bends.

    Args:
        path: [K, 2] points every 0.25 m; its beginning is where the motion begins.
        profile: [T - 1] wanted speed, m/s.
        period: seconds between poses.
    """
    direction = np.unwrap(np.arctan2(*np.diff(path, axis=0).T[::-1]))
    bend = np.abs(np.convolve(np.diff(direction) / _SPACING, np.ones(9) / 9, mode="same"))
    limit = np.minimum(np.sqrt(_MAX_ACCELERATION / np.maximum(bend, 1e-6)), MAX_SPEED)
    braking = np.arange(120) * _SPACING * 2 * _MAX_ACCELERATION
    pose = np.array([*path[0], direction[0]])
    poses, actions, speed, rate, at = [pose], [], float(profile[0]), 0.0, 0
    for wanted in profile:
        near = path[at : at + 40]
        at += int(np.hypot(*(near - pose[:2]).T).argmin())
        ahead = limit[at : at + 120]
        allowed = np.sqrt(ahead**2 + braking[: len(ahead)]).min() if len(ahead) else 0.0
        change = 2 * _MAX_ACCELERATION * period  # an emergency brake is twice as hard as a planned one
        speed = float(np.clip(min(wanted, allowed), max(speed - change, 0.0), speed + change))
        goal = path[min(at + round(max(3.0, 0.6 * speed) / _SPACING), len(path) - 1)] - pose[:2]
        bearing = np.arctan2(goal[1], goal[0]) - pose[2]
        bearing = (bearing + np.pi) % (2 * np.pi) - np.pi
        steer = speed * 2 * np.sin(bearing) / max(float(np.hypot(*goal)), 1.0)
        rate += float(np.clip(steer - rate, -2.0 * period, 2.0 * period))  # the wheel turns at a finite rate
        rate = float(np.clip(rate, -min(MAX_YAW_RATE, 0.2 * speed), min(MAX_YAW_RATE, 0.2 * speed)))
        actions.append((speed, rate))
        pose = unicycle(pose, np.array([[speed, rate]]), period=period)[1]
        poses.append(pose)
    return Motion(poses=np.array(poses), actions=np.array(actions))
