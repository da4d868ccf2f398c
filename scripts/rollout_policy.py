"""Watch a trained policy: roll it out on a few seeds and write videos.

python scripts/rollout_policy.py RUN                                     one episode of every task of the policy
python scripts/rollout_policy.py RUN --task metaworld/door-open --seeds 100000 100001 --execute 10

RUN is a run folder of train_policy.py or a folder of export_policy.py. For figures: scripts/evaluate_policy.py.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from imitation import LoadedPolicy, env_options, load_policy
from settings import USER_ERRORS

from envs.manipulation import make_env
from envs.manipulation.rendering import PRESETS, RenderError
from policies.imitation.closed_loop import Execution, PolicyActor, Seat, run_task
from policies.imitation.evaluation import BATCH, FIRST_SEED
from policies.imitation.export import ExportedPolicy, load_exported
from policies.videos import write_video


def policy_of(path: Path) -> LoadedPolicy | ExportedPolicy:
    """The policy of an exported folder or a run."""
    return load_exported(path) if (path / "policy.json").is_file() else load_policy(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--task", action="append", help="SUITE/TASK; again for more (default: all of the policy)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[FIRST_SEED["selection"]])
    parser.add_argument("--execute", type=int, help="actions of a chunk before asking again (default: all)")
    parser.add_argument("--ensemble", type=float, help="decay of temporal ensembling")
    recorded = "(default: as the demonstrations were recorded)"
    parser.add_argument("--max-steps", type=int, help=f"of an episode {recorded}")
    parser.add_argument("--preset", choices=sorted(PRESETS), help=f"quality of the pictures {recorded}")
    parser.add_argument("--distractors", type=int, help=f"numbers of noise in the state {recorded}")
    parser.add_argument(
        "--image-size", type=int, help="of videos (default: as the policy sees, 128 if it sees none)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/rollouts"), help="folder of the videos")
    parser.add_argument("--format", choices=("gif", "mp4"), default="gif")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        loaded = policy_of(args.run)
        policy = loaded.policy
        execution = Execution(execute=args.execute, ensemble=args.ensemble)
        actor = PolicyActor(policy, execution=execution, memory=loaded.memory)
        given = {name: getattr(args, name) for name in ("image_size", "preset", "max_steps", "distractors")}
        options = env_options(given, [loaded])
        for task in args.task or policy.interface.tasks:
            policy.interface.task_index(task)
            env = make_env(task, options)
            for seed in args.seeds:
                shots: list[np.ndarray] = []

                def shoot(row: int, seat: Seat, shots: list[np.ndarray] = shots) -> None:
                    shots.append(seat.env.render())

                (episode,) = run_task(
                    actor, envs=[env], seeds=[seed], max_steps=env.max_steps, batch=BATCH, on_step=shoot
                )
                outcome = "success" if episode.success else "failure"
                path = args.out / f"{task.replace('/', '_')}_{seed}_{outcome}.{args.format}"
                write_video(path, np.stack(shots))
                print(f"{task}, seed {seed}: {outcome} after {episode.steps} steps; {path}", flush=True)
            env.close()
    except (*USER_ERRORS, RenderError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
