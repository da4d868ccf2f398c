"""Draw a contact sheet of a data source of views: one row per episode, one column per observation.

python scripts/show_views.py digits digits.png
python scripts/show_views.py objects objects.png --folder data/objects --rows 24
python scripts/show_views.py saccades saccades.png --steps 5
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.episodes import EpisodeSource
from envs.views.augmentations import AugmentedImages
from envs.views.canvases import CanvasSpec, cluttered_digits
from envs.views.digits import digits
from envs.views.objects import NUISANCES, ObjectSpec, objects
from envs.views.saccades import digit_saccades

PIXELS = 96  # of an observation on the sheet, about


def augmented_digits(args: argparse.Namespace) -> EpisodeSource:
    """Augmented views of digits on coloured canvases."""
    spec = CanvasSpec(size=48, channels=3, fragments=3)
    made = cluttered_digits(split=args.split, seed=args.seed, spec=spec)
    return AugmentedImages(made.images, classes=made.classes)


def rendered(args: argparse.Namespace, *, nuisances: tuple[str, ...] = ()) -> EpisodeSource:
    """Objects; without a folder to keep them in, only two instances of each are rendered."""
    size = {} if args.folder else {"train": 1, "test": 1}
    spec = ObjectSpec(seed=args.seed, nuisances=nuisances, **size)
    return objects(split=args.split, spec=spec, folder=args.folder)


SOURCES: dict[str, Callable[[argparse.Namespace], EpisodeSource]] = {
    "digits": lambda args: digits(split=args.split, seed=args.seed),
    "objects": rendered,
    "objects_nuisances": lambda args: rendered(args, nuisances=tuple(NUISANCES)),
    "augmentations": augmented_digits,
    "saccades": lambda args: digit_saccades(split=args.split, seed=args.seed),
}


def contact_sheet(source: EpisodeSource, *, rows: int, steps: int, seed: int) -> np.ndarray:
    """[H, W, 3] uint8: episodes of `rows` items spread over the source, enlarged without interpolation."""
    items = np.linspace(0, len(source) - 1, rows).round().astype(int)
    drawn = [
        source.sample(int(item), steps=steps, generator=np.random.default_rng((seed, i))).observations
        for i, item in enumerate(items)
    ]
    views = np.stack(drawn)  # [rows, steps, C, H, W]
    if views.ndim != 5 or views.shape[2] not in (1, 3):
        raise ValueError(f"observations {source.observation_shape} are no images [1 or 3, H, W]")
    if views.dtype != np.uint8:
        views = np.rint(255 * np.clip(views, 0, 1)).astype(np.uint8)
    enlarge = max(1, PIXELS // views.shape[-1])
    views = views.repeat(enlarge, axis=3).repeat(enlarge, axis=4)
    views = np.pad(views, ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1)), constant_values=128)
    sheet = views.transpose(0, 3, 1, 4, 2).reshape(rows * views.shape[3], steps * views.shape[4], -1)
    return np.broadcast_to(sheet, (*sheet.shape[:2], 3))


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, write the sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", choices=sorted(SOURCES))
    parser.add_argument("out", type=Path, help="PNG file to write")
    parser.add_argument("--rows", type=int, default=10, help="episodes")
    parser.add_argument("--steps", type=int, default=8, help="observations of each")
    parser.add_argument("--split", default="train", choices=("train", "test"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where rendered objects are kept and found again")
    args = parser.parse_args(arguments)
    if min(args.rows, args.steps) < 1:
        parser.error("a sheet has at least one row and one step")
    try:
        source = SOURCES[args.source](args)
        sheet = contact_sheet(source, rows=args.rows, steps=args.steps, seed=args.seed)
        Image.fromarray(sheet).save(args.out, format="PNG")
    except (ValueError, ImportError, OSError) as error:
        parser.error(str(error))
    print(f"{args.out}: {args.rows} of {len(source)} items; action: {', '.join(source.action.names)}")


if __name__ == "__main__":
    main()
