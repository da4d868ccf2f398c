"""Geometric augmentation of a point cloud: mirror, rotate about z, scale, shuffle. Never needs a label."""

import math
from dataclasses import InitVar, dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class View:
    """What was drawn for one cloud: mirrors first, then the turn about z, then the scale.

    Attributes:
        mirror_x, mirror_y: whether that coordinate is negated.
        angle: in radians, counter-clockwise.
        scale: factor on x, y and z.
    """

    mirror_x: bool = False
    mirror_y: bool = False
    angle: float = 0.0
    scale: float = 1.0

    @property
    def matrix(self) -> np.ndarray:
        """[3, 3] float64: a column vector times this from the left is moved."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        matrix = self.scale * np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        return matrix * [-1 if self.mirror_x else 1, -1 if self.mirror_y else 1, 1]

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points [N, >=3] moved: a new array, in their old order."""
        moved = points.copy()
        moved[:, :3] = points[:, :3] @ self.matrix.T.astype(points.dtype)
        return moved


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """One random view of a cloud; the defaults are AD-L-JEPA's recipe for KITTI.

    Args:
        flip_x: with probability 1/2 mirror x (x -> -x). Waymo and ONCE recipes use it; OpenPCDet calls it
            "flip along y".
        flip_y: with probability 1/2 mirror y (y -> -y). OpenPCDet calls it "flip along x".
        rotation: largest angle in radians; the angle about z is uniform in [-rotation, rotation].
        scaling: smallest and largest factor; the factor on x, y and z is uniform between them.
        shuffle: permute the points, so that caps in voxelisation drop points at random.
        gt_sampling: must stay None. OpenPCDet's gt_sampling pastes annotated objects into the scan.

    Raises:
        ValueError: if an argument is out of range, or gt_sampling is given.
    """

    flip_x: bool = False
    flip_y: bool = True
    rotation: float = math.pi / 4
    scaling: tuple[float, float] = (0.95, 1.05)
    shuffle: bool = True
    gt_sampling: InitVar[object] = None

    def __post_init__(self, gt_sampling: object) -> None:
        if gt_sampling not in (None, False):
            raise ValueError(
                "gt_sampling pastes objects cut out by their ground-truth boxes, and pretraining never sees "
                "a label. Remove it."
            )
        if not 0 <= self.rotation <= math.pi:
            raise ValueError(f"rotation is a largest angle in radians, 0 to pi, got {self.rotation}")
        if len(self.scaling) != 2 or not 0 < self.scaling[0] <= self.scaling[1]:
            raise ValueError(
                f"scaling is (smallest, largest) with 0 < smallest <= largest, got {self.scaling}"
            )
        object.__setattr__(self, "scaling", (float(self.scaling[0]), float(self.scaling[1])))

    def apply(self, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Move and reorder the points.

        Args:
            points: [N, >=3] float32; left unchanged.
            rng: source of every random draw.

        Returns:
            A new [N, >=3] float32 array.
        """
        moved = self.transform(points, rng)
        return moved[self.order(np.arange(len(moved)), rng)]

    def transform(self, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The geometric part of `apply`: a new array, points in their old order."""
        return self.view(rng).points(points)

    def view(self, rng: np.random.Generator) -> View:
        """Draw a view."""
        # Always four draws, so that switching one part off leaves the others as they were.
        mirror_x, mirror_y = (bool(v) for v in rng.random(2) < 0.5)
        angle = rng.uniform(-self.rotation, self.rotation)
        scale = rng.uniform(*self.scaling)
        return View(
            mirror_x=self.flip_x and mirror_x,
            mirror_y=self.flip_y and mirror_y,
            angle=float(angle),
            scale=float(scale),
        )

    def order(self, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The indices of points in the order they are to be taken."""
        return rng.permutation(index) if self.shuffle else index
