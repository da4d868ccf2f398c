"""A window with labelled and detected frames, and keys to go through them: Open3D (extra `viz`)."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb

from lidar.detection.failures import Mark
from lidar.detection.marked import EDGES, MarkedFrame, box_corners, heading_strokes

# GLFW's numbers of the arrow keys; letters are their upper-case codes.
RIGHT, LEFT = 262, 263
HELP = "right, N: next frame; left, P: previous frame; L, D: labels, detections on and off; Q: quit"
_BACKGROUND = (0.965, 0.969, 0.976)


class NoDisplay(RuntimeError):
    """There is no display to open a window on."""


def has_display(environment: Mapping[str, str] | None = None, *, platform: str = sys.platform) -> bool:
    """Whether a window can be expected to open: on Linux, whether X or Wayland is there."""
    environment = os.environ if environment is None else environment
    return not platform.startswith("linux") or any(environment.get(k) for k in ("DISPLAY", "WAYLAND_DISPLAY"))


def require_open3d() -> Any:
    """Open3D.

    Raises:
        ImportError: naming the extra that brings it.
    """
    try:
        return importlib.import_module("open3d")
    except (ImportError, OSError) as error:  # OSError: a system library, such as libusb, is missing
        raise ImportError(
            f"Open3D cannot be imported ({error}): pip install 'robot-worldmodel[viz]', "
            f"or write a page with --html FILE"
        ) from error


class Browser:
    """Which frame and which boxes are shown; what the keys change.

    Args:
        count: of frames.
        frame_at: reads the frame at a place.
        first: place to start at.
    """

    def __init__(self, count: int, frame_at: Callable[[int], MarkedFrame], *, first: int = 0) -> None:
        if count < 1:
            raise ValueError("there are no frames to show")
        self.count, self.place = count, first
        self.objects = self.detections = True
        self._frame_at = lru_cache(maxsize=8)(frame_at)

    def step(self, by: int) -> None:
        """Go on by so many frames, around the ends."""
        self.place = (self.place + by) % self.count

    def frame(self) -> MarkedFrame:
        """The frame that is shown."""
        return self._frame_at(self.place)

    def lines(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Strokes of the boxes that are shown: ends [V, 3], pairs of them [L, 2], and colours [L, 3] in 0..1."""
        return strokes(self.frame(), objects=self.objects, detections=self.detections)


def strokes(
    frame: MarkedFrame, *, objects: bool = True, detections: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges, headings, and crosses on the roofs of false detections: ends [V, 3], pairs [L, 2], colours [L, 3]."""
    corners, headings = box_corners(frame.boxes), heading_strokes(frame.boxes)
    ends, pairs, colours = [np.zeros((0, 3))], [np.zeros((0, 2), np.int64)], [np.zeros((0, 3))]
    count = 0
    for place, mark in enumerate(frame.marks):
        if not (objects if np.isnan(frame.scores[place]) else detections):
            continue
        cross = [(4, 6), (5, 7)] if mark == Mark.FALSE else []
        own = np.array([*EDGES, (8, 9), *cross])
        ends.append(np.concatenate([corners[place], headings[place]]))
        pairs.append(own + count)
        colours.append(np.tile(to_rgb(frame.colour(place)), (len(own), 1)))
        count += len(ends[-1])
    return np.concatenate(ends), np.concatenate(pairs), np.concatenate(colours)


def show(browser: Browser, *, title: str = "LiDAR") -> None:
    """Open a window and return when it is closed.

    Raises:
        ImportError: without Open3D, naming the extra.
        NoDisplay: if no window can be opened.
    """
    o3d = require_open3d()
    window = o3d.visualization.VisualizerWithKeyCallback()
    # Without a display GLFW can also crash: do not even ask it.
    if not has_display() or not window.create_window(window_name=title, width=1280, height=800):
        raise NoDisplay("no window can be opened here: write a page instead with --html FILE")
    cloud, lines = o3d.geometry.PointCloud(), o3d.geometry.LineSet()

    def fill() -> None:
        frame = browser.frame()
        ends, pairs, colours = browser.lines()
        cloud.points = o3d.utility.Vector3dVector(frame.points[:, :3].astype(np.float64))
        cloud.colors = o3d.utility.Vector3dVector(shades(frame.points))
        lines.points = o3d.utility.Vector3dVector(ends)
        lines.lines = o3d.utility.Vector2iVector(pairs.astype(np.int32))
        lines.colors = o3d.utility.Vector3dVector(colours)

    def act(change: Callable[[], None]) -> Callable[[Any], bool]:
        def pressed(window: Any) -> bool:
            change()
            fill()
            window.update_geometry(cloud)
            window.update_geometry(lines)
            print(f"{browser.place + 1}/{browser.count}  {browser.frame().name}", flush=True)
            return False

        return pressed

    def toggle(what: str) -> None:
        setattr(browser, what, not getattr(browser, what))

    forward, back = act(lambda: browser.step(1)), act(lambda: browser.step(-1))
    keys = {
        RIGHT: forward, ord("N"): forward, LEFT: back, ord("P"): back,
        ord("L"): act(lambda: toggle("objects")), ord("D"): act(lambda: toggle("detections")),
    }  # fmt: skip
    for key, pressed in keys.items():
        window.register_key_callback(key, pressed)
    fill()
    window.add_geometry(cloud)
    window.add_geometry(lines)
    options = window.get_render_option()
    options.background_color, options.point_size = np.array(_BACKGROUND), 2.0
    control = window.get_view_control()
    control.set_front((-0.9, 0.0, 0.45))
    control.set_up((0.0, 0.0, 1.0))
    control.set_lookat((12.0, 0.0, -1.0))
    control.set_zoom(0.25)
    print(HELP, flush=True)
    window.run()
    window.destroy_window()


def shades(points: np.ndarray) -> np.ndarray:
    """Colour [N, 3] in 0..1 by height above the ground: light there, dark from 3 m on."""
    if not len(points):
        return np.zeros((0, 3))
    share = np.clip((points[:, 2:3] - np.percentile(points[:, 2], 10)) / 3, 0, 1)
    return (np.array([185.0, 190.0, 200.0]) - share * np.array([150.0, 145.0, 135.0])) / 255
