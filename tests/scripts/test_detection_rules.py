"""nuScenes data through the rules of evaluation: labels handed in as detections, the devkit's tables as the truth."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from lidar.datasets.nuscenes import NuScenesKeyFrames
from lidar.datasets.sources import FrameRef
from lidar.detection.batch import Detections
from lidar.detection.benchmarks import LabelledNuScenes
from lidar.detection.failures import Mark
from lidar.detection.inference import FoundFrame
from lidar.detection.labels import ClassNames
from tests.lidar.evaluation.test_nuscenes import write_tables

pytest.importorskip("nuscenes", reason="needs the extra nuscenes")
CLASSES = ClassNames(names=("car", "bicycle"))
RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
DATA = {"name": "nuscenes", "version": "v1.0-mini", "heldout": "mini_val"}


@pytest.fixture
def source(tmp_path: Path) -> LabelledNuScenes:
    """One sample: a car 10 m ahead, a bicycle, and one in a rack."""
    write_tables(tmp_path / "nuscenes")
    table = tmp_path / "nuscenes" / "v1.0-mini" / "sample_data.json"
    rows = json.loads(table.read_text())
    rows[0]["filename"] = "samples/LIDAR_TOP/a.pcd.bin"
    table.write_text(json.dumps(rows))
    path = tmp_path / "nuscenes" / rows[0]["filename"]
    path.parent.mkdir(parents=True)
    np.tile(np.float32([10, 0, -1, 20, 0]), (7, 1)).tofile(path)
    return LabelledNuScenes(
        scans=NuScenesKeyFrames(root=tmp_path / "nuscenes", version="v1.0-mini", sweeps=1)
    )


def found(source: LabelledNuScenes, *, wrong: bool = False) -> FoundFrame:
    """What is labelled as what was found; with a car where nothing is."""
    (ref,) = source.frames
    labels = source.labels(ref)
    own = torch.from_numpy(CLASSES.labels(labels.names))
    boxes = torch.from_numpy(np.nan_to_num(labels.boxes))[own >= 0]
    kinds = own[own >= 0]
    if wrong:
        boxes, kinds = (
            torch.cat([boxes, boxes[:1] - 20]),
            torch.cat([kinds, torch.zeros(1, dtype=torch.int64)]),
        )
    scores = torch.linspace(0.9, 0.5, len(boxes))
    points = torch.from_numpy(source.read(ref))
    return FoundFrame(
        ref=ref, points=points, detections=Detections(boxes=boxes, scores=scores, labels=kinds),
        boxes=boxes, labels=kinds,
    )  # fmt: skip


@pytest.mark.parametrize("whole", [True, False])
def test_the_truth_is_found(
    source: LabelledNuScenes, whole: bool, script: Callable[[str], ModuleType], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rules = script("detection_rules")
    seen = [rules.seen_frame(found(source), source=source, classes=CLASSES, point_range=RANGE)]
    assert len(seen[0].found.points) == 0
    if not whole:  # as if the split had another sample
        frames = property(lambda self: self.scans.frames * 2)
        monkeypatch.setattr(LabelledNuScenes, "frames", frames)
    settings = {"detection_data": {**DATA, "root": source.scans.root}}
    outcome = rules.evaluate(
        source, seen, classes=CLASSES.names, point_range=RANGE, settings=settings, out=tmp_path / "out"
    )
    assert outcome.result.metrics["mean_dist_aps"]["car"] == pytest.approx(1)
    assert outcome.result.metrics["mean_dist_aps"]["bicycle"] == pytest.approx(1)
    assert outcome.result.metrics["label_tp_errors"]["car"]["trans_err"] == pytest.approx(0, abs=1e-5)
    assert list(outcome.curves) == ["car", "bicycle"]
    assert ("1 of 2 samples only" in outcome.rules) is not whole
    written = json.loads((tmp_path / "out" / "submission.json").read_text())
    assert written["results"]["a"][0]["translation"] == pytest.approx([110, 0, 1], abs=1e-4)


def test_pictures_follow_distances(source: LabelledNuScenes, script: Callable[[str], ModuleType]) -> None:
    rules = script("detection_rules")
    seen = rules.seen_frame(found(source, wrong=True), source=source, classes=CLASSES, point_range=RANGE)
    matching = rules.by_distance(rules.CLOSE, classes=CLASSES.names)
    marks = rules.judged(seen, classes=CLASSES.names, matching=matching, score=0.1).detection_marks
    assert marks[-1] == Mark.FALSE
    assert set(marks[:-1]) == {Mark.CORRECT}
    assert len(rules.judged(seen, classes=CLASSES.names, matching=matching, score=0.6).detection_marks) == 3
    # As annotated; the rack belongs to no class.
    assert seen.objects.points.tolist() == [5, 5, 5, 5]
    assert seen.objects.counted.sum() == 3


def test_without_the_devkit_the_extra_is_named(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nuscenes", None)
    with pytest.raises(ImportError, match=r"robot-worldmodel\[nuscenes\]"):
        script("detection_rules").nuscenes_truth(
            tmp_path, version="v1.0-mini", split="mini_val", tokens=["a"]
        )


def test_boxes_of_neighbours_and_out_of_range_count_neither_way(script: Callable[[str], ModuleType]) -> None:
    """A car found, a van found as a car, a car out of range that is missed; and a car where nothing is."""
    rules = script("detection_rules")
    boxes = torch.tensor([[10.0, x, -1, 4, 1.8, 1.6, 0] for x in (0, 10, 20)])
    objects = rules.Objects(
        boxes=boxes,
        names=("car", "van", "car"),
        labels=torch.tensor([0, -1, 0]),
        points=torch.full((3,), 50),
        counted=torch.tensor([True, False, False]),
    )

    def judged(count: int, **given: dict[str, str]) -> tuple[float, float]:
        wrong = boxes[:1] + torch.tensor([30.0, 0, 0, 0, 0, 0, 0])
        detections = Detections(
            boxes=torch.cat([boxes[:2], wrong])[:count],
            scores=torch.tensor([0.5, 0.9, 0.8])[:count],
            labels=torch.zeros(count, dtype=torch.int64),
        )
        found = FoundFrame(
            ref=FrameRef(Path("a"), "a", "s"),
            points=torch.zeros(0, 4),
            detections=detections,
            boxes=boxes,
            labels=objects.labels,
        )
        seen = rules.SeenFrame(found=found, objects=objects, detection_points=torch.zeros(count))
        result = rules.box_evaluation([seen], ("car", "bicycle"), **given)
        assert (result.valid["car"], result.least["car"], result.reach["car"]) == (1, 0.7, 1.0)
        assert (result.least["bicycle"], result.reach["bicycle"]) == (0.5, 0.6)
        return result.curves["car"]["3d"].max(), result.curves["car"]["centre"].max()

    assert judged(2, neighbours={"car": "van"}) == (1.0, 1.0)
    assert judged(2) == (0.5, 0.5)
    assert judged(3, neighbours={"car": "van"}) == (0.5, 0.5)
