"""Record experts, scripted or trained with stable-baselines3, as a LeRobot data set (LeRobotDataset v3.0).

python scripts/record_demonstrations.py metaworld/drawer-open metaworld/door-open --out data/doors --episodes 50
python scripts/record_demonstrations.py metaworld/all --out data/mt50 --no-image --workers 8
python scripts/record_demonstrations.py point_maze/UMaze --out data/maze --noise 0.3
python scripts/record_demonstrations.py point_maze/UMaze --out data/ppo --sb3-expert ppo.zip --sb3-algorithm ppo
python scripts/record_demonstrations.py --list

The same command continues a recording that was broken off. More episodes or environments of the same suite may be asked
for later. Whatever the number of workers, the same seeds give the same episodes.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.manipulation import EnvOptions, NoExpertError, RolloutSettings, env_names, make_env
from envs.manipulation.recording import RecordingError, RecordingSettings, Tally, record
from envs.manipulation.registry import SUITES
from envs.manipulation.rendering import PRESETS, RenderError

if TYPE_CHECKING:
    from policies.sb3_experts import SB3Experts


def expand(names: list[str]) -> list[str]:
    """Names with SUITE/all replaced by all environments of the suite."""
    found: list[str] = []
    for name in names:
        suite, _, task = name.partition("/")
        found += env_names(suite) if task == "all" else [name]
    return found


def list_environments() -> None:
    """Print all names. A reader that has seen enough, like `head`, is no error."""
    try:
        print("\n".join(name for suite in SUITES for name in env_names(suite)), flush=True)
    except BrokenPipeError:
        # The interpreter flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def sb3_experts(path: Path | None, algorithm: str, keys: list[str] | None) -> "SB3Experts | None":
    """A saved model of stable-baselines3 as expert, if one is named."""
    if path is None:
        return None
    from policies.sb3_experts import SB3Experts

    return SB3Experts(path.resolve(), algorithm, tuple(keys) if keys else None)


class Bar:
    """Progress in episodes kept; those that failed are counted beside it."""

    def __init__(self, total: int, settings: RecordingSettings) -> None:
        self._total, self._settings = total, settings
        self._bar: tqdm | None = None

    def __call__(self, tallies: dict[str, Tally]) -> None:
        kept = sum(tally.kept(self._settings) for tally in tallies.values())
        if self._bar is None:
            self._bar = tqdm(total=max(self._total, kept), initial=kept, unit="episode", smoothing=0.05)
        failures = sum(tally.attempts - tally.successes for tally in tallies.values())
        self._bar.set_postfix(failures=failures, refresh=False)
        self._bar.update(kept - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, record, print what each expert achieved."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="SUITE/TASK", help="environments of one suite, or SUITE/all"
    )
    parser.add_argument("--out", type=Path, help="folder of the data set, new or begun by the same command")
    parser.add_argument("--list", action="store_true", help="print all environments")
    parser.add_argument("--episodes", type=int, default=50, help="of each environment (default: 50)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--keep-failures", action="store_true", help="keep episodes in which the expert fails too"
    )
    parser.add_argument("--sb3-expert", type=Path, metavar="FILE", help="a model that stable-baselines3 saved acts in "
                        "place of the scripted expert; it is unpickled: open only what you trust")  # fmt: skip
    parser.add_argument("--sb3-algorithm", metavar="NAME", help="that saved it: ppo, sac, td3, ddpg or a2c")
    parser.add_argument("--sb3-keys", nargs="+", metavar="KEY", help="of a model that reads a vector: the parts of "
                        "the observation it is made of, in their order (default: it reads the dictionary)")  # fmt: skip
    parser.add_argument("--noise", type=float, default=0.0, metavar="SIGMA",
                        help="of the executed actions, in half ranges; the stored ones stay clean")  # fmt: skip
    parser.add_argument("--max-steps", type=int, help="of an episode; each suite has its own default")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--no-image", action="store_true", help="store no pictures")
    parser.add_argument(
        "--distractors", type=int, default=0, metavar="N", help="numbers of noise to add to the state"
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="fast", help="quality of the pictures")
    parser.add_argument(
        "--video", action="store_true", help="pictures as MP4 instead of PNG: smaller, with loss"
    )
    parser.add_argument("--codec", choices=("h264", "libsvtav1"), default="h264", help="of the videos")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    args = parser.parse_args(arguments)
    if args.list:
        list_environments()
        return
    if not args.names or args.out is None:
        parser.error("name environments and --out FOLDER, or use --list")
    if (args.sb3_expert is None) != (args.sb3_algorithm is None) or (args.sb3_keys and not args.sb3_expert):
        parser.error("a model as expert needs both --sb3-expert FILE and --sb3-algorithm NAME")
    bar = None
    try:
        options = EnvOptions(
            image_size=args.image_size,
            preset=args.preset,
            max_steps=args.max_steps,
            distractors=args.distractors,
        )
        trained = sb3_experts(args.sb3_expert, args.sb3_algorithm, args.sb3_keys)
        settings = RecordingSettings(
            rollout=RolloutSettings(options=options, image=not args.no_image, noise=args.noise),
            first_seed=args.first_seed,
            keep_failures=args.keep_failures,
            video=args.video,
            codec=args.codec,
            expert=None if trained is None else trained.name,
        )
        names = expand(args.names)
        bar = Bar(args.episodes * len(names), settings)
        tallies = record(
            args.out,
            names=names,
            episodes=args.episodes,
            settings=settings,
            workers=args.workers,
            make=make_env if trained is None else trained,
            report=bar,
        )
    except (ValueError, ImportError, RecordingError, NoExpertError, RenderError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
    finally:
        if bar is not None:
            bar.close()
    for name, tally in tallies.items():
        print(
            f"{name}: {tally.successes} of {tally.attempts} attempts succeeded, {tally.kept(settings)} kept"
        )
    print(f"{args.out}: {sum(tally.kept(settings) for tally in tallies.values())} episodes")


if __name__ == "__main__":
    main()
