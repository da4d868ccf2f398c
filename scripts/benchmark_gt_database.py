"""Seconds and memory of the ground-truth database of many simulated frames, and of the processes that paste from it.

python scripts/benchmark_gt_database.py                  10,000 frames (5 GB, made on first use) on Linux
python scripts/benchmark_gt_database.py --frames 1000
"""

import argparse
import multiprocessing
import os
import queue
import time
from pathlib import Path
from typing import Any

import numpy as np
from studies import called

from envs.driving.kitti_export import DatasetSpec, build_dataset
from lidar.datasets import KittiObject
from lidar.detection.benchmarks import LabelledKitti
from lidar.detection.gt_database import GroundTruthDatabase
from lidar.detection.gt_sampling import GroundTruthSampling
from lidar.detection.scene import Scene
from worldmodel.training.checkpoints import write_json
from worldmodel.training.provenance import provenance

CLASSES = ("Car", "Pedestrian", "Cyclist")
PASTED = 15  # objects of each class
MIB = 2**20
Job = tuple[Path, int, int]


def paste_together(job: Job, ready: Any, answers: Any) -> None:
    """In a process of its own: paste into empty scenes, wait for the others, tell the memory of the mapped file."""
    path, seed, scenes = job
    database = GroundTruthDatabase(path)
    sampling = GroundTruthSampling(
        database=database, classes=CLASSES, counts=dict.fromkeys(CLASSES, PASTED), subtract_present=False
    )
    empty = Scene(
        points=np.zeros((0, database.columns), np.float32),
        boxes=np.zeros((0, 7), np.float32),
        labels=np.zeros(0, np.int64),
        road=None,
    )
    rng = np.random.default_rng(seed)
    began = time.perf_counter()
    objects = sum(len(sampling.paste(empty, rng).labels) for _ in range(scenes))
    seconds = time.perf_counter() - began
    ready.wait()  # all hold the file, and none has let it go
    memory = mapped(path)
    ready.wait()
    answers.put({"scenes": scenes, "objects": objects, "ms_a_scene": 1e3 * seconds / scenes, **memory})


def mapped(path: Path) -> dict[str, float]:
    """MiB of a file that this process maps: what it touched, its share of that, and what it has to itself."""
    fields = {"Rss": "resident_mib", "Pss": "share_mib", "Anonymous": "copied_mib"}
    found = dict.fromkeys(fields.values(), 0.0)
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(maxsplit=5)
        if "-" in head[0]:
            inside = len(head) == 6 and head[5] == str(path.resolve())
        elif inside and (name := head[0].rstrip(":")) in fields:
            found[fields[name]] += int(head[1]) / 1024
    return found


def sharing(path: Path, *, processes: int, scenes: int) -> list[dict[str, Any]]:
    """What each of several processes that paste at a time needs.

    Raises:
        SystemExit: if one dies.
    """
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(processes), context.Queue()
    running = [
        context.Process(target=paste_together, args=((path, seed, scenes), ready, answers), daemon=True)
        for seed in range(processes)
    ]
    for process in running:
        process.start()
    told: list[dict[str, Any]] = []
    while len(told) < processes:
        try:
            told.append(answers.get(timeout=1.0))
        except queue.Empty:
            if any(process.exitcode for process in running):
                raise SystemExit("a process that pasted objects died: its message is above") from None
    for process in running:
        process.join()
    return told


def read_all(folder: Path, frames: int) -> float:
    """Seconds to read labels and points of all frames and do nothing with them, in one process."""
    source = LabelledKitti(scans=KittiObject(root=folder, split="train", view="full"))
    began = time.perf_counter()
    for ref in source.frames[:frames]:
        source.labels(ref)
        source.read(ref)
    return time.perf_counter() - began


def table(args: argparse.Namespace, built: dict[str, Any], pasting: list[dict[str, Any]]) -> str:
    """The figures, for the docs."""

    def total(key: str) -> float:
        return sum(row[key] for row in pasting)

    wall, objects = built["wall_s"], ", ".join(f"{n:,} {name}" for name, n in built["per_class"].items())
    pace, pasted = max(row["ms_a_scene"] for row in pasting), total("objects") / total("scenes")
    rows = {
        "one pass, one file": f"{wall:.0f} s, {args.frames / wall:.0f} frames a second",
        "its processor time": f"{built['cpu_s']:.0f} s",
        "reading the same points and labels before, no more, in one process": f"{built['read_only_s']:.0f} s",
        "most memory of a process that builds": f"{built['peak_mib']:.0f} MiB",
        "file": f"{built['file_mib']:.0f} MiB: {objects}",
        "of it in memory, added up over the processes that paste": f"{total('resident_mib'):.0f} MiB",
        "of that in memory once, shared": f"{total('share_mib'):.0f} MiB",
        "copied for one process alone": f"{total('copied_mib'):.0f} MiB",
        f"pasting into a scene, {args.processes} processes at a time": f"{pace:.1f} ms, {pasted:.0f} objects",
    }
    return (
        f"# Ground-truth database of {args.frames:,} simulated frames\n\n"
        f"HDL-64E, 90 degrees. {args.workers} process(es) build it; then {args.processes} paste up to {PASTED} objects "
        f"of each class into {args.scenes} scenes each.\n\n| | |\n|---|---|\n"
        + "".join(f"| {name} | {figure} |\n" for name, figure in rows.items())
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--data", type=Path, default=Path("data/gt_benchmark"), help="where frames are kept")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--processes", type=int, default=4, help="that paste at a time")
    parser.add_argument("--scenes", type=int, default=500, help="pasted into by each of them")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    args = parser.parse_args(arguments)
    if min(args.frames, args.workers, args.processes, args.scenes) < 1:
        parser.error("--frames, --workers, --processes and --scenes must be at least 1")
    if not Path("/proc/self/smaps").is_file():
        parser.error("needs Linux, whose kernel tells what memory processes share")
    spec = DatasetSpec(azimuth_range=(-45.0, 45.0), train=args.frames, probe=0, val=0)
    folder = build_dataset(args.data, spec=spec, workers=args.workers)
    path = args.data / f"{args.frames}.gt"
    reading = read_all(folder, args.frames)
    began = time.perf_counter()
    usage = called(
        "build_gt_database.py", "--kitti", str(folder), "--split", "train", "--classes", *CLASSES, "--out", str(path),
        "--workers", str(args.workers),
    )  # fmt: skip
    built = {
        "wall_s": time.perf_counter() - began, **usage, "file_mib": path.stat().st_size / MIB,
        "per_class": GroundTruthDatabase(path).per_class(), "read_only_s": reading,
    }  # fmt: skip
    pasting = sharing(path, processes=args.processes, scenes=args.scenes)
    text = table(args, built, pasting)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    write_json(
        args.out / "gt_database.json",
        {"settings": settings, "built": built, "pasting": pasting, **provenance()},
    )
    (args.out / "gt_database.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
