"""Look at every frame once before training: a bad one is known in the first minute, not an hour later."""

import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tqdm import tqdm

from lidar.datasets.errors import DatasetError, FrameError
from lidar.datasets.frames import ON_ERROR, check_range
from lidar.datasets.sources import FrameRef, FrameSource
from lidar.grid import Range

MODES = ("full", "size", "off")
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class PreflightReport:
    """What was found.

    Attributes:
        good: the frames that can be used, in the order given.
        bad: one error per frame that cannot.
        without_intensity: how many good frames have intensity 0 everywhere (x, y, z only); known in mode
            "full".
        mode: how the frames were looked at.
    """

    good: tuple[FrameRef, ...]
    bad: tuple[FrameError, ...]
    without_intensity: int = 0
    mode: str = "full"

    def summary(self) -> str:
        """A few lines for the console and the report."""
        lines = [
            f"{len(self.good)} of {len(self.good) + len(self.bad)} frames can be used (checked: {self.mode})"
        ]
        if self.without_intensity:
            lines.append(f"{self.without_intensity} frames have no intensity: it is 0 everywhere")
        lines += [f"left out: {error}" for error in self.bad[:_SHOWN]]
        if len(self.bad) > _SHOWN:
            lines.append(f"... and {len(self.bad) - _SHOWN} more")
        return "\n".join(lines)


def preflight(
    source: FrameSource,
    refs: Sequence[FrameRef],
    point_range: Range,
    *,
    on_error: str = "raise",
    workers: int = 2,
    mode: str = "full",
    progress: bool = True,
) -> PreflightReport:
    """Check frames before training.

    Args:
        source: reads the frames.
        refs: which frames.
        point_range: x0, y0, z0, x1, y1, z1 in metres; a frame must have a point inside.
        on_error: "raise" makes bad frames an error; "skip" leaves them out and lists them.
        workers: threads.
        mode: "full" reads every frame; "size" looks at file sizes only; "off" believes all frames.
        progress: show a progress bar with the remaining time.

    Raises:
        DatasetError: if there is a bad frame and on_error="raise", or if no frame can be used.
        ValueError: if on_error or mode is not known.
    """
    if on_error not in ON_ERROR:
        raise ValueError(f"data.on_error is one of {', '.join(ON_ERROR)}, got {on_error!r}")
    if mode not in MODES:
        raise ValueError(f"data.preflight is one of {', '.join(MODES)}, got {mode!r}")
    if mode == "off":
        return PreflightReport(good=tuple(refs), bad=(), mode=mode)

    def look(ref: FrameRef) -> FrameError | bool:
        """The frame's error, or whether it has intensity."""
        try:
            if mode == "size":
                source.check_size(ref)
                return True
            points = source.read(ref)
            check_range(ref.path, points, point_range)
            return bool(points[:, 3].any())
        except FrameError as error:
            return error

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        bar = tqdm(
            pool.map(look, refs),
            total=len(refs),
            desc="checking frames",
            unit="frame",
            disable=not progress,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,  # a log file gets few lines
        )
        found = list(bar)
    report = PreflightReport(
        good=tuple(
            ref for ref, result in zip(refs, found, strict=True) if not isinstance(result, FrameError)
        ),
        bad=tuple(result for result in found if isinstance(result, FrameError)),
        without_intensity=sum(result is False for result in found),
        mode=mode,
    )
    if report.bad and (on_error == "raise" or not report.good):
        raise DatasetError(_refusal(source, report, len(refs)))
    return report


def _refusal(source: FrameSource, report: PreflightReport, count: int) -> str:
    shown = "\n".join(f"  {error}" for error in report.bad[:_SHOWN])
    more = f"\n  ... and {len(report.bad) - _SHOWN} more" if len(report.bad) > _SHOWN else ""
    remedies = Counter(error.remedy for error in report.bad)
    if report.good:
        remedy = "Repair them, or set data.on_error=skip to train without them."
    else:
        remedy = f"No frame is left. {remedies.most_common(1)[0][0]}"
    return f"{source.name}: {len(report.bad)} of {count} frames cannot be used:\n{shown}{more}\n{remedy}"
