"""Own renderers: closing, black pictures, where OpenGL is missing."""

import os
import subprocess
import sys

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco")

from envs.manipulation.rendering import RenderError, SceneRenderer, _headless_backend, require_mujoco  # noqa: E402

SCENE = """<mujoco><worldbody><light pos="0 0 3"/><camera name="above" pos="0 0 2"/>
<geom name="ball" type="sphere" size=".2" pos=".5 .2 0" rgba="{} 0 0 1"/></worldbody></mujoco>"""


def scene(red: float) -> tuple[object, object]:
    require_mujoco()
    model = mujoco.MjModel.from_xml_string(SCENE.format(red))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


@pytest.mark.usefixtures("opengl")
def test_a_picture_may_be_larger_than_the_buffer_of_the_model_and_be_turned() -> None:
    model, data = scene(1.0)
    upright, turned = (
        SceneRenderer(model, size=700, preset="fast", camera="above", flip=flip) for flip in (False, True)
    )
    image = upright.draw(data)
    assert image.shape == (700, 700, 3)
    assert np.array_equal(turned.draw(data), image[::-1, ::-1])
    turned.close()
    if "egl" in str(mujoco.gl_context.GLContext):
        assert np.array_equal(upright.draw(data), image)  # not so under OSMesa
    upright.close()


@pytest.mark.usefixtures("opengl")
def test_a_black_picture_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = scene(1.0)
    renderer = SceneRenderer(model, size=16, preset="fast", camera="above")
    monkeypatch.setattr(renderer._renderer, "render", lambda: np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(RenderError, match="a black picture"):
        renderer.draw(data)
    renderer.close()


def test_without_opengl_the_error_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ImportError("no device")

    monkeypatch.setattr(mujoco, "Renderer", fail)
    with pytest.raises(RenderError, match=r"no device.*install libegl1"):
        SceneRenderer(scene(1.0)[0], size=16, preset="fast", camera="above")


@pytest.mark.usefixtures("opengl")
def test_egl_is_chosen_even_when_mujoco_was_imported_before_and_nothing_is_printed_at_the_end() -> None:
    code = (
        "import os\n"
        "for name in ('MUJOCO_GL', 'DISPLAY', 'WAYLAND_DISPLAY'): os.environ.pop(name, None)\n"
        "import mujoco\n"
        "from tests.envs.manipulation.test_rendering import SceneRenderer, scene\n"
        "model, data = scene(1.0)\n"
        "renderer = SceneRenderer(model, size=16, preset='library', camera='above')\n"
        "print(renderer.draw(data).any(), os.environ['MUJOCO_GL'])\n"
    )
    if _headless_backend() != "egl":
        pytest.skip("EGL is not installed")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "egl"]
    assert "EGLError" not in done.stderr


def test_a_backend_that_is_not_installed_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"libOSMesa.so.8"}

    def load(name: str) -> object:
        if name not in installed:
            raise OSError(name)
        return object()

    monkeypatch.setattr("ctypes.CDLL", load)
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert _headless_backend() == "osmesa"
    installed.clear()
    require_mujoco()
    assert "MUJOCO_GL" not in os.environ
