"""seq-JEPA on turned digits and objects: does acting on the views help, and what must a figure be compared with?

    python scripts/study_seq_jepa.py --data digits

Every (arm, seed) is a cell: trained, measured, stored under --runs and not made again when the study is restarted. The
report holds every cell that is there. Nothing was tuned on its figures: gates and protocol were fixed before, and what
is watched during training is a part of the training items; test items are seen once a cell is trained.
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from seq_jepa_arms import ARMS, VALIDATION, Arm, Prepared, Scale, source, task, trained
from seq_jepa_report import figure, gates, report
from tqdm import tqdm

from worldmodel.episodes import episode_batches
from worldmodel.evaluation.action_conditioned import (
    ProbeProtocol,
    aggregate_scores,
    encoder_scores,
    retrieval_scores,
)
from worldmodel.evaluation.sequences import Sequences, draw_sequences, encode_sequences, frozen
from worldmodel.training.checkpoints import write_json
from worldmodel.training.provenance import provenance

BASE = ("random", "random_no_act", "act", "no_act", "act_m1")
RETRIEVAL_EPISODES = 1000
GATES_ONLY = ProbeProtocol(lengths=(1, 5, 8), paths=(3,), absolute=False, controls=False)
HEALTH = ("z_std", "rankme_centered", "error", "error_shuffled", "error_copy", "sigreg_standardised")


def plain(protocol: ProbeProtocol) -> dict[str, Any]:
    """The protocol as JSON stores it."""
    return json.loads(json.dumps(asdict(protocol)))


@lru_cache(maxsize=2)
def drawn(data: str, seed: int, protocol: ProbeProtocol) -> tuple[Sequences, Sequences, Sequences]:
    """Training and test sequences of the probes, and test episodes that hold every view of their item."""
    train, test = source(data, "train"), source(data, "test")
    return (
        draw_sequences(train, steps=protocol.steps, count=protocol.regressed[0], seed=seed),
        draw_sequences(test, steps=protocol.steps, count=protocol.regressed[1], seed=seed),
        draw_sequences(test, steps=test.views, count=RETRIEVAL_EPISODES, seed=seed),
    )


def measured(
    arm: Arm, *, data: str, scale: Scale, seed: int, folder: Path, protocol: ProbeProtocol
) -> dict[str, Any]:
    """Train one cell, or take it trained, and measure it."""
    model, record = trained(arm, data=data, scale=scale, seed=seed, folder=folder)
    began = time.perf_counter()
    test_items: Prepared = source(data, "test")
    heldout = episode_batches(test_items, steps=arm.views + 1, count=1000, batch_size=250, seed=1)
    with frozen(model):
        health = model.monitors(heldout)  # type: ignore[operator]
    train, test, whole = drawn(data, seed, protocol)
    classes = test_items.classes
    encoder = model.encoder if arm.baseline else model.model.encoder
    features = [encode_sequences(encoder, s) for s in (train, test)]
    scores = encoder_scores(
        train=features[0], test=features[1], classes=classes, protocol=protocol, seed=seed
    )
    if arm.baseline is None:
        untrained = task(arm, source=test_items, scale=scale, seed=seed).model
        scores |= aggregate_scores(
            model.model,
            untrained=untrained,
            train=features[0],
            test=features[1],
            classes=classes,
            protocol=protocol,
            seed=seed,
        )
        scores |= retrieval_scores(
            model.model, encode_sequences(encoder, whole), views=protocol.retrieval_views
        )
    scores |= {f"health/{name}": health[name] for name in HEALTH if name in health}
    return {**record, "scores": scores, "measure_s": time.perf_counter() - began}


def without_commands(cell: dict[str, Any]) -> dict[str, Any]:
    """The cell with commit, machine and date of its training and measuring; the study's command stands beside."""
    return {
        key: {k: v for k, v in value.items() if k != "command"} if key.endswith("_at") else value
        for key, value in cell.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=("digits", "objects30", "objects90"), default="digits")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(BASE))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/seq_jepa"), help="where cells are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--train-only", action="store_true", help="leave measuring to a later call")
    parser.add_argument(
        "--gates-only", action="store_true", help="measure only what the gates need: a third of the time"
    )
    parser.add_argument("--note", default="", help="a remark to store with the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scale = Scale()
    runs = arguments.runs / arguments.data
    for seed, name in tqdm([(s, n) for s in arguments.seeds for n in arguments.arms], unit="cell"):
        folder = runs / f"{name}_seed-{seed}"
        settings = {"data": arguments.data, "scale": scale, "seed": seed, "folder": folder}
        if arguments.train_only:
            trained(ARMS[name], **settings)
        else:
            own = GATES_ONLY if arguments.gates_only else ProbeProtocol()
            if arguments.gates_only and name == "act":
                own = replace(own, controls=True)
            stored = folder / "cell.json"
            about = {"arm": name, "seed": seed, "protocol": plain(own), "validation": VALIDATION}
            if stored.is_file() and about.items() <= json.loads(stored.read_text()).items():
                continue
            cell = measured(ARMS[name], protocol=own, **settings)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(stored, {**about, "measured_at": provenance(), **cell})
    cells = [without_commands(json.loads(p.read_text())) for p in sorted(runs.glob("*/cell.json"))]
    if arguments.train_only or not cells:
        return
    result = {
        "data": arguments.data,
        "cells": cells,
        "gates": gates(cells, data=arguments.data),
        "note": arguments.note,
        **provenance(),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"seq_jepa_{arguments.data}.json"
    write_json(path, result)
    path.with_suffix(".md").write_text(report(result))
    figure(result, path.with_suffix(".png"))
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
