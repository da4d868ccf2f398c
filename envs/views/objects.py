"""Rendered objects under rotations in space, in the manner of 3DIEBench (arXiv 2302.10283), without ray tracing.

A class is one of the meshes inside the wheel of pybullet, an instance a random stretching of it along its axes, a view
a random rotation. By default all views have one albedo, one light and a black background: with a colour per object the
next view can be told from the colour alone, and a model learns neither shape nor pose. Colours and lights that change
with every view are nuisances to switch on.
"""

import colorsys
import hashlib
import json
import math
import multiprocessing
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from envs.views.digits import average_pooled
from envs.views.meshes import read_obj, to_unit_sphere
from envs.views.rendering import Look, Studio, pybullet_data
from envs.views.rotations import PosedViews, quaternions

# Things and robot parts that look different from all sides, and every hundredth of the thousand random objects.
MESHES = {
    "bunny": "bunny.obj",
    "duck": "duck.obj",
    "teddy": "teddy2_VHACD_CHs.obj",
    "brick": "lego/lego.obj",
    "mug": "objects/mug.obj",
    "laser_scanner": "racecar/meshes/hokuyo.obj",
    "shape_sorter": "toys/shape_sorter.obj",
    "kuka_elbow": "kuka_iiwa/meshes/link_2.obj",
    "kuka_wrist": "kuka_iiwa/meshes/link_6.obj",
    "panda_hand": "franka_panda/meshes/collision/hand.obj",
    "panda_base": "franka_panda/meshes/collision/link0.obj",
    "aliengo_hip": "aliengo/meshes/hip.obj",
    "laikago_chassis": "laikago/chassis_zup_lores.obj",
    "laikago_shank": "laikago/lower_leg3_lores.obj",
    **{f"random_{i:03d}": f"random_urdfs/{i:03d}/{i:03d}.obj" for i in range(0, 1000, 100)},
}
NUISANCES = {
    "background": ("background_hue",),
    "light": ("light_hue", "light_theta", "light_phi"),
    "albedo": ("albedo_hue",),
}
RANGES = {"light_theta": math.pi / 4, "light_phi": 2 * math.pi}  # 3DIEBench's; hues are in 0..1
TINTS = (  # latent, field of Look, saturation and value of its colour
    ("background_hue", "background", 0.5, 0.6),
    ("light_hue", "light", 0.5, 1.0),
    ("albedo_hue", "albedo", 0.5, 0.9),
)
VERSION = 1  # of the rendering: part of the name of a stored set


@dataclass(frozen=True, kw_only=True)
class ObjectSpec:
    """What is rendered.

    Attributes:
        classes: names in MESHES.
        train, test: instances per class on each side of the split.
        views: per instance.
        size: pixels of an image.
        limits: degrees; the angles about the fixed axes x (right), y (up), z (to the viewer) are uniform in +-limit
            and applied in this order. (0, 90, 0) is a turntable.
        stretch: instances are scaled by exp(U(-stretch, stretch)) along each axis.
        nuisances: what is drawn anew for every view, of NUISANCES; images then have colours.
        seed: of every draw.

    Raises:
        ValueError: naming the field that is out of range.
    """

    classes: tuple[str, ...] = tuple(MESHES)
    train: int = 24
    test: int = 8
    views: int = 24
    size: int = 32
    limits: tuple[float, float, float] = (90.0, 90.0, 90.0)
    stretch: float = 0.18
    nuisances: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := set(self.classes) - set(MESHES):
            raise ValueError(f"no mesh for the classes {sorted(unknown)}; there are {', '.join(MESHES)}")
        if unknown := set(self.nuisances) - set(NUISANCES):
            raise ValueError(f"unknown nuisances {sorted(unknown)}; there are {', '.join(NUISANCES)}")
        if not self.classes or min(self.train, self.test, self.views, self.size) < 1:
            raise ValueError(
                f"a set has at least one class, training and test instance, view and pixel: {self}"
            )
        if len(self.limits) != 3 or not all(0 <= limit <= 180 for limit in self.limits) or self.stretch < 0:
            raise ValueError(
                f"limits are three angles within 0 and 180 degrees and stretch is not negative: {self}"
            )

    @property
    def latents(self) -> tuple[str, ...]:
        return tuple(name for kind in NUISANCES if kind in self.nuisances for name in NUISANCES[kind])

    @property
    def key(self) -> str:
        """Name of the rendered set: a hash of all that it depends on."""
        content = json.dumps([asdict(self), [MESHES[name] for name in self.classes], VERSION], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """Views [N, V, C, S, S] uint8 (one channel without nuisances), quaternions [N, V, 4], latents [N, V, L]."""

    views: np.ndarray
    rotations: np.ndarray
    latents: np.ndarray


def objects(
    *,
    split: Literal["train", "test"] = "train",
    spec: ObjectSpec | None = None,
    pool: int = 1,
    acted: Sequence[str] = (),
    folder: str | Path | None = None,
    processes: int = 1,
    progress: bool = True,
) -> PosedViews:
    """Views of the instances of one split; observations [1 or 3, size / pool, size / pool] float32 in 0..1.

    Args:
        pool: rendered pixels averaged per side of an observed pixel.
        acted: latents whose difference is part of the action, ("background_hue", "light_hue") in the paper.
        folder: where the rendered set is kept and found again; rendered anew every time without.
        processes: that render.

    Raises:
        ModuleNotFoundError: without pybullet.
        ValueError: if the pooling does not divide the size, or the stored set is damaged.
    """
    spec = spec or ObjectSpec()
    if split not in ("train", "test"):
        raise ValueError(f"split is train or test, got {split!r}")
    if pool < 1 or spec.size % pool:
        raise ValueError(f"a pool of {pool} does not divide a size of {spec.size} pixels")
    render_now = partial(render, spec, processes=processes, progress=progress)
    whole = render_now() if folder is None else stored(Path(folder) / f"objects-{spec.key}.npz", render_now)
    instance = np.tile(np.arange(spec.train + spec.test), len(spec.classes))
    chosen = (instance < spec.train) == (split == "train")
    return PosedViews(
        views=average_pooled(whole.views[chosen], pool) / np.float32(255),
        rotations=whole.rotations[chosen],
        classes=np.repeat(np.arange(len(spec.classes)), spec.train + spec.test)[chosen],
        latents={name: whole.latents[chosen, :, i] for i, name in enumerate(spec.latents)},
        acted=acted,
    )


def stored(path: Path, make: Callable[[], Rendered]) -> Rendered:
    """The set at `path`, made and written there (under another name first) if it is missing.

    Raises:
        ValueError: if the file is damaged.
    """
    if path.exists():
        try:
            with np.load(path) as file:
                return Rendered(views=file["views"], rotations=file["rotations"], latents=file["latents"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it to render it again") from error
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.part")
    with draft.open("wb") as file:
        np.savez_compressed(file, views=made.views, rotations=made.rotations, latents=made.latents)
    draft.replace(path)
    return made


def render(spec: ObjectSpec, *, processes: int = 1, progress: bool = False) -> Rendered:
    """Every view of every instance, class by class; the same for any number of processes."""
    pybullet_data()  # a missing package is reported here rather than by a worker
    jobs = range(len(spec.classes))

    def gather(results: Iterable[Rendered]) -> Rendered:
        bar = tqdm(results, total=len(jobs), desc="rendering objects", unit="class", disable=not progress)
        parts = list(bar)
        names = ("views", "rotations", "latents")
        return Rendered(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    if processes <= 1:
        return gather(map(partial(render_class, spec), jobs))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        return gather(pool.map(partial(render_class, spec), jobs))


def render_class(spec: ObjectSpec, index: int) -> Rendered:
    """All instances of one class. Shapes, rotations and nuisances are drawn from separate streams."""
    mesh = to_unit_sphere(read_obj(pybullet_data() / MESHES[spec.classes[index]]))
    count, channels = spec.train + spec.test, 3 if spec.nuisances else 1
    views = np.empty((count, spec.views, channels, spec.size, spec.size), np.uint8)
    rotations = np.empty((count, spec.views, 4), np.float32)
    latents = np.empty((count, spec.views, len(spec.latents)), np.float32)
    with Studio() as studio:
        for i in range(count):
            shape, pose, nuisance = (
                np.random.default_rng((spec.seed, index, i, stream)) for stream in range(3)
            )
            scale = np.exp(shape.uniform(-spec.stretch, spec.stretch, 3))
            studio.place(to_unit_sphere(mesh * scale))
            degrees = pose.uniform(-1, 1, (spec.views, 3)) * spec.limits
            rotations[i] = quaternions(Rotation.from_euler("xyz", degrees, degrees=True))
            reach = [RANGES.get(name, 1.0) for name in spec.latents]
            latents[i] = nuisance.uniform(size=(spec.views, len(reach))) * reach
            for k in range(spec.views):
                look = look_of(dict(zip(spec.latents, latents[i, k].tolist(), strict=True)))
                views[i, k] = studio.picture(rotations[i, k], size=spec.size, look=look)[:channels]
    return Rendered(views=views, rotations=rotations, latents=latents)


def look_of(latents: Mapping[str, float]) -> Look:
    """The look that latents describe; what they do not name keeps its default."""
    given: dict[str, Any] = {}
    for name, field, saturation, value in TINTS:
        if name in latents:
            given[field] = colorsys.hsv_to_rgb(latents[name], saturation, value)
    for angle in ("theta", "phi"):
        if f"light_{angle}" in latents:
            given[angle] = latents[f"light_{angle}"]
    return Look(**given)
