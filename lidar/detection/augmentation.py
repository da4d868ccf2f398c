"""Augmentation of labelled clouds: paste recorded objects, mirror, turn, scale, shift. Boxes and velocities follow.

Order: ground-truth sampling, mirrors, rotation, scaling, translation.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from lidar.augment import Augmentation, View
from lidar.detection.boxes import limit_period
from lidar.detection.gt_sampling import GroundTruthSampling
from lidar.detection.scene import Scene


@dataclass(frozen=True, kw_only=True)
class Motion:
    """One drawn movement of a whole scene: the view (mirrors, turn, scale), then a shift.

    Attributes:
        view: what the cloud alone would be moved by.
        shift: metres along x, y, z.
    """

    view: View = field(default_factory=View)
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points [N, >=3] moved: a new array, in their old order; further columns are copied."""
        moved = self.view.points(points)
        moved[:, :3] += np.asarray(self.shift, points.dtype)
        return moved

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [M, 7 or 9] moved: a new array, headings in [-pi, pi).

        Velocity is mirrored, turned and scaled, not shifted; an unknown one (NaN) stays unknown.
        """
        moved = self.points(boxes)
        moved[:, 3:6] *= self.view.scale
        heading = boxes[:, 6]
        if self.view.mirror_y:
            heading = -heading
        if self.view.mirror_x:
            heading = np.pi - heading
        moved[:, 6] = _limited(heading + self.view.angle)
        if boxes.shape[1] > 7:
            moved[:, 7:9] = boxes[:, 7:9] @ self.view.matrix[:2, :2].T.astype(boxes.dtype)
        return moved

    def undo_points(self, points: np.ndarray) -> np.ndarray:
        """The inverse of `points`."""
        back = points.copy()
        inverse = np.linalg.inv(self.view.matrix).astype(points.dtype)
        back[:, :3] = (points[:, :3] - np.asarray(self.shift, points.dtype)) @ inverse.T
        return back

    def undo_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """The inverse of `boxes`: brings detections of a moved scene back to the recorded one."""
        back = self.undo_points(boxes)
        back[:, 3:6] /= self.view.scale
        heading = boxes[:, 6] - self.view.angle
        if self.view.mirror_x:
            heading = np.pi - heading
        if self.view.mirror_y:
            heading = -heading
        back[:, 6] = _limited(heading)
        if boxes.shape[1] > 7:
            inverse = np.linalg.inv(self.view.matrix[:2, :2]).astype(boxes.dtype)
            back[:, 7:9] = boxes[:, 7:9] @ inverse.T
        return back


@dataclass(frozen=True, kw_only=True)
class DetectionAugmentation:
    """One random view of a labelled scene; the defaults are SECOND's recipe for KITTI without pasted objects.

    Args:
        geometry: mirrors, rotation and scaling, as in pretraining, and whether points are shuffled.
        translation_std: standard deviation in metres of a normal shift along x, y and z; CenterPoint on nuScenes
            takes 0.5.
        sampling: objects pasted from a database before anything moves, or None.

    Raises:
        ValueError: if a standard deviation is negative or there are not three.
    """

    geometry: Augmentation = field(default_factory=Augmentation)
    translation_std: tuple[float, float, float] = (0.0, 0.0, 0.0)
    sampling: GroundTruthSampling | None = None

    def __post_init__(self) -> None:
        if len(self.translation_std) != 3 or not all(s >= 0 for s in self.translation_std):
            raise ValueError(
                f"translation_std is three standard deviations in metres, 0 or more; got {self.translation_std}"
            )

    def apply(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """The scene with pasted objects, moved; points in their old order. The scene given is left unchanged."""
        # Two streams, so that what is pasted does not change how the scene moves.
        pasting, moving = rng.spawn(2)
        if self.sampling is not None:
            scene = self.sampling.paste(scene, pasting)
        motion = self.motion(moving)
        # The road has not moved along: nothing reads it after this.
        return replace(scene, points=motion.points(scene.points), boxes=motion.boxes(scene.boxes), road=None)

    def motion(self, rng: np.random.Generator) -> Motion:
        """Draw how the scene moves."""
        view = self.geometry.view(rng)
        x, y, z = rng.normal(0.0, self.translation_std)
        return Motion(view=view, shift=(float(x), float(y), float(z)))


def _limited(angle: np.ndarray) -> np.ndarray:
    """Angles in radians brought into [-pi, pi)."""
    return limit_period(torch.from_numpy(angle), offset=0.5, period=2 * math.pi).numpy()
