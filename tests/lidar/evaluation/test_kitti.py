"""KITTI average precision against the official program: a real set of results, and cases for each of its rules."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from lidar.datasets.errors import DatasetError, FrameError
from lidar.datasets.kitti_results import ObjectRows, read_labels, read_results, row_files
from lidar.evaluation.kitti import (
    CLASSES,
    DIFFICULTIES,
    METRICS,
    KittiEvaluation,
    evaluate_kitti,
    evaluate_kitti_folders,
)

RealData = Callable[[str], Path]
Box = tuple[str, float, float, float, float]  # class, left edge, width, height, and occlusion or score


@pytest.fixture(scope="module")
def sequence(real_data: RealData) -> tuple[list[ObjectRows], list[ObjectRows]]:
    root = real_data("kitti_eval_fixture") / "seq0"
    labels = [read_labels(path) for path in row_files(root, "label_2").values()]
    return labels, [read_results(path) for path in row_files(root / "det", "data").values()]


def test_real_results_equal_the_official_program(real_data: RealData) -> None:
    """Every point of 36 curves to the digits that the program prints."""
    root = real_data("kitti_eval_fixture")
    found = evaluate_kitti_folders(root / "seq0" / "det", root / "seq0")
    expected = json.loads((root / "expected.json").read_text())["seq0"]["results"]
    assert found.frames == 154
    assert found.missing == ()
    assert {name: count.tolist() for name, count in found.valid.items()} == {
        "Car": [61, 116, 215],
        "Pedestrian": [8, 9, 19],
        "Cyclist": [154, 154, 154],
    }
    for name in CLASSES:
        for metric in METRICS:
            for place, difficulty in enumerate(DIFFICULTIES):
                official = expected[name.lower()][metric][difficulty]
                curve = found.curves[name][metric][place]
                assert np.abs(curve - official["curve41"]).max() < 5.1e-7  # six decimals
                for points in ("R40", "R11"):
                    average = found.average(name, metric, points)[place]
                    assert average == pytest.approx(official[points], abs=1e-4)


def test_neighbour_classes_and_dont_care_regions_matter(
    sequence: tuple[list[ObjectRows], list[ObjectRows]],
) -> None:
    """The official program's loss without them: 18.3 without vans; 2.1 (moderate) and 6.0 (hard) without regions."""
    labels, results = sequence
    whole = evaluate_kitti(labels, results)

    def renamed(rows: ObjectRows, old: str) -> ObjectRows:
        return ObjectRows(names=np.where(rows.names == old, "Misc", rows.names), values=rows.values)

    vans = evaluate_kitti([renamed(rows, "Van") for rows in labels], results)
    loss = [whole.average("Car", metric) - vans.average("Car", metric) for metric in METRICS]
    assert np.max(loss) == pytest.approx(18.3, abs=0.05)
    regions = evaluate_kitti([renamed(rows, "DontCare") for rows in labels], results)
    loss = whole.average("Car", "bbox") - regions.average("Car", "bbox")
    assert loss[1:].tolist() == pytest.approx([2.1, 6.0], abs=0.05)
    assert np.array_equal(whole.curves["Car"]["bev"], regions.curves["Car"]["bev"])


def test_dont_care_rows_of_the_tracking_form_forgive_nothing(
    sequence: tuple[list[ObjectRows], list[ObjectRows]],
) -> None:
    labels, results = sequence
    changed = []
    for rows in labels:
        values = rows.values.copy()
        values[rows.names == "DontCare", 7:14] = [-1000, -1000, -1000, -10, -1, -1, -10]
        changed.append(ObjectRows(names=rows.names, values=values))
    whole, tracking = evaluate_kitti(labels, results), evaluate_kitti(changed, results)
    for name in CLASSES:
        for metric in METRICS:
            assert np.array_equal(whole.curves[name][metric], tracking.curves[name][metric])


def rows_of(boxes: Sequence[Box], *, scores: bool) -> ObjectRows:
    """Rows with image boxes (top edge 0) only; the fifth number is the score, or the occlusion of a label."""
    if not boxes:
        return ObjectRows.none(scores=scores)
    values = []
    for name, left, width, height, last in boxes:
        state = [-1, -1] if scores else [0, last]
        alpha = -10 if name == "DontCare" else 0
        row = [*state, alpha, left, 0, left + width, height, -1, -1, -1, -1000, -1000, -1000, -10]
        values.append([*row, last] if scores else row)
    return ObjectRows(names=np.array([b[0] for b in boxes]), values=np.array(values, np.float64))


def car(left: float, last: float = 0, *, width: float = 100, height: float = 100) -> Box:
    return ("Car", left, width, height, last)


def in_image(
    truth: Callable[[int], Sequence[Box]], found: Callable[[int], Sequence[Box]], frames: int = 40
) -> KittiEvaluation:
    return evaluate_kitti(
        [rows_of(truth(i), scores=False) for i in range(frames)],
        [rows_of(found(i), scores=True) for i in range(frames)],
    )


def alternating(i: int, even: Sequence[Box], odd: Sequence[Box]) -> Sequence[Box]:
    return [(*box[:4], box[4] - (i // 2) * 0.001) for box in (odd if i % 2 else even)]


CASES = {
    # What the program matches by score, what by overlap.
    "A first by score": (
        lambda i: [car(100)],
        lambda i: [car(102, 0.5 - i * 0.001), car(115, 0.9 - i * 0.001)],
        (97.5, 97.5, 97.5),
        (90.909, 90.909, 90.909),
    ),
    "B then by overlap": (
        lambda i: [car(100)] if i % 2 else [car(100), car(120)],
        lambda i: alternating(i, [car(110, 0.9), car(102, 0.5)], [car(100, 0.4)]),
        (67.5, 67.5, 67.5),
        (63.636, 63.636, 63.636),
    ),
    "C small detections are ignored": (
        lambda i: [car(100, height=50 if i % 2 else 25.5)],
        lambda i: alternating(
            i,
            [car(100, 0.8, height=24.9), car(103, 0.9, height=26)],
            [car(100, 0.4, height=50)],
        ),
        (47.5, 97.5, 97.5),
        (45.455, 90.909, 90.909),
    ),
    "D small detections of another class take objects": (
        lambda i: [car(100, height=26)],
        lambda i: [
            car(100, 0.5 - i * 0.001, height=26),
            *([("Pedestrian", 100.0, 100.0, 24.5, 0.9 - i * 0.001)] if i % 2 else []),
        ],
        (0, 47.5, 47.5),
        (0, 45.455, 45.455),
    ),
    "E the least height is enough": (
        lambda i: [car(100, height=25)],
        lambda i: [car(100, 0.9 - i * 0.001, height=25)],
        (0, 97.5, 97.5),
        (0, 90.909, 90.909),
    ),
    "F the least overlap is not": (
        lambda i: [car(100)],
        lambda i: [car(100, 0.9 - i * 0.001, width=70)],
        (0, 0, 0),
        (0, 0, 0),
    ),
    "G regions excuse false positives": (
        lambda i: [car(100), ("DontCare", 400.0, 200.0, 200.0, -1.0)],
        lambda i: [car(100, 0.9 - i * 0.001), *(car(x, 0.95 - i * 0.001) for x in (450, 480))],
        (97.5, 97.5, 97.5),
        (90.909, 90.909, 90.909),
    ),
    "H neighbours and hard objects count neither way": (
        lambda i: [("Van", 100.0, 100.0, 100.0, 0.0), car(400), car(700, 2)],
        lambda i: [car(x, score - i * 0.001) for x, score in ((100, 0.9), (400, 0.8), (700, 0.7))],
        (97.5, 97.5, 100),
        (90.909, 90.909, 100),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_cases_of_the_official_program(case: str) -> None:
    """Figures that the official program gives, for rules that real results do not put to the test."""
    truth, found, forty, eleven = CASES[case]
    evaluation = in_image(truth, found)
    if case.startswith("E"):  # no object is tall enough to be easy
        assert np.isnan(evaluation.average("Car", "bbox")[0])
        forty, eleven = (float("nan"), *forty[1:]), (float("nan"), *eleven[1:])
    elif case.startswith("D"):
        forty, eleven = (float("nan"), *forty[1:]), (float("nan"), *eleven[1:])
    assert evaluation.average("Car", "bbox").tolist() == pytest.approx(forty, abs=1e-4, nan_ok=True)
    assert evaluation.average("Car", "bbox", "R11").tolist() == pytest.approx(eleven, abs=1e-3, nan_ok=True)


@pytest.mark.parametrize("count", [1, 8, 20, 40, 41, 100])
def test_perfect_detections_of_few_objects(count: int) -> None:
    """N objects give N thresholds, which up to N = 40 leave the highest recalls empty."""
    evaluation = in_image(lambda i: [car(100)], lambda i: [car(100, 0.9 - i * 0.001)], frames=count)
    forty = 100.0 if count > 40 else 100 * (count - 1) / 40
    eleven = 100.0 if count > 40 else 100 * ((count - 1) // 4 + 1) / 11
    assert evaluation.average("Car", "bbox").tolist() == pytest.approx([forty] * 3)
    assert evaluation.average("Car", "bbox", "R11").tolist() == pytest.approx([eleven] * 3)
    assert evaluation.average("Car", "aos").tolist() == pytest.approx([forty] * 3)


def test_without_objects_the_average_is_undefined() -> None:
    evaluation = in_image(lambda i: [car(100)], lambda i: [car(100, 0.9)])
    content = json.loads(json.dumps(evaluation.json(), allow_nan=False))
    assert content["Pedestrian"]["3d"]["R40"] == [None, None, None]
    assert content["Pedestrian"]["3d"]["precision"] == [[None] * 41] * 3
    assert content["Car"]["3d"]["R40"] == [0, 0, 0]
    assert list(content) == list(CLASSES)
    assert list(content["Car"]) == list(METRICS)
    assert [len(curve) for curve in content["Car"]["bbox"]["precision"]] == [41, 41, 41]
    assert "-" in evaluation.table()


def test_a_detection_without_alpha_leaves_the_orientation_unknown() -> None:
    results = rows_of([car(100, 0.9)], scores=True)
    results.values[0, 2] = -10
    evaluation = evaluate_kitti([rows_of([car(100)], scores=False)], [results])
    assert np.isnan(evaluation.curves["Car"]["aos"]).all()
    assert evaluation.curves["Car"]["bbox"].max() == 1


def test_a_missing_file_counts_as_nothing_detected_and_is_named() -> None:
    labels = [rows_of([car(100)], scores=False)] * 40
    results = [rows_of([car(100, 0.9 - i * 0.001)], scores=True) for i in range(40)]
    missing = evaluate_kitti(labels, [None if i % 2 else rows for i, rows in enumerate(results)])
    empty = evaluate_kitti(
        labels, [ObjectRows.none(scores=True) if i % 2 else rows for i, rows in enumerate(results)]
    )
    assert np.array_equal(missing.curves["Car"]["bbox"], empty.curves["Car"]["bbox"])
    assert missing.missing == tuple(f"{i:06d}" for i in range(1, 40, 2))
    assert empty.missing == ()


def test_nothing_detected_at_all() -> None:
    evaluation = evaluate_kitti([rows_of([car(100)], scores=False)], [None])
    assert evaluation.average("Car", "bbox").tolist() == [0, 0, 0]


def test_the_loose_set_is_another_one(sequence: tuple[list[ObjectRows], list[ObjectRows]]) -> None:
    strict, loose = (evaluate_kitti(*sequence, iou=name) for name in ("strict", "loose"))
    assert np.array_equal(strict.curves["Car"]["bbox"], loose.curves["Car"]["bbox"])
    assert (loose.average("Car", "3d")[1:] > strict.average("Car", "3d")[1:]).all()
    assert "@0.25" in loose.table()
    with pytest.raises(ValueError, match="strict, loose"):
        evaluate_kitti(*sequence, iou="lenient")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    results, labels = tmp_path / "results", tmp_path / "labels"
    for folder, end in ((results, " 0.9"), (labels, "")):
        folder.mkdir()
        for frame in range(3):
            row = f"Car 0 0 0.1 100 100 200 200 1.5 1.6 4 1 1.7 10 0.2{end}\n"
            (folder / f"{frame:06d}.txt").write_text(row)
    return results, labels


def test_folders_frame_by_frame(folders: tuple[Path, Path]) -> None:
    results, labels = folders
    (results / "000001.txt").unlink()
    evaluation = evaluate_kitti_folders(results, labels)
    assert evaluation.missing == ("000001",)
    assert evaluation.valid["Car"].tolist() == [3, 3, 3]
    some = evaluate_kitti_folders(results, labels, frames=["000000", "000002"])
    assert some.missing == ()
    assert some.frames == 2


def test_errors_of_folders_and_files(folders: tuple[Path, Path], tmp_path: Path) -> None:
    results, labels = folders
    with pytest.raises(DatasetError, match="no such folder"):
        evaluate_kitti_folders(tmp_path / "nowhere", labels)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"no files like 000000\.txt"):
        evaluate_kitti_folders(tmp_path / "empty", labels)
    with pytest.raises(DatasetError, match=r"no labels for 1 frames \(000007\)"):
        evaluate_kitti_folders(results, labels, frames=["000007"])
    (labels / "000002.txt").unlink()
    with pytest.raises(DatasetError, match=r"no labels for 1 frames \(000002\)"):
        evaluate_kitti_folders(results, labels)
    (results / "000002.txt").unlink()
    (results / "000001.txt").write_text("Car 0 0 0.1 100\n")
    with pytest.raises(FrameError, match=r"000001\.txt: line 1 .*5 fields"):
        evaluate_kitti_folders(results, labels)
    with pytest.raises(ValueError, match="frame by frame"):
        evaluate_kitti([], [])
