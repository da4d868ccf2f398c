"""What pretraining is worth to a detector when labels are few: scratch, AD-L-JEPA, AD-L-JEPA with SIGReg, occupancy.

python scripts/study_label_efficiency.py                        simulated streets, CPU size: hours on two cores
python scripts/study_label_efficiency.py --seeds 0 --scenes 20  one seed, one budget
python scripts/study_label_efficiency.py --detector second_small --mode layerwise
python scripts/study_label_efficiency.py --data data=kitti data.root=DIR --detection detection_data=kitti
    detection_data.root=DIR --model kitti --detector second_kitti --training 3712 --scenes 186 742 3712 --steps 9280
                                                                real size, where there is a GPU

Every arm pretrains on all training scenes without labels, then the same detector learns from the labels of a few. Of
one seed, all arms have the same labelled scenes, batches and detector initialisation; the pretraining has that seed
too. The last checkpoint is what counts. `scratch_long` trains without pretraining, but for longer. Every run is a cell,
stored under --runs and not made again.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from label_efficiency_report import mean_ap, report
from studies import called

from worldmodel.training.checkpoints import write_json
from worldmodel.training.provenance import provenance

Cell = dict[str, Any]
PRETRAINED = ("ema_variance", "sigreg", "occupancy")
ARMS = ("scratch", "scratch_long", *PRETRAINED)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What all cells of a study share.

    Attributes:
        detector: name of a config of train_detector.py.
        mode: how a pretrained encoder is trained on.
        steps: of the detector; `long_factor` times as many for scratch_long.
        pretraining_steps: of every objective.
        training: scenes there are to draw labels from.
        model: config of the encoder in pretrain_lidar.py that fits the detector.
        data, detection: words for the data of pretraining and of the detector.
        extra: further words of train_detector.py.
        pretraining_extra: further words of pretrain_lidar.py.
    """

    detector: str
    mode: str
    steps: int
    long_factor: float
    pretraining_steps: int
    training: int
    model: str
    data: tuple[str, ...]
    detection: tuple[str, ...]
    extra: tuple[str, ...]
    pretraining_extra: tuple[str, ...]


def pretrain(protocol: Protocol, arm: str, seed: int, root: Path) -> Path:
    """The pretraining run of an arm, made once; its cost is stored beside it."""
    folder = root / f"pretraining-{arm}-{seed}"
    cost = folder / "cost.json"
    if not cost.is_file():
        began = time.perf_counter()
        usage = called(
            "pretrain_lidar.py", f"objective={arm}", f"model={protocol.model}", f"seed={seed}", f"run.dir={folder}",
            "resume=true", "probe.enabled=false", "trainer.progress=false",
            f"trainer.max_steps={protocol.pretraining_steps}", *protocol.data, *protocol.pretraining_extra,
        )  # fmt: skip
        write_json(cost, {**usage, "wall_s": time.perf_counter() - began})
    return folder


def make_cell(
    protocol: Protocol, arm: str, scenes: int, seed: int, root: Path, *, evaluate_again: bool = False
) -> None:
    """Train and evaluate one detector, if it was not yet.

    Raises:
        SystemExit: if the cell is there, but of another protocol.
    """
    folder = root / f"{arm}-{scenes}-{seed}"
    trained = folder / "trained.json"
    if (folder / "cell.json").is_file():
        checked(folder, protocol)
        if not evaluate_again:
            return
    if not trained.is_file():
        start: list[str] = []
        if arm in PRETRAINED:
            start = [
                f"pretrained.encoder={pretrain(protocol, arm, seed, root)}",
                f"pretrained.mode={protocol.mode}",
            ]
        steps = round(protocol.steps * (protocol.long_factor if arm == "scratch_long" else 1.0))
        usage = called(
            "train_detector.py", f"detector={protocol.detector}", f"seed={seed}", f"run.dir={folder}", "resume=true",
            f"detection_data.fraction={scenes / protocol.training}", f"detection_data.fraction_seed={seed}",
            "trainer.progress=false", f"trainer.max_steps={steps}", f"trainer.eval_every={steps}", *protocol.detection,
            *protocol.extra, *start,
        )  # fmt: skip
        write_json(trained, {**usage, **provenance()})
    called("evaluate_detector.py", str(folder), "--quiet", "--no-report")
    found = json.loads((folder / "evaluation" / "results.json").read_text())
    # The protocol names what is not a default; the defaults too decide the figures.
    data = {
        k: v for k, v in found["settings"]["detection_data"].items() if k not in ("fraction", "fraction_seed")
    }
    cell = {
        "protocol": plain(protocol), "detection_data": data, "training": json.loads(trained.read_text()),
        **{part: without_curves(found[part]) for part in ("evaluation", "sensor_frame")}, **provenance(),
    }  # fmt: skip
    write_json(folder / "cell.json", cell)
    print(f"{arm}, {scenes} scenes, seed {seed}: mAP {mean_ap(cell):.2f}", flush=True)


def without_curves(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures of each class and metric; their curves stay in the run's results.json."""
    return {
        name: {
            k: {p: v[p] for p in v if p != "precision"} if isinstance(v, dict) else v for k, v in row.items()
        }
        for name, row in figures.items()
    }


def checked(folder: Path, protocol: Protocol) -> Cell:
    """A stored cell.

    Raises:
        SystemExit: if it is of another protocol.
    """
    cell: Cell = json.loads((folder / "cell.json").read_text())
    if cell["protocol"] != plain(protocol):
        raise SystemExit(f"{folder} is of another protocol: move it away, or choose other --runs or --name")
    return cell


def stored(root: Path, protocol: Protocol) -> dict[str, dict[int, dict[int, Cell]]]:
    """All cells there are: by arm, labelled scenes and seed.

    Raises:
        SystemExit: if one is of another protocol or other data.
    """
    found: dict[str, dict[int, dict[int, Cell]]] = {}
    data: Any = None
    for arm in ARMS:
        for path in sorted(root.glob(f"{arm}-[0-9]*-[0-9]*/cell.json")):
            cell = checked(path.parent, protocol)
            data = data or cell["detection_data"]
            if cell["detection_data"] != data:
                raise SystemExit(
                    f"{path.parent} was trained with another detection_data than other cells (the defaults have "
                    f"changed?): move it away, or choose other --runs"
                )
            scenes, seed = map(int, path.parent.name.rsplit("-", 2)[1:])
            found.setdefault(arm, {}).setdefault(scenes, {})[seed] = cell
    return found


def plain(protocol: Protocol) -> dict[str, Any]:
    """As it is read back from JSON."""
    made: dict[str, Any] = json.loads(json.dumps(vars(protocol)))
    return made


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--scenes", nargs="*", type=int, default=[20, 30, 120, 600],
                        help="labelled scenes; 5, 20 and 100 %% of the simulated set are 30, 120 and 600")  # fmt: skip
    parser.add_argument("--training", type=int, default=600, help="training scenes there are")
    parser.add_argument("--detector", default="center_point_small")
    parser.add_argument("--model", default="small", help="encoder of the pretraining, that of the detector")
    parser.add_argument("--mode", default="finetune", choices=("finetune", "frozen", "layerwise"))
    parser.add_argument("--steps", type=int, default=720)
    parser.add_argument(
        "--long-factor", type=float, default=2.0, help="steps of scratch_long, in those of the others"
    )
    parser.add_argument("--pretraining-steps", type=int, default=600)
    parser.add_argument("--data", nargs="*", default=[], help="words for pretrain_lidar.py")
    parser.add_argument(
        "--detection", nargs="*", default=[], help="words for train_detector.py that name the data"
    )
    parser.add_argument("--extra", nargs="*", default=[], help="further words for train_detector.py")
    parser.add_argument(
        "--pretraining-extra", nargs="*", default=[], help="further words for pretrain_lidar.py"
    )
    parser.add_argument(
        "--evaluate-again", action="store_true", help="also the cells there are, by the rules of this version"
    )
    parser.add_argument("--name", default="label_efficiency", help="of the results")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--note", default="", help="a remark to store with the results")
    args = parser.parse_args(arguments)
    if max(args.scenes) > args.training:
        parser.error(
            f"there are {args.training} training scenes, asked were {max(args.scenes)}: see --training"
        )
    protocol = Protocol(
        detector=args.detector, mode=args.mode, steps=args.steps, long_factor=args.long_factor,
        pretraining_steps=args.pretraining_steps, training=args.training, model=args.model, data=tuple(args.data),
        detection=tuple(args.detection), extra=tuple(args.extra), pretraining_extra=tuple(args.pretraining_extra),
    )  # fmt: skip
    root = args.runs / args.name
    stored(root, protocol)  # what does not belong here is told before hours of training
    for seed in args.seeds:
        for scenes in args.scenes:
            for arm in args.arms:
                make_cell(protocol, arm, scenes, seed, root, evaluate_again=args.evaluate_again)
    found = stored(root, protocol)
    costs = {
        a: [json.loads(p.read_text()) for p in sorted(root.glob(f"pretraining-{a}-*/cost.json"))]
        for a in ARMS
    }
    text = report(vars(protocol), found, costs)
    args.out.mkdir(parents=True, exist_ok=True)
    content = {"protocol": vars(protocol), "cells": found, "costs": costs, "note": args.note, **provenance()}
    write_json(args.out / f"{args.name}.json", content)
    (args.out / f"{args.name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
