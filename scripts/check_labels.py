"""Check that boxes and points belong together, before training on them: counts points in boxes, names the mistake.

python scripts/check_labels.py --points DIR --labels labels.jsonl
python scripts/check_labels.py --kitti DIR --split train
python scripts/check_labels.py --nuscenes DIR --version v1.0-mini

Ends with 1 if something is wrong.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from labelled_sources import add_source_options, source_of

from lidar.detection.validator import check_labels


def main() -> None:
    """Parse the command line, check, print the verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_source_options(parser)
    parser.add_argument("--frames", type=int, default=50, help="at most so many are read, evenly spaced")
    args = parser.parse_args()
    if args.frames < 1:
        parser.error("--frames must be 1 or more")
    try:
        source = source_of(args)
        report = check_labels(source, source.frames, frames=args.frames)
    except (ValueError, ImportError) as error:
        parser.exit(2, f"{error}\n")
    print(source.name)
    print(report.text())
    sys.exit(0 if report.good else 1)


if __name__ == "__main__":
    main()
