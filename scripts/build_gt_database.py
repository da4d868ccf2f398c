"""Cut labelled objects out of training scans into one file, from which ground-truth sampling pastes them.

python scripts/build_gt_database.py --kitti DIR --split train --classes Car Pedestrian Cyclist --out gt.database
python scripts/build_gt_database.py --points DIR --labels labels.jsonl --classes car truck --alias van=car --out F
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from labelled_sources import add_source_options, source_of

from lidar.detection.gt_cutting import build_database
from lidar.detection.labels import ClassNames, label_fraction

FRAMES_PER_WORKER = 500  # a process takes seconds to start, in which another one cuts out hundreds of frames


def main() -> None:
    """Parse the command line, build the database, print what it holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_source_options(parser)
    parser.add_argument("--classes", nargs="+", required=True, metavar="NAME", help="those of the detector")
    parser.add_argument(
        "--alias", nargs="*", default=[], metavar="NAME=CLASS", help="names in the labels that mean a class"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write")
    parser.add_argument(
        "--fraction",
        type=float,
        default=1.0,
        help="share of the labels, as whole scenes; that of the training",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of scenes")
    parser.add_argument("--workers", type=int, help="processes; default: as pays for the number of frames")
    parser.add_argument(
        "--on-error", default="raise", choices=("raise", "skip"), help="what to do with unreadable frames"
    )
    args = parser.parse_args()
    if any(alias.count("=") != 1 for alias in args.alias):
        parser.error(f"--alias takes NAME=CLASS, got {' '.join(args.alias)}")
    started = time.perf_counter()
    try:
        source = source_of(args)
        refs = label_fraction(source.frames, args.fraction, seed=args.seed)
        aliases = dict(alias.split("=") for alias in args.alias)
        database = build_database(
            args.out,
            source=source,
            refs=refs,
            classes=ClassNames(names=tuple(args.classes), aliases=aliases),
            workers=args.workers or min(os.cpu_count() or 1, 1 + len(refs) // FRAMES_PER_WORKER),
            on_error=args.on_error,
        )
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; nothing was written\n")
    skipped = f", {database.note['skipped']} skipped" if database.note["skipped"] else ""
    seconds = time.perf_counter() - started
    print(f"{database.path}: {database.summary()}; {len(refs)} frames{skipped} in {seconds:.0f} s")


if __name__ == "__main__":
    main()
