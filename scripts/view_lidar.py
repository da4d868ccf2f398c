"""Look at LiDAR frames: points, labels, and what a detector finds. A window with keys, or one HTML file.

python scripts/view_lidar.py FOLDER                              point files, or data in KITTI's layout with its labels
python scripts/view_lidar.py FOLDER --labels labels.jsonl        your own points and labels
python scripts/view_lidar.py FOLDER --detector RUN               what a trained detector finds there
python scripts/view_lidar.py RUN                                 the held-out frames of its own data, found and missed
python scripts/view_lidar.py FOLDER --html view.html --frames 30 a page that opens in any browser

The window needs Open3D (pip install 'robot-worldmodel[viz]'). Without a display the page is written.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from detection import class_names, heldout_frames, load_run
from detection_rules import objects_of
from evaluate_detector import settings_with
from settings import USER_ERRORS
from tqdm import tqdm

from lidar.datasets import KittiObject, PointFolder
from lidar.datasets.frames import Sample, collate
from lidar.datasets.layouts import existing_root, fitting_setting
from lidar.datasets.sources import FrameRef, FrameSource
from lidar.detection.batch import DetectionBatch, Detections
from lidar.detection.benchmarks import LabelledKitti
from lidar.detection.failures import Objects, by_overlap, judge
from lidar.detection.folder_labels import LabelledFolder
from lidar.detection.labels import ClassNames, LabelledSource
from lidar.detection.marked import MarkedFrame, marked_frame
from lidar.detection.viewer_html import MOST_POINTS, write_viewer
from lidar.detection.viewer_open3d import Browser, NoDisplay, has_display, show
from lidar.detection.voxel_detector import VoxelDetector
from lidar.evaluation.kitti import IOU_SETS
from lidar.grid import inside

PAGE = Path("lidar_view.html")
LOOK = 200  # frames whose labels are read to learn the classes
LEAST = 0.5  # overlap of a match, of classes that KITTI does not have


@dataclass(frozen=True, kw_only=True, eq=False)
class Looked:
    """What is looked at.

    Attributes:
        source: reads points.
        refs: its frames.
        classes: names by label.
        labelled: reads labels, None where there are none.
        detector: in evaluation mode, or None.
    """

    source: FrameSource | LabelledSource
    refs: tuple[FrameRef, ...]
    classes: ClassNames
    labelled: LabelledSource | None = None
    detector: VoxelDetector | None = None
    score: float = 0.3

    def frame(self, place: int) -> MarkedFrame:
        """One frame: its points, what is labelled, what is found, and, where there are both, what became of it."""
        ref, names = self.refs[place], self.classes.names
        points = self.source.read(ref)
        found, objects = self._detections(points, ref), self._objects(points, ref)
        marks = None
        if found is not None and objects is not None:
            least = {name: IOU_SETS["strict"].get(name, {"3d": LEAST})["3d"] for name in names}
            judged = judge(
                ref.frame_id, objects=objects, detections=found, detection_points=torch.zeros(len(found)),
                classes=names, matching=by_overlap(least),
            )  # fmt: skip
            marks = (*judged.object_marks, *judged.detection_marks)
        return marked_frame(
            ref.frame_id, points, classes=names, objects=objects, detections=found, marks=marks
        )

    def _objects(self, points: np.ndarray, ref: FrameRef) -> Objects | None:
        if self.labelled is None:
            return None
        seen = None if self.detector is None else self.detector.test_voxels.grid.point_range
        return objects_of(
            self.labelled, ref, points=torch.from_numpy(points), classes=self.classes, point_range=seen
        )

    def _detections(self, points: np.ndarray, ref: FrameRef) -> Detections | None:
        if self.detector is None:
            return None
        kept = torch.from_numpy(points[inside(points, self.detector.test_voxels.grid.point_range)])
        if not len(kept):
            return Detections(
                boxes=torch.zeros(0, 7), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64)
            )
        cloud = collate([Sample(points=kept, frame_id=ref.frame_id, seed=0)])
        try:
            found = self.detector.detect(DetectionBatch(points=cloud))[0]
        except (RuntimeError, ValueError) as error:  # most often: features per point
            raise ValueError(
                f"{ref.path}: this detector cannot read points of {points.shape[1]} numbers ({error})"
            ) from error
        good = found.scores >= self.score
        return Detections(**{name: values[good] for name, values in vars(found).items()})


def looked_at(args: argparse.Namespace) -> Looked:
    """What the command line names.

    Raises:
        ValueError: if it cannot be looked at, saying why.
    """
    path = args.path
    if (path / "config.json").is_file() or (path / "state.json").is_file():
        detector, settings, _ = load_run(path)
        frames = heldout_frames(settings_with(settings, args.set), detector)
        return Looked(
            source=frames.source, refs=frames.refs, classes=frames.classes, labelled=frames.source,
            detector=detector, score=args.score,
        )  # fmt: skip
    source, labelled = folder_source(args)
    detector, classes = None, None
    if args.detector is not None:
        detector, settings, _ = load_run(args.detector)
        classes = class_names(settings)
    return Looked(
        source=source, refs=source.frames, classes=classes or names_in(labelled), labelled=labelled,
        detector=detector, score=args.score,
    )  # fmt: skip


def folder_source(args: argparse.Namespace) -> tuple[FrameSource, LabelledSource | None]:
    """Points of a folder, and their labels where there are any."""
    root = existing_root(args.path, "a viewer")
    fitting = fitting_setting(root) or ""
    if not args.labels and fitting.startswith("data=kitti") and "kitti_sequences" not in fitting:
        _, _, nested = fitting.partition("data.root=")
        scans = KittiObject(root=nested or root)
        there = (scans.frames[0].path.parents[1] / "label_2").is_dir()
        return scans, LabelledKitti(scans=scans) if there else None
    points = PointFolder(root=root, columns=args.columns, intensity_scale=args.intensity_scale)
    if not args.labels:
        return points, None
    labelled = LabelledFolder(points=points, labels_at=args.labels)
    return labelled, labelled


def names_in(source: LabelledSource | None) -> ClassNames:
    """The classes that occur in the first labels of a source, to colour them."""
    found = set() if source is None else {n for ref in source.frames[:LOOK] for n in source.labels(ref).names}
    return ClassNames(names=tuple(sorted(found)) or ("object",))


def chosen(refs: tuple[FrameRef, ...], args: argparse.Namespace) -> tuple[tuple[FrameRef, ...], int]:
    """Frames of the sequence that is asked for, and the place of the first to show.

    Raises:
        ValueError: if there is no such sequence or frame, with some that there are.
    """
    if args.sequence is not None:
        scenes = sorted({ref.scene for ref in refs})
        refs = tuple(ref for ref in refs if ref.scene == args.sequence)
        if not refs:
            raise ValueError(f"no sequence {args.sequence!r}; there are {some(scenes)}")
    if args.frame is None:
        return refs, 0
    names = [ref.frame_id for ref in refs]
    if args.frame in names:
        return refs, names.index(args.frame)
    if args.frame.isdigit() and int(args.frame) < len(refs):
        return refs, int(args.frame)
    raise ValueError(f"no frame {args.frame!r} among {len(refs)}; there are {some(names)}")


def some(names: list[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def page_places(count: int, first: int, args: argparse.Namespace) -> list[int]:
    """Frames of the page: those that follow the first, or evenly spread where neither frame nor sequence is named."""
    most = min(args.frames, count)
    if args.frame is None and args.sequence is None:
        return np.linspace(0, count - 1, most).round().astype(int).tolist()
    return list(range(first, min(first + most, count)))


def run(args: argparse.Namespace) -> None:
    """Show a window or write the page."""
    if args.frames < 1:
        raise ValueError("--frames must be 1 or more")
    looked = looked_at(args)
    refs, first = chosen(looked.refs, args)
    looked = replace(looked, refs=refs)
    page: Path | None = args.html
    if page is None:
        if has_display():
            return show(Browser(len(refs), looked.frame, first=first), title=looked.source.name)
        page = PAGE
        print("there is no display: writing a page instead", flush=True)
    frames = [
        looked.frame(k) for k in tqdm(page_places(len(refs), first, args), unit="frame", disable=args.quiet)
    ]
    write_viewer(page, frames, title=looked.source.name, most_points=args.points)
    print(f"{page}: {len(frames)} of {len(refs)} frames; open it in a browser")
    return None


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, show or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, metavar="FOLDER|RUN", help="frames, or a run of train_detector.py")
    parser.add_argument("--frame", help="first frame to show: its name or its number from 0")
    parser.add_argument("--sequence", help="only the frames of this scene, drive or subfolder, in order")
    parser.add_argument(
        "--detector", type=Path, metavar="RUN", help="run of train_detector.py that looks at FOLDER"
    )
    parser.add_argument("--score", type=float, default=0.3, help="least score of a detection")
    parser.add_argument("--labels", metavar="PATH", help="of a folder: .txt files or one .jsonl file")
    parser.add_argument("--columns", type=int, help="of a folder: float32 values per point of .bin files")
    parser.add_argument(
        "--intensity-scale", type=float, default=1.0, help="of a folder: largest intensity, e.g. 255"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="in place of the run's settings"
    )
    parser.add_argument("--html", type=Path, help="write this page, and open no window")
    parser.add_argument("--frames", type=int, default=20, help="at most so many in the page")
    parser.add_argument(
        "--points", type=int, default=MOST_POINTS, help="at most so many of each frame in the page"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(arguments)
    try:
        run(args)
    except (*USER_ERRORS, NoDisplay) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
