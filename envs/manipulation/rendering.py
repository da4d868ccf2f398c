"""Pictures of MuJoCo models without a display, in a setting that is named because it changes the pixels.

gymnasium's own renderer is not used: it draws one environment with the meshes of another when two of them live in one
process, and at the default quality shadows take nine tenths of the time.
"""

import atexit
import ctypes
import importlib
import os
import sys
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.gym_base import require


class RenderError(RuntimeError):
    """MuJoCo cannot draw on this machine, or no longer."""


@dataclass(frozen=True, kw_only=True)
class RenderPreset:
    """What is drawn beside the bare surfaces.

    Attributes:
        shadows, reflections: whether they are drawn.
        shadow_size: side of the shadow map in texels, None for the model's own.
        samples: per pixel, against jagged edges; None for the model's own.
    """

    shadows: bool
    reflections: bool
    shadow_size: int | None
    samples: int | None


PRESETS = {
    "fast": RenderPreset(shadows=False, reflections=False, shadow_size=0, samples=0),
    "library": RenderPreset(shadows=True, reflections=True, shadow_size=None, samples=None),
}


def require_preset(name: str) -> RenderPreset:
    """The preset of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in PRESETS:
        raise ValueError(f"render preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]


_HEADLESS = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}


def _headless_backend() -> str | None:
    """How MuJoCo can draw without a display on this machine: importing it with one that is missing fails."""
    for name, library in _HEADLESS.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return name
    return None


def require_mujoco() -> Any:
    """MuJoCo, set to draw through EGL (or else OSMesa) where MUJOCO_GL is unset and there is no display.

    Raises:
        ImportError: naming the extra that brings it.
    """
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    backend = (
        None if os.environ.get("MUJOCO_GL") or display or sys.platform != "linux" else _headless_backend()
    )
    if backend is not None:
        os.environ["MUJOCO_GL"] = backend
        if "mujoco.gl_context" in sys.modules:  # The choice was made when somebody imported mujoco.
            importlib.reload(sys.modules["mujoco.gl_context"])
    return require("mujoco")


class SceneRenderer:
    """Draws the states of one model from one camera.

    Any number of them may live in one process and draw in turn.

    Args:
        model: mujoco.MjModel.
        size: height and width of the pictures [px].
        preset: name of a `RenderPreset`.
        camera: its name in the model, or a mujoco.MjvCamera.
        flip: turn the pictures by 180 degrees.

    Raises:
        ValueError: on an unknown preset or a size that is not positive.
        RenderError: if no OpenGL context can be made.
    """

    def __init__(self, model: Any, *, size: int, preset: str, camera: Any, flip: bool = False) -> None:
        chosen = require_preset(preset)
        if size < 1:
            raise ValueError(f"image size must be positive, got {size}")
        mujoco = require_mujoco()
        if chosen.shadow_size is not None:
            model.vis.quality.shadowsize = chosen.shadow_size
        if chosen.samples is not None:
            model.vis.quality.offsamples = chosen.samples
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        try:
            self._renderer = mujoco.Renderer(model, size, size)
        except Exception as error:  # each backend has its own kinds
            raise RenderError(
                f"cannot draw with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r} ({error}): install libegl1 and "
                "libgl1-mesa-dri and set MUJOCO_GL=egl, or libosmesa6 and MUJOCO_GL=osmesa"
            ) from error
        # Before the end of the process takes the display away, which would print errors.
        atexit.register(_close_if_alive, weakref.ref(self._renderer))
        self._camera, self._flip = camera, flip
        flags = mujoco.mjtRndFlag
        self._off = [
            int(flag)
            for flag, wanted in (
                (flags.mjRND_SHADOW, chosen.shadows),
                (flags.mjRND_REFLECTION, chosen.reflections),
            )
            if not wanted
        ]

    def draw(self, data: Any) -> np.ndarray:
        """The state of a mujoco.MjData as [size, size, 3] uint8.

        Raises:
            RenderError: if the picture is black, as it is after the OpenGL context was lost.
        """
        self._renderer.update_scene(data, camera=self._camera)
        self._renderer.scene.flags[self._off] = 0
        image = self._renderer.render()
        if not image.any():
            raise RenderError(
                f"a black picture: the OpenGL context was lost (MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r}); "
                "do not close other renderers of the process, or set MUJOCO_GL=egl"
            )
        return np.ascontiguousarray(image[::-1, ::-1]) if self._flip else image

    def close(self) -> None:
        """Free the OpenGL context. Under OSMesa this ends the drawing of every other renderer of the process."""
        self._renderer.close()


def _close_if_alive(reference: weakref.ref) -> None:
    renderer = reference()
    if renderer is not None:
        renderer.close()
