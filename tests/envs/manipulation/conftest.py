"""What tests of environments share."""

import functools
import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _without_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def opengl() -> None:
    """Skips where MuJoCo cannot draw."""
    if not can_draw():
        pytest.skip("MuJoCo cannot draw here: neither a display nor EGL nor OSMesa")


@functools.cache
def can_draw() -> bool:
    from envs.manipulation.rendering import SceneRenderer, require_mujoco

    model = require_mujoco().MjModel.from_xml_string("<mujoco/>")
    try:
        SceneRenderer(model, size=8, preset="fast", camera=-1).close()
    except RuntimeError:
        return False
    return True
