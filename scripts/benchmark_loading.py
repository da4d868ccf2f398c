"""Loading a LeRobot data set with pictures: this project's reader beside the lerobot package's, in one run.

LEROBOT_PYTHON=/path/to/python python scripts/benchmark_loading.py data/loading_benchmark

LEROBOT_PYTHON (or --lerobot-python) is a Python that has the lerobot package, which cannot share an environment with
this project; without it only this project's reader is measured. A data set to read is made by

python scripts/record_demonstrations.py metaworld/{button-press,coffee-button,door-close,faucet-open,window-open} \\
    --episodes 20 --image-size 128 --out data/loading_benchmark

Each reader runs in a process of its own, in turn, several times; this project's decodes on up to eight cores. Every
pass over the frames sums up all pixels and actions; the sums must agree.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

IMAGE, STATE, ACTION = "observation.image", "observation.state", "action"
READERS = ("ours", "lerobot")
DECODE, SERVE = "decode all into memory", "single frames from memory, random order"
DECODE_AND_SERVE = "single frames from the file, random order"
Row = dict[str, Any]
Pass = tuple[str, int, float]  # what was read, frames, checksum
IMPORTED: Pass = ("", 0, 0.0)  # the clock starts here: imports are no part of reading


def read_ours(root: Path) -> Iterator[Pass]:
    """Everything decoded into memory, then served from there."""
    from envs.demonstrations import load_demonstrations

    yield IMPORTED
    demonstrations = load_demonstrations(root)
    frames = sum(len(d) for d in demonstrations)
    yield DECODE, frames, sum(checksum(d.image, d.action) for d in demonstrations)
    # What the other reader hands out: single frames in random order, pictures as float32 [3, H, W] in 0 to 1.
    places = [(d, t) for d in demonstrations for t in range(len(d))]
    total = 0.0
    for i in np.random.default_rng(0).permutation(frames):
        demonstration, t = places[i]
        image = demonstration.image[t].transpose(2, 0, 1).astype(np.float32) / 255
        total += checksum(image * 255, demonstration.action[t])
    yield SERVE, frames, total


def read_lerobot(root: Path) -> Iterator[Pass]:
    """Single frames in random order; each is decoded when it is asked for, in every epoch again."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    yield IMPORTED
    dataset = LeRobotDataset("local/benchmark", root=root)
    total = 0.0
    for i in np.random.default_rng(0).permutation(len(dataset)):
        item = dataset[int(i)]
        total += checksum(item[IMAGE].numpy() * 255, item[ACTION].numpy())
    yield DECODE_AND_SERVE, len(dataset), total


def checksum(image: np.ndarray, action: np.ndarray) -> float:
    # A sum of pixels is cheap beside their decoding, and the same for both.
    return float(image.sum(dtype=np.float64)) + float(action.sum(dtype=np.float64))


def measure(reader: str, root: Path) -> list[Row]:
    """Frames per second of each pass, by the clock and by the processor time of this process."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    rows: list[Row] = []
    wall, cpu = time.perf_counter(), time.process_time()
    for name, frames, total in {"ours": read_ours, "lerobot": read_lerobot}[reader](root):
        times = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        if frames:
            rows.append({"reader": reader, "pass": name, "frames": frames, **times, "checksum": total})
        wall, cpu = time.perf_counter(), time.process_time()
    return rows


def run(python: str, reader: str, root: Path) -> list[Row]:
    """`measure` in a process of its own.

    Raises:
        RuntimeError: if it fails, with what it printed last.
    """
    command = [python, __file__, str(root), "--measure", reader]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    )
    if done.returncode:
        raise RuntimeError(f"the reader {reader} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary(rows: list[Row]) -> list[Row]:
    """Best and median of the repeats of each pass."""
    found = []
    for reader, name in dict.fromkeys((row["reader"], row["pass"]) for row in rows):
        same = [row for row in rows if (row["reader"], row["pass"]) == (reader, name)]
        by_cpu = sorted(row["frames"] / row["cpu_seconds"] for row in same)
        by_clock = sorted(row["frames"] / row["seconds"] for row in same)
        found.append(
            {
                "reader": reader,
                "pass": name,
                "frames": same[0]["frames"],
                "runs": len(same),
                "frames/cpu-s, median": round(float(np.median(by_cpu))),
                "frames/cpu-s, range": f"{by_cpu[0]:.0f} to {by_cpu[-1]:.0f}",
                "frames/s, median": round(float(np.median(by_clock))),
            }
        )
    return found


def markdown(result: Row) -> str:
    rows = result["summary"]
    columns = ["reader", "pass", *sorted(rows[0].keys() - {"reader", "pass"})]
    lines = ["# Loading a LeRobot data set with pictures", ""]
    peer = f"lerobot {result['lerobot_version']}" if result["lerobot_version"] else "without lerobot"
    lines += [
        f"{result['episodes']} episodes, pictures of {result['picture']}, {peer}; imports not counted. All "
        "passes returned the same pictures and actions.",
        "",
        f"`{result['command']}`",
        "",
    ]
    lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(str(row[column]) for column in columns) + " |" for row in rows]
    if result["ratios"]:
        lines += [
            "",
            "This project's reader against lerobot's, medians of frames per second and per processor second:",
            "",
        ]
        for name, value in result["ratios"].items():
            lines.append(f"- {name}: {value['frames/s']:.1f} and {value['frames/cpu-s']:.1f} times")
    return "\n".join([*lines, ""])


def ratios(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Ours against lerobot's, by what is done with the frames, by the clock and by processor time."""
    if DECODE_AND_SERVE not in {row["pass"] for row in rows}:
        return {}
    by = {
        unit: _ratios({row["pass"]: row[f"{unit}, median"] for row in rows})
        for unit in ("frames/s", "frames/cpu-s")
    }
    return {name: {unit: found[name] for unit, found in by.items()} for name in by["frames/s"]}


def _ratios(rate: dict[str, float]) -> dict[str, float]:
    theirs = rate[DECODE_AND_SERVE]
    epochs = {n: n / (1 / rate[DECODE] + n / rate[SERVE]) for n in (1, 10)}
    return {
        "loading, every frame decoded once": rate[DECODE] / theirs,
        "one epoch of single frames, loading included": epochs[1] / theirs,
        "ten epochs of single frames, loading included": epochs[10] / theirs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder of the data set")
    parser.add_argument("--lerobot-python", default=os.environ.get("LEROBOT_PYTHON"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--measure", choices=READERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.root)))
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from envs.lerobot import LeRobotDataset
    from worldmodel.training.checkpoints import write_json
    from worldmodel.training.provenance import provenance

    try:
        dataset = LeRobotDataset(args.root)
        pythons = {"ours": sys.executable, "lerobot": args.lerobot_python}
        rows: list[Row] = []
        for _ in range(args.repeats):
            for reader, python in pythons.items():
                if python:
                    rows += run(python, reader, args.root)
    except (FileNotFoundError, RuntimeError) as error:
        parser.error(str(error))
    sums = [row["checksum"] for row in rows]
    if not np.allclose(sums, sums[0], rtol=1e-6):
        parser.error(f"the readers disagree about the content: {sums}")
    result: Row = {
        "episodes": len(dataset),
        "picture": " x ".join(map(str, dataset.feature(IMAGE).shape)),
        "lerobot_version": version_of(args.lerobot_python),
        "summary": summary(rows),
        "ratios": ratios(summary(rows)),
        "runs": rows,
        **provenance(),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "lerobot_loading.json"
    write_json(path, result)
    path.with_suffix(".md").write_text(markdown(result))
    print(path.with_suffix(".md").read_text())


def version_of(python: str | None) -> str | None:
    """Of the lerobot package of a Python."""
    if not python:
        return None
    code = "import importlib.metadata; print(importlib.metadata.version('lerobot'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
