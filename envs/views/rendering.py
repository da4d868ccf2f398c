"""Pictures of one object in front of a plain background, by the software renderer of pybullet: no GPU, no display.

Axes of the camera and of the world are the same: x to the right, y up, z to the viewer.
"""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from envs.views.meshes import flat_normals

CAMERA_DISTANCE = 4.0  # radii of the object
MARGIN = 1.02  # of the image beyond the object's sphere
COLOUR = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Look:
    """Colours (red, green, blue in 0..1) and the direction to the light.

    Attributes:
        albedo: of the object.
        light: colour of the light.
        theta, phi: radians; of the light from straight up, and from the viewer to the right.
        background: behind the object; the light does not reach it.
    """

    albedo: COLOUR = (0.8, 0.8, 0.8)
    light: COLOUR = (1.0, 1.0, 1.0)
    theta: float = math.pi / 4
    phi: float = math.pi / 8
    background: COLOUR = (0.0, 0.0, 0.0)

    @property
    def direction(self) -> list[float]:
        across = math.sin(self.theta)
        return [across * math.sin(self.phi), math.cos(self.theta), across * math.cos(self.phi)]


class Studio:
    """A camera and one object at a time; use it in a `with` statement.

    Raises:
        ModuleNotFoundError: without pybullet.
    """

    def __init__(self) -> None:
        pybullet_data()
        import pybullet

        self.pb: Any = pybullet
        self.body: int | None = None
        self.client = pybullet.connect(pybullet.DIRECT)

    def __enter__(self) -> "Studio":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pb.disconnect(physicsClientId=self.client)

    def place(self, triangles: np.ndarray) -> None:
        """Put triangles [F, 3, 3] within the unit sphere in place of the object that is there.

        Faces are shaded flat: low-resolution images then still show edges.
        """
        if self.body is not None:
            self.pb.removeBody(self.body, physicsClientId=self.client)
        solid, normals = flat_normals(triangles)
        shape = self.pb.createVisualShape(
            self.pb.GEOM_MESH,
            vertices=solid.reshape(-1, 3).tolist(),
            indices=list(range(3 * len(solid))),
            normals=normals.repeat(3, axis=0).tolist(),
            specularColor=[0, 0, 0],
            physicsClientId=self.client,
        )
        self.body = self.pb.createMultiBody(
            baseMass=0, baseVisualShapeIndex=shape, physicsClientId=self.client
        )

    def picture(self, quaternion: np.ndarray, *, size: int, look: Look) -> np.ndarray:
        """[3, size, size] uint8 of the object turned by a scalar-last quaternion.

        Raises:
            RuntimeError: if no object was placed.
        """
        if self.body is None:
            raise RuntimeError("place an object before taking its picture")
        pb, client = self.pb, {"physicsClientId": self.client}
        pb.resetBasePositionAndOrientation(self.body, [0, 0, 0], quaternion.tolist(), **client)
        pb.changeVisualShape(self.body, -1, rgbaColor=[*look.albedo, 1], **client)
        angle = 2 * math.degrees(math.asin(MARGIN / CAMERA_DISTANCE))
        _, _, colours, _, mask = pb.getCameraImage(
            size,
            size,
            pb.computeViewMatrix([0, 0, CAMERA_DISTANCE], [0, 0, 0], [0, 1, 0]),
            pb.computeProjectionMatrixFOV(angle, 1, CAMERA_DISTANCE - 1.5, CAMERA_DISTANCE + 1.5),
            lightDirection=look.direction,
            lightColor=look.light,
            lightDistance=10,
            shadow=0,
            lightAmbientCoeff=0.25,
            lightDiffuseCoeff=0.75,
            lightSpecularCoeff=0,
            renderer=pb.ER_TINY_RENDERER,
            **client,
        )
        image = np.asarray(colours, np.uint8).reshape(size, size, 4)[..., :3].transpose(2, 0, 1).copy()
        image[:, np.asarray(mask).reshape(size, size) < 0] = np.rint(255 * np.asarray(look.background))[
            :, None
        ]
        return image


def pybullet_data() -> Path:
    """Folder of pybullet's meshes.

    Raises:
        ModuleNotFoundError: without pybullet.
    """
    found = importlib.util.find_spec("pybullet_data")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "the objects come with pybullet: pip install 'robot-worldmodel[views]'", name="pybullet"
        )
    return Path(found.submodule_search_locations[0])
