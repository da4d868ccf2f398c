"""Cut labelled objects out of scans, frame by frame, over processes."""

import multiprocessing
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lidar.datasets.errors import FrameError
from lidar.datasets.frames import ON_ERROR
from lidar.datasets.sources import FrameRef
from lidar.detection.gt_database import Cut, GroundTruthDatabase, write_database
from lidar.detection.labels import (
    OTHER,
    ClassNames,
    LabelledSource,
    check_classes,
    checked_labels,
    difficulty_by_points,
)
from lidar.detection.scene import membership

_AHEAD = 8  # frames in work per process: the order of frames is kept, and memory stays bounded


def build_database(
    path: str | Path,
    *,
    source: LabelledSource,
    refs: Sequence[FrameRef],
    classes: ClassNames,
    workers: int = 1,
    on_error: str = "raise",
    allow_absent: bool = False,
    progress: bool = True,
) -> GroundTruthDatabase:
    """Cut the objects of all classes out of frames and write them to one file.

    The bytes do not depend on the number of workers.

    Args:
        path: file to write.
        refs: which frames: those that are trained on, and no others.
        workers: processes; 1 works in this one. Scripts that use more need the usual `if __name__ == "__main__":`
            guard, since workers are spawned.
        on_error: "raise" passes the first FrameError on; "skip" leaves such frames out; the file's note counts them.
        allow_absent: classes may have no object in these frames, as when they are few.
        progress: show a progress bar.

    Raises:
        DatasetError: if a class never occurs and that is not allowed, or no object is found.
        FrameError: of the first frame that cannot be read, with on_error="raise".
        RuntimeError: if a worker died.
        ValueError: if workers < 1 or on_error is not known.
    """
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error is one of {', '.join(ON_ERROR)}, got {on_error!r}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")
    if on_error == "raise" and not allow_absent:
        check_classes(source, classes, refs)
    note: dict[str, object] = {"source": source.name, "frames": len(refs), "skipped": 0}

    def usable() -> Iterator[Cut]:
        skipped = 0
        found = _cuts(source, refs, classes=classes, workers=min(workers, max(len(refs), 1)))
        for result in tqdm(
            found,
            total=len(refs),
            desc="cutting out objects",
            unit="frame",
            disable=not progress,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,  # a log file gets few lines
        ):
            if isinstance(result, Cut):
                yield result
                continue
            if on_error == "raise":
                raise result
            skipped += 1
            note["skipped"] = skipped

    return write_database(path, usable(), classes=classes.names, note=note)


def cut(source: LabelledSource, ref: FrameRef, classes: ClassNames) -> Cut:
    """The objects of one frame.

    Raises:
        FrameError: if the frame or its labels cannot be read.
    """
    labels = checked_labels(ref.path, source.labels(ref))
    of_class = classes.labels(labels.names)
    wanted = np.flatnonzero(of_class != OTHER)
    boxes = labels.boxes[wanted]
    points = source.read(ref)
    inside = membership(points, boxes)
    counts = inside.sum(axis=1)
    cut_out = [points[row] for row in inside]
    for own, box in zip(cut_out, boxes, strict=True):
        own[:, :3] -= box[:3]
    difficulty = (
        difficulty_by_points(counts, boxes) if labels.difficulty is None else labels.difficulty[wanted]
    )
    return Cut(
        frame=ref.frame_id,
        boxes=boxes,
        labels=of_class[wanted],
        difficulty=difficulty,
        counts=counts,
        points=np.concatenate([np.empty((0, points.shape[1]), np.float32), *cut_out]),
    )


def _cut_or_error(source: LabelledSource, ref: FrameRef, classes: ClassNames) -> Cut | FrameError:
    try:
        return cut(source, ref, classes)
    except FrameError as error:
        return error


_job: tuple[LabelledSource, ClassNames]


def _start(source: LabelledSource, classes: ClassNames) -> None:
    global _job
    _job = source, classes
    torch.set_num_threads(1)


def _work(ref: FrameRef) -> Cut | FrameError:
    source, classes = _job
    return _cut_or_error(source, ref, classes)


def _cuts(
    source: LabelledSource, refs: Sequence[FrameRef], *, classes: ClassNames, workers: int
) -> Iterator[Cut | FrameError]:
    """Of each frame in order, over processes when workers > 1."""
    if workers == 1:
        yield from (_cut_or_error(source, ref, classes) for ref in refs)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(source, classes))
    try:
        queue = iter(refs)
        running: deque[Future[Cut | FrameError]] = deque(
            pool.submit(_work, ref) for ref in islice(queue, _AHEAD * workers)
        )
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(_work, ref) for ref in islice(queue, 1))
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker that cut out objects died (out of memory, or killed); use fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
