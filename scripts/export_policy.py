"""Export a trained policy to one folder: model.safetensors and policy.json, without training state.

python scripts/export_policy.py RUN FOLDER

Prints how long a decision takes. How to use the folder: docs/act_jepa.md.
"""

import argparse
import sys
from pathlib import Path

import torch
from imitation import backbone, load_policy
from settings import USER_ERRORS

from policies.imitation.build import Sizes
from policies.imitation.export import export_policy, latency, load_exported
from worldmodel.training.checkpoints import fingerprint
from worldmodel.training.provenance import provenance


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder of train_policy.py, or one of its checkpoints")
    parser.add_argument("folder", type=Path, help="new folder")
    parser.add_argument("--threads", type=int, default=1, help="for the latency")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    try:
        loaded = load_policy(args.run)
        settings = loaded.settings
        about = {
            "run": str(args.run),
            "weights": fingerprint(loaded.checkpoint),
            "policy": settings["policy"],
            "seed": settings["seed"],
            "steps": settings["trainer"]["max_steps"],
            **provenance(),
        }
        export_policy(
            loaded.policy, args.folder, name=settings["policy"]["name"], sizes=Sizes(**settings["size"]),
            backbone=backbone(settings), memory=loaded.memory, options=loaded.options, about=about,
        )  # fmt: skip
        policy = load_exported(args.folder).policy
    except (*USER_ERRORS, FileExistsError) as error:
        sys.exit(f"error: {error}")
    size = sum(p.stat().st_size for p in args.folder.iterdir()) / 2**20
    count = sum(p.numel() for p in policy.parameters())
    print(
        f"{args.folder}: {count:,} parameters, {size:.1f} MiB; a decision of {policy.interface.chunk} actions takes "
        f"{1e3 * latency(policy):.1f} ms ({args.threads} CPU thread{'s' * (args.threads > 1)})"
    )


if __name__ == "__main__":
    main()
