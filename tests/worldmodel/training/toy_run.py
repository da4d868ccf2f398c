"""One toy run in a process of its own: python -m tests.worldmodel.training.toy_run JSON."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tests.worldmodel.training.toy import Points, ToyTask, train
from worldmodel.distributed import process_group


def main(folder: str, task: dict[str, Any], dataset: dict[str, Any], trainer: dict[str, Any]) -> int:
    torch.set_num_threads(1)
    with process_group("cpu"):
        result = train(Path(folder), task=ToyTask(**task), dataset=Points(**dataset), **trainer)
    print(json.dumps({"step": result.step, "interrupted": result.interrupted}), flush=True)
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main(**json.loads(sys.argv[1])))
