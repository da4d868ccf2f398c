"""seq-JEPA on turned digits and objects: does acting on the views help, and what must a figure be compared with?

    python scripts/study_seq_jepa.py --data digits

Every (arm, seed) is a cell: trained, measured, stored under --runs and not made again when the study is restarted.
"""

import argparse
from pathlib import Path

import torch
from seq_jepa_arms import ARMS, Scale, trained
from tqdm import tqdm

BASE = ("random", "random_no_act", "act", "no_act", "act_m1")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=("digits", "objects30", "objects90"), default="digits")
    parser.add_argument("--arms", nargs="*", choices=sorted(ARMS), default=list(BASE))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/seq_jepa"), help="where cells are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--train-only", action="store_true", help="leave measuring to a later call")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cells = [(seed, name) for seed in arguments.seeds for name in arguments.arms]
    for seed, name in tqdm(cells, unit="cell"):
        folder = arguments.runs / arguments.data / f"{name}_seed-{seed}"
        trained(ARMS[name], data=arguments.data, scale=Scale(), seed=seed, folder=folder)


if __name__ == "__main__":
    main()
