"""Shapes and sizes of road users. Every shape fills the unit box."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from envs.driving.meshes import Mesh, ball, box, hull, join, quads, tube

PAINT, INTERIOR, GLASS, TYRE, METAL = 0.03, 0.02, 2e-5, 0.02, 0.3
CLOTH, SKIN, PLATE = 0.45, 0.4, 3.0
SOFT = 0.01  # relief of clothing, metres

Profile = tuple[tuple[float, float], ...]


def _profile(x: tuple[float, ...], z: tuple[float, ...]) -> Profile:
    return tuple(zip(x, z, strict=True))


_NOSE, _TAIL = (0.48, 0.50, 0.46), (-0.48, -0.50, -0.47)
# Side views, front at the right, in fractions of length (x) and height (z): the body, then the cabin on it.
_CAR_BODIES: dict[str, tuple[Profile, Profile]] = {
    "sedan": (
        _profile((*_NOSE, 0.22, -0.34, *_TAIL), (0.16, 0.36, 0.52, 0.61, 0.63, 0.60, 0.38, 0.16)),
        _profile((0.25, 0.06, -0.10, -0.20, -0.38), (0.60, 0.96, 1.00, 0.97, 0.62)),
    ),
    "hatchback": (
        _profile((*_NOSE, 0.25, -0.42, *_TAIL), (0.15, 0.36, 0.52, 0.60, 0.62, 0.56, 0.34, 0.15)),
        _profile((0.29, 0.09, -0.08, -0.34, -0.47), (0.59, 0.96, 1.00, 0.96, 0.60)),
    ),
    "estate": (
        _profile((*_NOSE, 0.24, -0.44, *_TAIL), (0.15, 0.35, 0.50, 0.59, 0.61, 0.56, 0.34, 0.15)),
        _profile((0.26, 0.07, -0.10, -0.41, -0.48), (0.58, 0.96, 1.00, 0.97, 0.60)),
    ),
    "suv": (
        _profile((*_NOSE, 0.25, -0.43, *_TAIL), (0.18, 0.42, 0.56, 0.64, 0.65, 0.60, 0.38, 0.18)),
        _profile((0.27, 0.13, -0.10, -0.40, -0.48), (0.63, 0.96, 1.00, 0.98, 0.64)),
    ),
}


def _wheels(*, at: tuple[float, ...], radius: float, length: float, width: float) -> list[Mesh]:
    """Wheels of `radius` metres on both sides of a body of this length and width."""
    meshes = []
    for x in at:
        for side in (-1, 1):
            y0, y1 = (side * (width / 2 - inset) for inset in (0.0, 0.2))
            wheel = tube((x * length, y0, radius), (x * length, y1, radius), radius=(radius, radius), sides=8)
            meshes.append(Mesh.of(wheel[:24], albedo=TYRE))  # the hidden inner cap is left out
    return meshes


def _plates(*, length: float, height: float) -> Mesh:
    """Retro-reflecting number plates, front and rear."""
    ends = [box((s * (length / 2 - 0.01), 0, height), (0.02, 0.5, 0.11)) for s in (-1, 1)]
    return Mesh.of(np.concatenate(ends), albedo=PLATE)


def _car(name: str) -> Mesh:
    length, width, height = 3.9, 1.63, 1.53
    body, cabin = (np.array(p) * (length, height) for p in _CAR_BODIES[name])
    strip, sides = hull(body, np.array([0.46, 0.49, 0.50, 0.50, 0.50, 0.50, 0.49, 0.46]) * width)
    top, _ = hull(cabin, np.array([0.46, 0.37, 0.36, 0.37, 0.45]) * width)
    # Pulses pass the windows and come back from seats and lining: windows are open, the cabin is filled. Of
    # the strip around the cabin (windscreen, two roof panels, rear window, floor) only the roof stays.
    seats = box((-0.09 * length, 0, 0.69 * height), (0.34 * length, 0.66 * width, 0.30 * height))
    pillars = [
        Mesh.of(
            tube(*(_pillar_end(cabin, i, side, width) for i in ends), radius=(0.05, 0.05), sides=3),
            albedo=PAINT,
        )
        for side in (-1, 1)
        for ends in ((0, 1), (4, 3))
    ]
    return join(
        [
            Mesh.of(np.concatenate([strip, sides]), albedo=PAINT),
            Mesh.of(top[2:6], albedo=PAINT),
            Mesh.of(seats, albedo=INTERIOR),
            *pillars,
            *_wheels(at=(0.32, -0.30), radius=0.31, length=length, width=width),
            _plates(length=length * 0.99, height=0.5),
        ]
    ).fitted()


def _pillar_end(cabin: np.ndarray, corner: int, side: int, width: float) -> tuple[float, float, float]:
    """A corner of the cabin profile [5, 2] on one side of the car."""
    half = (0.45, 0.36, 0.35, 0.36, 0.44)[corner] * width
    return float(cabin[corner, 0]), side * half, float(cabin[corner, 1]) - 0.05


def _van() -> Mesh:
    length, width, height = 5.1, 1.9, 2.2
    profile = _profile(
        (0.48, 0.50, 0.44, 0.36, 0.24, 0.0, -0.48, -0.50, -0.49),
        (0.14, 0.32, 0.46, 0.52, 0.95, 1.0, 0.99, 0.50, 0.14),
    )
    ring = np.array(profile) * (length, height)
    strip, sides = hull(ring, np.array([0.47, 0.49, 0.49, 0.5, 0.43, 0.43, 0.44, 0.5, 0.48]) * width)
    strip_albedo = np.full(len(strip), PAINT)
    strip_albedo[6:8] = GLASS  # the windscreen, edge 3
    windows = [box((0.25 * length, s * 0.475 * width, 0.68 * height), (0.8, 0.06, 0.5)) for s in (-1, 1)]
    return join(
        [
            Mesh.of(strip, albedo=strip_albedo),
            Mesh.of(sides, albedo=PAINT),
            Mesh.of(np.concatenate(windows), albedo=GLASS),
            *_wheels(at=(0.33, -0.30), radius=0.34, length=length, width=width),
            _plates(length=length * 0.99, height=0.6),
        ]
    ).fitted()


def _truck() -> Mesh:
    length, width, height = 8.5, 2.5, 3.3
    cab = np.array([(0.49, 0.12), (0.50, 0.42), (0.47, 0.82), (0.32, 0.84), (0.31, 0.12)]) * (length, height)
    strip, sides = hull(cab, 0.48 * width)
    strip_albedo = np.full(len(strip), PAINT)
    strip_albedo[2:4] = GLASS
    return join(
        [
            Mesh.of(strip, albedo=strip_albedo),
            Mesh.of(sides, albedo=PAINT),
            Mesh.of(
                box((-0.10 * length, 0, 0.65 * height), (0.78 * length, width, 0.70 * height)),
                albedo=5 * PAINT,
            ),
            Mesh.of(
                box((-0.08 * length, 0, 0.24 * height), (0.82 * length, 0.4 * width, 0.12)), albedo=PAINT
            ),
            *_wheels(at=(0.38, -0.22, -0.38), radius=0.5, length=length, width=width * 0.96),
            _plates(length=length * 0.99, height=0.7),
        ]
    ).fitted()


def _person(*, stride: float, arms: float, coat: float) -> Mesh:
    """A person; `stride` and `arms` are the swings of foot and hand, `coat` the half depth, in metres."""

    def limb(start: tuple, end: tuple, radius: tuple, albedo: float) -> Mesh:
        return Mesh.of(tube(start, end, radius=radius, sides=5), albedo=albedo, relief=SOFT)

    parts = []
    for side in (-1, 1):
        swing = side * stride
        knee = (swing * 0.45 + 0.05, side * 0.11, 0.48)
        parts += [
            limb((0, side * 0.10, 0.92), knee, (0.13, 0.10), CLOTH * 0.7),
            limb(knee, (swing, side * 0.11, 0.08), (0.10, 0.07), CLOTH * 0.7),
            limb((swing - 0.06, side * 0.11, 0.04), (swing + 0.15, side * 0.12, 0.04), (0.05, 0.04), 0.1),
            limb((0, side * 0.22, 1.42), (-side * arms * 0.5, side * 0.27, 1.12), (0.07, 0.06), CLOTH),
            limb(
                (-side * arms * 0.5, side * 0.27, 1.12),
                (-side * arms + 0.06, side * 0.26, 0.86),
                (0.05, 0.04),
                CLOTH,
            ),
        ]
    torso = tube((0, 0, 0.84), (0.02, 0, 1.48), radius=(0.23, 0.21), sides=8) * (coat / 0.22, 1, 1)
    parts.append(Mesh.of(torso, albedo=CLOTH, relief=SOFT))
    parts.append(Mesh.of(ball((0, 0, 1.46), (0.10, 0.20, 0.10)), albedo=CLOTH, relief=SOFT))
    parts.append(Mesh.of(ball((0.02, 0, 1.63), (0.12, 0.10, 0.14)), albedo=SKIN, relief=SOFT))
    return join(parts)


def _ring(center: tuple[float, float], radius: float) -> np.ndarray:
    """A bicycle wheel in the x-z plane: rim and spokes as a ring 14 cm high."""
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    circle = np.stack([np.cos(turn), 0 * turn, np.sin(turn)], axis=1)
    at = np.array([center[0], 0, center[1]])
    outer, inner = at + radius * circle, at + (radius - 0.14) * circle
    return quads(np.stack([outer, np.roll(outer, -1, 0), np.roll(inner, -1, 0), inner], axis=1))


def _cyclist(*, lean: float, pedal: float) -> Mesh:
    """A rider on a bicycle; `lean` moves the shoulders forward (m), `pedal` is the crank angle (rad)."""

    def rod(start: tuple, end: tuple, radius: float, albedo: float, sides: int = 4) -> Mesh:
        return Mesh.of(tube(start, end, radius=(radius, radius), sides=sides), albedo=albedo)

    saddle, bar, crank = (-0.22, 0.0, 0.95), (0.45, 0.0, 1.02), (-0.05, 0.0, 0.30)
    hip, shoulder = (-0.2, 0.0, 1.02), (lean, 0.0, 1.46)
    parts = [Mesh.of(np.concatenate([_ring((-0.54, 0.34), 0.34), _ring((0.54, 0.34), 0.34)]), albedo=METAL)]
    parts += [
        rod(a, b, 0.025, METAL)
        for a, b in (
            (crank, saddle),
            (crank, (0.40, 0, 0.82)),
            (saddle, (0.38, 0, 0.88)),
            ((0.54, 0, 0.34), bar),
            ((-0.54, 0, 0.34), crank),
            ((-0.54, 0, 0.34), saddle),
            ((0.45, -0.28, 1.03), (0.45, 0.28, 1.03)),
        )
    ]
    for side in (-1, 1):
        foot = (-0.05 + 0.17 * side * np.cos(pedal), side * 0.13, 0.30 + 0.17 * side * np.sin(pedal))
        knee = (0.22 + 0.3 * (foot[0] + 0.05), side * 0.13, 0.72 + 0.5 * (foot[2] - 0.30))
        parts += [
            Mesh.of(
                tube((hip[0], side * 0.1, hip[2]), knee, radius=(0.12, 0.09), sides=5),
                albedo=CLOTH * 0.7,
                relief=SOFT,
            ),
            Mesh.of(tube(knee, foot, radius=(0.085, 0.06), sides=5), albedo=CLOTH * 0.7, relief=SOFT),
            rod((lean, side * 0.2, 1.42), (0.43, side * 0.24, 1.05), 0.05, CLOTH, 5),
        ]
    parts += [
        Mesh.of(tube(hip, shoulder, radius=(0.19, 0.21), sides=8), albedo=CLOTH, relief=SOFT),
        Mesh.of(ball((lean + 0.08, 0, 1.62), (0.13, 0.11, 0.15)), albedo=SKIN, relief=SOFT),
    ]
    return join(parts)


@lru_cache(maxsize=1)
def shapes() -> dict[str, tuple[Mesh, ...]]:
    """Shape variants of every category, each in the unit box (x, y in +-0.5, z in 0..1).

    Boxes around people leave room for a stride: somebody who stands fills theirs only in part, as in KITTI.
    """
    gaits = (
        (0.0, 0.0, 0.16),
        (0.10, 0.12, 0.14),
        (0.22, 0.20, 0.13),
        (0.34, 0.28, 0.14),
        (-0.30, -0.25, 0.18),
    )
    people = [_person(stride=stride, arms=arms, coat=coat) for stride, arms, coat in gaits]
    riders = [
        _cyclist(lean=lean, pedal=p) for lean, p in ((0.0, 0.3), (0.15, 1.4), (0.25, 2.5), (-0.05, -0.8))
    ]
    return {
        "Car": tuple(_car(name) for name in _CAR_BODIES),
        "Van": (_van(),),
        "Truck": (_truck(),),
        "Pedestrian": tuple(person.fitted(least_length=0.75) for person in people),
        "Cyclist": tuple(rider.fitted() for rider in riders),
    }


@dataclass(frozen=True)
class SizeModel:
    """Mean and standard deviation of length, width, height in metres. The means are KITTI's."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def draw(self, rng: np.random.Generator) -> tuple[float, float, float]:
        """One size, at most two standard deviations from the mean."""
        unit = np.clip(rng.standard_normal(3), -2, 2)
        length, width, height = np.asarray(self.mean) + unit * np.asarray(self.std)
        return float(length), float(width), float(height)


SIZES = {
    "Car": SizeModel((3.88, 1.63, 1.53), (0.42, 0.10, 0.13)),
    "Van": SizeModel((5.06, 1.90, 2.20), (0.45, 0.12, 0.25)),
    "Truck": SizeModel((9.50, 2.55, 3.25), (2.0, 0.12, 0.30)),
    "Pedestrian": SizeModel((0.84, 0.66, 1.76), (0.18, 0.10, 0.10)),
    "Cyclist": SizeModel((1.76, 0.60, 1.74), (0.12, 0.09, 0.08)),
}


def draw_tint(category: str, rng: np.random.Generator) -> float:
    """Brightness of paint or clothes relative to the shape's: black cars hardly return."""
    spread = 0.9 if category in ("Car", "Van", "Truck") else 0.35
    return float(np.clip(np.exp(spread * rng.standard_normal()), 0.1, 6.0))
