"""nuScenes through the official devkit: real detections, the filter's rule, ties, tables, errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lidar.evaluation.nuscenes import (
    ego_positions,
    evaluate_nuscenes,
    evaluate_nuscenes_files,
    evaluate_nuscenes_tables,
)
from lidar.evaluation.nuscenes_submission import submission
from tests.lidar.nuscenes_drives import common_tables, write

pytest.importorskip("nuscenes", reason="needs the extra nuscenes")
RealData = Callable[[str], Path]

# By the devkit's own accumulate, calc_ap and calc_tp: AP at 0.5, 1, 2 and 4 m, then the five errors.
REAL = {
    "car": (0.809190, 0.907375, 0.930790, 0.945314, 0.173513, 0.161123, 0.129589, 0.387751, 1),
    "truck": (0.738619, 0.778292, 0.784695, 0.812948, 0.149281, 0.139558, 0.020513, 0.089031, 1),
    "bus": (0.992945, 0.992945, 0.992945, 0.992945, 0.235422, 0.113956, 0.022624, 3.268988, 1),
    "trailer": (0, 0, 0, 0, 1, 1, 1, 1, 1),
    "construction_vehicle": (0, 0, 0, 0, 1, 1, 1, 1, 1),
    "pedestrian": (0.890909, 0.911126, 0.924949, 0.944682, 0.130301, 0.247318, 0.296766, 0.869962, 1),
    "motorcycle": (0.697621, 0.763000, 0.800981, 0.810416, 0.204318, 0.254953, 0.367059, 0.052450, 1),
    "bicycle": (0.500092, 0.519584, 0.519584, 0.519584, 0.180898, 0.170482, 0.698874, 3.089722, 1),
    "traffic_cone": (0.499800, 0.499800, 0.499802, 0.522421, 0.078777, 0.268315, None, None, None),
    "barrier": (0, 0, 0, 0, 1, 1, 1, None, None),
}


def test_real_detections_give_the_devkits_figures(real_data: RealData) -> None:
    root = real_data("nuscenes_minival_eval")
    found = evaluate_nuscenes_files(root / "centerpoint_results.json", root / "gt_evalboxes_filtered.json")
    assert found.samples == 81
    assert found.metrics["mean_ap"] == pytest.approx(0.5375838978, abs=1e-9)
    assert found.metrics["nd_score"] == pytest.approx(0.4333161780, abs=1e-9)
    content = json.loads(json.dumps(found.json(), allow_nan=False))
    for name, figures in REAL.items():
        errors = content["label_tp_errors"][name]
        values = [content["label_aps"][name][d] for d in ("0.5", "1.0", "2.0", "4.0")]
        values += [errors[e] for e in ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")]
        assert [v is None for v in values] == [v is None for v in figures], name
        for value, figure in zip(values, figures, strict=True):
            assert value is None or value == pytest.approx(figure, abs=1e-6), name
    assert found.curves["car"][2.0].shape == (101,)
    assert "NDS 0.4333" in found.table()


def test_the_truth_handed_in_as_detections(real_data: RealData) -> None:
    """Seven of ten classes are there, without attributes: everything else is perfect."""
    truth = json.loads((real_data("nuscenes_minival_eval") / "gt_evalboxes_filtered.json").read_text())
    boxes = {token: [{**box, "detection_score": 1.0} for box in found] for token, found in truth.items()}
    metrics = evaluate_nuscenes(submission(boxes), truth).metrics
    assert metrics["mean_ap"] == pytest.approx(0.7, abs=1e-12)
    expected = {
        "trans_err": 0.3,
        "scale_err": 0.3,
        "orient_err": 1 / 3,
        "vel_err": 0.25,
        "attr_err": 1.0,
    }
    assert metrics["tp_errors"] == pytest.approx(expected, abs=1e-6)
    assert metrics["nd_score"] == pytest.approx(0.6316667, abs=1e-6)


def box(x: float, y: float = 0.0, *, score: float = 1.0, token: str = "a", **other: Any) -> dict[str, Any]:
    content = {
        "sample_token": token,
        "translation": [x, y, 1.0],
        "size": [1.8, 4.5, 1.5],
        "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [0.0, 0.0],
        "detection_name": "car",
        "detection_score": score,
        "attribute_name": "",
    }
    return {**content, **other}


def labelled(x: float, y: float = 0.0, **other: Any) -> dict[str, Any]:
    """A box of the truth whose ego vehicle stands at (100, 0, 0)."""
    return box(x, y, **{"ego_translation": [x - 100.0, y, 1.0], "num_pts": 5, **other})


def test_among_equal_scores_the_later_box_comes_first() -> None:
    truth = {"a": [labelled(110)]}
    near, far = box(110.1, score=0.5), box(110.3, score=0.5)
    for boxes, error in (([near, far], 0.3), ([far, near], 0.1)):
        metrics = evaluate_nuscenes(submission({"a": boxes}), truth).metrics
        assert metrics["label_tp_errors"]["car"]["trans_err"] == pytest.approx(error)


def test_range_is_measured_in_the_global_plane_on_both_sides() -> None:
    truth = {"a": [labelled(110), labelled(150), labelled(149.9, num_pts=0)]}
    boxes = [box(110), box(50.0)]
    metrics = evaluate_nuscenes(submission({"a": boxes}), truth).metrics
    # At exactly 50 m a car is out of range, and what no point has hit was not there.
    assert metrics["label_aps"]["car"][2.0] == pytest.approx(1.0)
    moved = evaluate_nuscenes(submission({"a": boxes}), truth, ego={"a": np.array([130.0, 0, 0])})
    assert moved.metrics["label_aps"]["car"][2.0] < 1.0


def test_samples_without_any_detection() -> None:
    truth = {"a": [labelled(110)], "b": [labelled(110, token="b")]}
    assert evaluate_nuscenes(submission({"a": [], "b": []}), truth).metrics["mean_ap"] == 0


def test_ego_positions_from_boxes_in_either_frame() -> None:
    rng = np.random.default_rng(0)
    places = rng.uniform(-40, 40, (5, 3)) + np.array([1000, 2000, 0])
    position, turn = np.array([1001.0, 1990, 1]), Rotation.from_euler("zyx", [2.0, 0.03, -0.02])
    in_vehicle = turn.inv().apply(places - position)
    for relative in (places - position, in_vehicle):
        boxes = [
            {"translation": p.tolist(), "ego_translation": r.tolist()}
            for p, r in zip(places, relative, strict=True)
        ]
        assert np.abs(ego_positions({"a": boxes})["a"] - position).max() < 1e-9
    alone = {"a": boxes, "b": boxes[:1]}
    with pytest.raises(ValueError, match=r"sample b: its 1 boxes do not tell .* poses="):
        ego_positions(alone)
    with pytest.raises(ValueError, match="no ego_translation"):
        ego_positions({"a": [{"translation": [1, 2, 3]}]})
    boxes[0]["ego_translation"] = [9, 9, 9]
    with pytest.raises(ValueError, match=r"sample a: .*contradict"):
        ego_positions({"a": boxes})


def test_files_poses_and_their_errors(tmp_path: Path) -> None:
    results, labels, poses = (tmp_path / f"{name}.json" for name in ("results", "labels", "poses"))
    results.write_text(json.dumps(submission({"a": [box(110)]})))
    truth = {"a": [{k: v for k, v in labelled(110).items() if k != "ego_translation"}]}
    labels.write_text(json.dumps(truth))
    with pytest.raises(ValueError, match="poses=FILE"):
        evaluate_nuscenes_files(results, labels)
    poses.write_text('{"a": [100, 0, 0]}')
    found = evaluate_nuscenes_files(results, labels, poses=poses)
    assert found.metrics["label_aps"]["car"][0.5] == pytest.approx(1)
    poses.write_text("{}")
    with pytest.raises(ValueError, match="no ego position for 1 samples"):
        evaluate_nuscenes_files(results, labels, poses=poses)
    with pytest.raises(FileNotFoundError, match="no such file"):
        evaluate_nuscenes_files(tmp_path / "none.json", labels)
    labels.write_text("{")
    with pytest.raises(ValueError, match=r"labels\.json: not JSON"):
        evaluate_nuscenes_files(results, labels)
    with pytest.raises(ValueError, match="serialises EvalBoxes"):
        evaluate_nuscenes(submission({}), {"a": {}})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="serialised EvalBoxes"):
        evaluate_nuscenes(submission({"a": []}), {"a": [labelled(110, detection_name="tank")]})


def test_without_the_devkit_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nuscenes.eval.common.data_classes", None)
    with pytest.raises(ImportError, match=r"robot-worldmodel\[nuscenes\]"):
        evaluate_nuscenes(submission({}), {})


def write_tables(root: Path) -> None:
    """One sample of scene-0103 (mini_val): a car and a bicycle on the road, a bicycle in a rack, ego at (100, 0)."""
    names = ("vehicle.car", "vehicle.bicycle", "static_object.bicycle_rack")
    tables = common_tables(names, height=1.8)
    tables["ego_pose"] = [
        {"token": "pose", "timestamp": 0, "rotation": [1, 0, 0, 0], "translation": [100, 0, 0]}
    ]
    tables["scene"] = [
        {"token": "scene", "log_token": "log", "nbr_samples": 1, "name": "scene-0103", "description": "",
         "first_sample_token": "a", "last_sample_token": "a"}
    ]  # fmt: skip
    tables["sample"] = [{"token": "a", "timestamp": 0, "scene_token": "scene", "prev": "", "next": ""}]
    tables["sample_data"] = [
        {"token": "sweep", "sample_token": "a", "ego_pose_token": "pose", "calibrated_sensor_token": "mount",
         "timestamp": 0, "fileformat": "bin", "is_key_frame": True, "filename": "", "prev": "", "next": ""}
    ]  # fmt: skip
    for number, (name, x) in enumerate(zip((*names, names[1]), (110, 120, 130, 130), strict=True)):
        thing, mark = f"thing{number}", f"mark{number}"
        tables["instance"].append(
            {
                "token": thing,
                "category_token": name,
                "nbr_annotations": 1,
                "first_annotation_token": mark,
                "last_annotation_token": mark,
            }
        )
        tables["sample_annotation"].append(
            {
                "token": mark,
                "sample_token": "a",
                "instance_token": thing,
                "visibility_token": "4",
                "attribute_tokens": ["moving"] if number == 0 else [],
                "translation": [x, 0, 1],
                "size": [1.8, 4.5, 1.5],
                "rotation": [1, 0, 0, 0],
                "prev": "",
                "next": "",
                "num_lidar_pts": 5,
                "num_radar_pts": 0,
            }
        )
    write(root, tables)


def test_tables_with_their_bicycle_racks(tmp_path: Path) -> None:
    write_tables(tmp_path)
    results = tmp_path / "results.json"
    bicycles = [box(x, score=0.4, detection_name="bicycle") for x in (120, 130.5)]
    car = box(110, score=0.9, attribute_name="vehicle.moving")
    results.write_text(json.dumps(submission({"a": [car, *bicycles]})))
    found = evaluate_nuscenes_tables(results, tmp_path, version="v1.0-mini", split="mini_val")
    # The bicycle in the rack is left out on both sides; it would be found, but half a metre off.
    assert found.metrics["mean_dist_aps"]["bicycle"] == pytest.approx(1)
    assert found.metrics["label_tp_errors"]["bicycle"]["trans_err"] == pytest.approx(0)
    assert found.metrics["label_tp_errors"]["car"]["attr_err"] == 0
    with pytest.raises(ValueError, match=r"split val of v1\.0-mini cannot be loaded"):
        evaluate_nuscenes_tables(results, tmp_path, version="v1.0-mini", split="val")
    with pytest.raises(ValueError, match=r"v1\.0-trainval cannot be loaded"):
        evaluate_nuscenes_tables(results, tmp_path, version="v1.0-trainval", split="val")
