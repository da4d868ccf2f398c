"""Simulate LiDAR scans of random streets and write them in the KITTI object layout, or drives of 10 sweeps a second.

python scripts/simulate_lidar.py --out data/simulated --frames 760
python scripts/simulate_lidar.py --out data/simulated --frames 100 --sensor HDL-32E --full
python scripts/simulate_lidar.py --out data/drives --drives 96     4 s of driving each
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.driving.drive_store import build_drives
from envs.driving.drives import DriveSpec
from envs.driving.kitti_export import SENSORS, DatasetSpec, build_dataset


def main() -> None:
    """Parse the command line, build the data set, print its folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="folder that receives <sensor>-<fingerprint>/")
    parser.add_argument("--sensor", default="HDL-64E", choices=sorted(SENSORS))
    parser.add_argument(
        "--frames", type=int, default=760, help="scenes in all: 79 %% train, 8 %% probe, 13 %% val"
    )
    parser.add_argument(
        "--drives", type=int, help="write so many drives of 41 sweeps instead, with speed and yaw rate"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="full turns instead of 90 degrees ahead")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    sector = None if args.full else (-45.0, 45.0)
    probe, val = round(args.frames * 60 / 760), round(args.frames * 100 / 760)
    try:
        if args.drives is not None:
            drives = DriveSpec(drives=args.drives, sensor=args.sensor, azimuth_range=sector, seed=args.seed)
            print(build_drives(args.out, spec=drives, workers=args.workers)[0].parent)
            return
        spec = DatasetSpec(
            sensor=args.sensor,
            azimuth_range=sector,
            train=args.frames - probe - val,
            probe=probe,
            val=val,
            seed=args.seed,
        )
        print(build_dataset(args.out, spec=spec, workers=args.workers))
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")


if __name__ == "__main__":
    main()
