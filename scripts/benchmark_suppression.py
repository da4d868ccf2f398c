"""Milliseconds of suppressing duplicates among 4,096 rotated boxes, by how they lie and by threshold.

python scripts/benchmark_suppression.py                  CPU, one thread
python scripts/benchmark_suppression.py --device cuda    a GPU
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from lidar.detection.nms import rotated_nms
from worldmodel.training.checkpoints import write_json
from worldmodel.training.provenance import provenance

AREA = (70.0, 80.0)  # metres
CAR = (3.9, 1.6, 1.5)
LAYOUTS = {"around 40 objects": 40, "around 400 objects": 400, "anywhere": None}
THRESHOLDS = (0.01, 0.1, 0.3, 0.5, 0.7, 0.9)


def boxes(count: int, objects: int | None, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cars [N, 7] with any heading, .3 m around so many objects or anywhere, and scores [N]."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.rand(objects or count, 2, generator=draw) * torch.tensor(AREA)
    if objects:
        centres = centres[torch.randint(objects, (count,), generator=draw)]
        centres = centres + 0.3 * torch.randn(count, 2, generator=draw)
    size = torch.tensor(CAR) * (1 + 0.1 * torch.randn(count, 3, generator=draw))
    heading = 2 * torch.pi * torch.rand(count, 1, generator=draw)
    return torch.cat([centres, torch.zeros(count, 1), size, heading], 1), torch.rand(count, generator=draw)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boxes", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    args = parser.parse_args(arguments)
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    torch.set_num_threads(args.threads)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for layout, objects in LAYOUTS.items():
        these, scores = (t.to(args.device) for t in boxes(args.boxes, objects, args.seed))
        for threshold in THRESHOLDS:
            taken = []
            for _ in range(args.repeats + 1):
                began = time.perf_counter()
                # .tolist() waits for a GPU.
                kept = len(rotated_nms(these, scores, threshold=threshold).tolist())
                taken.append(1e3 * (time.perf_counter() - began))
            found.setdefault(layout, {})[str(threshold)] = {
                "median_ms": statistics.median(taken[1:]), "least_ms": min(taken[1:]), "kept": kept
            }  # fmt: skip
    lines = [
        f"# Suppression of {args.boxes:,} rotated boxes", "",
        f"Milliseconds on {args.device}, {args.threads} thread(s): median of {args.repeats} (least), and boxes kept.",
        "",
        f"| boxes | {' | '.join(f'IoU {t:g}' for t in THRESHOLDS)} |", "|---" * (len(THRESHOLDS) + 1) + "|",
    ]  # fmt: skip
    for layout, row in found.items():
        each = [f"{r['median_ms']:.0f} ({r['least_ms']:.0f}), {r['kept']}" for r in row.values()]
        lines.append(f"| {layout} | {' | '.join(each)} |")
    text = "\n".join([*lines, ""])
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) if name == "out" else value for name, value in vars(args).items()}
    write_json(args.out / "suppression.json", {"settings": settings, "found": found, **provenance()})
    (args.out / "suppression.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
