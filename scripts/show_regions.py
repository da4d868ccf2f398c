"""Draw the salient regions of maps, or count how many regions maps have.

python scripts/show_regions.py --out regions.png                       cluttered digits, local contrast
python scripts/show_regions.py --map density.npy --out regions.png     any map [H, W] or [B, H, W]; 0 or NaN is empty
python scripts/show_regions.py --count 500 --alpha 0.05                a histogram only
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from worldmodel.masking.saliency import Regions, SaliencyRegions


def digit_maps(count: int, grid: int) -> np.ndarray:
    """Local contrast of cluttered digits, averaged to grid x grid: [count, grid, grid]."""
    from envs.views.canvases import cluttered_digits
    from envs.views.saliency import local_contrast

    images = cluttered_digits(split="test").images[:count]
    saliency = local_contrast(images)
    side = saliency.shape[-1] // grid
    return saliency.reshape(len(saliency), grid, side, grid, side).mean((2, 4))


def read_maps(path: Path) -> np.ndarray:
    """Maps [B, H, W] of an .npy file."""
    maps = np.load(path)
    if maps.ndim not in (2, 3):
        raise ValueError(f"{path} holds an array of shape {maps.shape}, not a map [H, W] or maps [B, H, W]")
    return maps.reshape(-1, *maps.shape[-2:])


def draw(maps: np.ndarray, found: Regions, out: Path) -> None:
    """One column per map: the map above, its regions by rank below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(maps), figsize=(1.6 * len(maps), 3.4), squeeze=False)
    count = found.masks.shape[1]
    for column, (saliency, masks) in enumerate(zip(maps, found.masks.numpy(), strict=True)):
        rank = np.where(masks.any(0), masks.argmax(0) + 1.0, np.nan)
        axes[0, column].imshow(saliency, cmap="magma")
        axes[1, column].imshow(rank, cmap="viridis_r", vmin=1, vmax=count)
        axes[1, column].set_xlabel(f"{int(masks[:-1].any((1, 2)).sum())} regions")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.suptitle(f"saliency, and regions 1 (light) to {count} (dark, background)", fontsize=9)
    figure.savefig(out, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def main() -> None:
    """Parse the command line, find the regions, print their histogram, draw the first maps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--map", type=Path, help=".npy file; cluttered digits without")
    parser.add_argument("--out", type=Path, help="PNG of the first 8 maps")
    parser.add_argument("--count", type=int, default=100, help="digit canvases to look at")
    parser.add_argument(
        "--grid", type=int, default=16, choices=(4, 8, 16, 32), help="cells per side of a canvas"
    )
    parser.add_argument("--regions", type=int, default=5, help="with the background")
    parser.add_argument("--alpha", type=float, default=0.15, help="smallest region, share of the cells")
    args = parser.parse_args()
    try:
        maps = digit_maps(args.count, args.grid) if args.map is None else read_maps(args.map)
        occupied = (
            np.ones(maps.shape, dtype=bool)
            if args.map is None
            else np.isfinite(maps) & (np.nan_to_num(maps) != 0)
        )
        found = SaliencyRegions(n=args.regions, alpha=args.alpha)(
            torch.from_numpy(maps), occupied=torch.from_numpy(occupied)
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    shares = found.histogram() / len(maps)
    print(
        f"{len(maps)} maps; share with n regions:",
        ", ".join(f"{n}: {s:.3f}" for n, s in enumerate(shares.tolist())),
    )
    if args.out is not None:
        draw(
            maps[:8], Regions(masks=found.masks[:8], valid=found.valid[:8], scores=found.scores[:8]), args.out
        )


if __name__ == "__main__":
    main()
