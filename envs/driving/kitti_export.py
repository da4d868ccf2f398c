"""Simulated data sets in the KITTI object layout: seeded, parallel, resumable."""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from envs.driving.kitti_labels import KittiCamera, label_text
from envs.driving.streets import street
from envs.sensors.lidar import HDL_32E, KITTI_HDL_64E, Scan, SpinningLidar, scan
from envs.sensors.world import World

# Raise it with every change that changes a byte of a simulated frame: cached data sets are then made anew.
SIMULATOR_VERSION = 4
SPLITS = ("train", "probe", "val")
SENSORS: dict[str, SpinningLidar] = {"HDL-64E": KITTI_HDL_64E, "HDL-32E": HDL_32E}


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What a simulated data set holds. Equal specs give equal bytes.

    Attributes:
        sensor: "HDL-64E" or "HDL-32E".
        azimuth_range: sector in degrees (counter-clockwise from forward), or None for full turns.
        train, probe, val: number of scenes of each split; no scene is shared.
        seed: of the whole set.

    Raises:
        ValueError: on an unknown sensor, an empty sector, or a count that is negative or all zero.
    """

    sensor: str = "HDL-64E"
    azimuth_range: tuple[float, float] | None = (-45.0, 45.0)
    train: int = 600
    probe: int = 60
    val: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sensor not in SENSORS:
            raise ValueError(f"unknown sensor {self.sensor!r}; choose one of {', '.join(SENSORS)}")
        if min(self.train, self.probe, self.val) < 0 or self.frames == 0:
            raise ValueError(
                f"split counts must be >= 0 and not all 0; got {self.train}, {self.probe}, {self.val}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0; got {self.seed}")
        if self.azimuth_range is not None:
            low, high = (float(v) for v in self.azimuth_range)
            object.__setattr__(self, "azimuth_range", (low, high))
            if not 0 < high - low <= 360:
                raise ValueError(
                    f"azimuth_range must be (from, to) with 0 < to - from <= 360; got {(low, high)}"
                )

    @property
    def frames(self) -> int:
        """Number of frames in all splits."""
        return self.train + self.probe + self.val

    def split_ranges(self) -> dict[str, range]:
        """Frame numbers of every split: train first, then probe, then val."""
        ends = np.cumsum([0, self.train, self.probe, self.val])
        return {name: range(int(a), int(b)) for name, a, b in zip(SPLITS, ends[:-1], ends[1:], strict=True)}

    def fingerprint(self) -> str:
        """Ten hexadecimal digits of the spec and the simulator version."""
        text = json.dumps({**asdict(self), "version": SIMULATOR_VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


def simulate(spec: DatasetSpec, frame: int) -> tuple[World, Scan]:
    """The world and the scan of one frame of a data set: a function of the spec and the frame number alone."""
    split, numbers = next((k, r) for k, r in spec.split_ranges().items() if frame in r)
    sequence = np.random.SeedSequence([spec.seed, SPLITS.index(split), frame - numbers.start])
    scene, sensing = (np.random.default_rng(s) for s in sequence.spawn(2))
    world = street(scene)
    return world, scan(SENSORS[spec.sensor], world, sensing, spec.azimuth_range)


def build_dataset(root: str | Path, *, spec: DatasetSpec, workers: int, progress: bool = True) -> Path:
    """Write a simulated data set in the KITTI object layout, or find it already written.

    Frames are renamed into place one by one, so the next call resumes an interrupted one; `dataset.json` appears last.
    The bytes do not depend on the number of workers.

    Args:
        root: the data set goes to root / "<sensor>-<fingerprint of the spec>".
        spec: what to simulate.
        workers: processes; 1 simulates in this process. Scripts that use more need the usual
            `if __name__ == "__main__":` guard, since workers are spawned.
        progress: show a progress bar.

    Returns:
        The folder, which holds training/{velodyne,calib,label_2}, ImageSets/ and dataset.json.

    Raises:
        ValueError: if workers < 1.
        RuntimeError: if a worker died.
        KeyboardInterrupt: on Ctrl-C; what is done is kept.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")
    folder = Path(root) / f"{spec.sensor}-{spec.fingerprint()}"
    if is_complete(folder):
        return folder
    for name in ("velodyne", "calib", "label_2"):
        (folder / "training" / name).mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets").mkdir(exist_ok=True)
    todo = [n for n in range(spec.frames) if not _velodyne_path(folder, n).exists()]
    with tqdm(
        total=spec.frames,
        initial=spec.frames - len(todo),
        desc=f"simulating {spec.sensor}",
        unit="frame",
        disable=not progress,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,  # a log file gets few lines
    ) as bar:
        for _ in _run(partial(_write_frame, folder, spec), todo, workers=min(workers, max(len(todo), 1))):
            bar.update()
    for name, numbers in spec.split_ranges().items():
        _write(folder / "ImageSets" / f"{name}.txt", "".join(f"{n:06d}\n" for n in numbers).encode())
    description = {
        "spec": asdict(spec),
        "frames": spec.frames,
        "simulator_version": SIMULATOR_VERSION,
        "sensor": asdict(SENSORS[spec.sensor]),
        "complete": True,
    }
    _write(folder / "dataset.json", (json.dumps(description, indent=1) + "\n").encode())
    return folder


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds a finished simulated data set."""
    try:
        return json.loads((folder / "dataset.json").read_text()).get("complete") is True
    except (FileNotFoundError, json.JSONDecodeError):
        return False


def _velodyne_path(folder: Path, frame: int) -> Path:
    return folder / "training" / "velodyne" / f"{frame:06d}.bin"


def _write_frame(folder: Path, spec: DatasetSpec, frame: int) -> int:
    """Simulate one frame and write it; the point file comes last: where it is, the frame is done."""
    world, sweep = simulate(spec, frame)
    camera, sensor = KittiCamera(), SENSORS[spec.sensor]
    labels = label_text(sweep, world=world, sensor=sensor, camera=camera, azimuth_range=spec.azimuth_range)
    training = folder / "training"
    _write(training / "calib" / f"{frame:06d}.txt", camera.calib_text().encode())
    _write(training / "label_2" / f"{frame:06d}.txt", labels.encode())
    _write(_velodyne_path(folder, frame), sweep.points.astype("<f4", copy=False).tobytes())
    return frame


def _write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that it is never seen half written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _run(job: partial, items: list[int], *, workers: int) -> Iterator[int]:
    """Results of job(item) in order of completion, over processes when workers > 1."""
    if workers == 1:
        yield from map(job, items)
        return
    with _single_threaded_children():
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_enter_worker)
        try:
            queue = iter(items)
            running: set[Future] = {pool.submit(job, item) for item in islice(queue, 4 * workers)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(job, item) for item in islice(queue, len(done))}
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a simulation worker died (out of memory, or killed); call again to go on, with fewer workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _enter_worker() -> None:
    """Leave Ctrl-C to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """One BLAS thread per worker: processes started within inherit these variables."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
