import numpy as np
import pytest
import torch

from lidar.datasets.kitti_labels import ObjectLabels
from lidar.probe import NOT_ANNOTATED, LabelledScene, cell_classes, point_classes, run_probe, scene_features

from .scenes import cloud, tiny_task


def labels(*rows):
    return ObjectLabels(
        boxes=np.array([r[1] for r in rows], np.float32).reshape(-1, 7), names=tuple(r[0] for r in rows)
    )


def test_point_classes_follow_rotated_boxes():
    boxes = labels(("Car", (5, 0, 0, 4, 2, 2, np.pi / 2)), ("Pedestrian", (2, 2, 0, 1, 1, 2, 0)))
    points = np.array([[5, 1.9, 0, 0], [6.9, 0, 0, 0], [5, 1.9, 1.1, 0], [2.4, 2.4, 0.9, 0]], np.float32)
    assert point_classes(points, boxes).tolist() == [1, 0, 0, 2]


def test_unknown_classes_are_background():
    assert point_classes(np.zeros((1, 4), np.float32), labels(("Tram", (0, 0, 0, 4, 4, 4, 0)))).tolist() == [
        0
    ]


def test_a_cell_takes_the_object_class_with_most_points():
    task = tiny_task()
    boxes = labels(("Car", (0.2, -6.2, 0, 0.2, 0.2, 2, 0)), ("Cyclist", (0.6, -6.2, 0, 0.2, 0.2, 2, 0)))
    points = torch.tensor([[0.2, -6.2, 0, 0], [0.6, -6.2, 0, 0], [0.6, -6.2, 0.1, 0], [5.0, 0.0, 0, 0]])
    classes = cell_classes(
        LabelledScene(frame_id="0", points=points, labels=boxes),
        voxelizer=task.voxelizer,
        encoder=task.model.encoder,
    )
    assert classes.shape == task.model.encoder.bev_shape
    assert classes[0, 0] == 3
    assert int((classes > 0).sum()) == 1


def test_cells_that_nobody_annotated_are_left_out():
    task = tiny_task()
    points = torch.tensor([[0.2, -6.2, 0, 0], [5.0, 0.0, 0, 0]])
    scene = LabelledScene(frame_id="0", points=points, labels=labels(), annotated=points[1:])
    classes = cell_classes(scene, voxelizer=task.voxelizer, encoder=task.model.encoder)
    assert classes[0, 0] == NOT_ANNOTATED
    assert int((classes == 0).sum()) == 1
    features = scene_features(
        task.model.encoder, [scene], voxelizer=task.voxelizer, device=torch.device("cpu")
    )
    assert features[0].classes.tolist() == [0]


def scenes(count, first):
    made = []
    for i in range(first, first + count):
        points = cloud(i)
        box = labels(("Car", (float(points[610, 0]), float(points[610, 1]), -0.8, 3, 2, 2, 0)))
        made.append(LabelledScene(frame_id=str(i), points=points, labels=box))
    return made


def probe_of(task, **changes):
    settings = {
        "pretrained": task.model.encoder,
        "random": task.untrained_encoder,
        "pool": scenes(4, 0),
        "validation": scenes(3, 50),
        "voxelizer": task.voxelizer,
        "budgets": (2, 4, 99),
        "draws": 3,
        "calibration_frames": 3,
        "seed": 0,
        "device": torch.device("cpu"),
    }
    return run_probe(**(settings | changes))


def test_equal_encoders_have_no_gain_and_draws_are_paired():
    result = probe_of(tiny_task())
    assert [(row.budget, len(row.random)) for row in result.rows] == [(2, 3), (4, 1)]
    assert all(row.gain == 0 for row in result.rows)
    assert [row.gain_interval for row in result.rows] == [(0.0, 0.0), None]
    assert 0 < result.trivial < 1


def test_the_probe_leaves_the_encoder_bit_identical():
    task = tiny_task()
    before = {k: v.clone() for k, v in task.state_dict().items()}
    probe_of(task)
    assert all(torch.equal(before[k], v) for k, v in task.state_dict().items())


def test_features_that_hold_the_label_score_one():
    from worldmodel.probes import fit_linear_probe, mean_average_precision

    y = torch.arange(4).repeat(20)
    x = torch.nn.functional.one_hot(y).float() + 0.01 * torch.randn(
        80, 4, generator=torch.Generator().manual_seed(0)
    )
    probe = fit_linear_probe(x, y, num_classes=4)
    assert mean_average_precision(probe.scores(x), y, classes=(1, 2, 3)) == pytest.approx(1.0)
