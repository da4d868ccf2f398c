"""PV-RCNN: names and sizes of OpenPCDet's, training, detection, and a scene learned by heart."""

import resource
from dataclasses import replace

import pytest
import torch

from lidar.datasets import KittiObject
from lidar.detection.batch import DetectionBatch, Detector, GroundTruth
from lidar.detection.benchmarks import LabelledKitti
from lidar.detection.checkpoints import export_detector, load_detector
from lidar.detection.labelled import LabelledFrames, collate
from lidar.detection.labels import ClassNames
from lidar.detection.models import KITTI_CLASSES, KITTI_GRID
from lidar.detection.pv_rcnn import PVRCNN, Proposals
from lidar.detection.pv_rcnn_models import SMALL_SECOND_STAGE, pv_rcnn_kitti, pv_rcnn_small
from lidar.detection.roi_sampling import RoIs, RoISampling
from lidar.strict_loading import CheckpointError
from tests.lidar.detection.overfitting import assert_finds_all, overfitted
from tests.lidar.detection.scenes import TINY_OPTIONS, labelled_batch, scene
from tests.lidar.openpcdet import BATCH_NORM, second_state
from tests.lidar.scenes import batch_of
from tests.worldmodel.conftest import two_processes
from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process

__all__ = ["two_processes"]
STAGE = replace(
    SMALL_SECOND_STAGE,
    keypoints=128,
    grid_size=3,
    roi_widths=(32, 32),
    sampling=RoISampling(count=32),
    training_proposals=Proposals(iou=0.8, before=300, after=64),
    test_proposals=Proposals(iou=0.7, before=200, after=30),
)


TINIER = replace(
    STAGE,
    keypoints=48,
    sampling=RoISampling(count=8),
    training_proposals=Proposals(iou=0.8, before=60, after=16),
)


def tiny(**options) -> PVRCNN:
    return pv_rcnn_small(**{**TINY_OPTIONS, "second_stage": STAGE, **options})


def with_objects(rois: RoIs, truth: GroundTruth) -> RoIs:
    """The RoIs and, a little off, the objects."""
    objects = [truth.of(sample) for sample in range(len(truth.labels))]
    counts = torch.tensor([len(boxes) for boxes, _ in objects])
    off = torch.tensor([0.05, -0.05, 0.02, 0.05, 0, 0, 0.03])
    sample = torch.cat([rois.sample, torch.repeat_interleave(counts)])
    order = sample.argsort(stable=True)
    return RoIs(
        boxes=torch.cat([rois.boxes, *(boxes[:, :7] + off for boxes, _ in objects)])[order],
        labels=torch.cat([rois.labels, *(labels for _, labels in objects)])[order],
        sample=sample[order],
    )


def second_stage_shapes() -> dict[str, tuple[int, ...]]:
    """State of the second stage on KITTI, layer by layer from the settings of OpenPCDet's pv_rcnn.yaml."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, norm: str, shape: tuple[int, ...]) -> None:
        shapes[f"{name}.weight"] = shape
        for entry in BATCH_NORM:
            shapes[f"{norm}.{entry}"] = () if entry == "num_batches_tracked" else (shape[0],)

    pooling = {f"pfe.SA_layers.{i}": (c, c) for i, c in enumerate((16, 32, 64, 64))}
    pooling |= {"pfe.SA_rawpoints": (1, 16), "roi_head.roi_grid_pool_layer": (128, 64)}
    for name, (channels, width) in pooling.items():
        for scale in range(2):
            layer(f"{name}.mlps.{scale}.0", f"{name}.mlps.{scale}.1", (width, 3 + channels, 1, 1))
            layer(f"{name}.mlps.{scale}.3", f"{name}.mlps.{scale}.4", (width, width, 1, 1))
    layer("pfe.vsa_point_feature_fusion.0", "pfe.vsa_point_feature_fusion.1", (128, 640))
    layer("point_head.cls_layers.0", "point_head.cls_layers.1", (256, 640))
    layer("point_head.cls_layers.3", "point_head.cls_layers.4", (256, 256))
    shapes |= {"point_head.cls_layers.6.weight": (1, 256), "point_head.cls_layers.6.bias": (1,)}
    for name, channels in (("shared_fc_layer", 27_648), ("cls_layers", 256), ("reg_layers", 256)):
        # Child 3 is the dropout.
        layer(f"roi_head.{name}.0", f"roi_head.{name}.1", (256, channels, 1))
        layer(f"roi_head.{name}.4", f"roi_head.{name}.5", (256, 256, 1))
    for name, out in (("cls_layers", 1), ("reg_layers", 7)):
        shapes |= {f"roi_head.{name}.7.weight": (out, 256, 1), f"roi_head.{name}.7.bias": (out,)}
    return shapes


def test_names_and_shapes_are_openpcdets():
    detector = pv_rcnn_kitti()
    found = {name: tuple(value.shape) for name, value in detector.state_dict().items()}
    first = {name: tuple(value.shape) for name, value in second_state().items()}
    del first["global_step"]
    assert found == {**first, **second_stage_shapes()}
    # OpenPCDet reports 367 tensors of its checkpoint, global_step among them.
    assert len(found) == 366
    assert sum(p.numel() for p in detector.parameters()) == 13_115_697
    assert detector.roi_head.reg_layers[-1].weight.std() < 0.0015


def test_a_checkpoint_is_loaded_whole_or_not_at_all(tmp_path):
    path, detector = tmp_path / "pv_rcnn.pth", tiny(seed=3)
    assert export_detector(detector, path) == len(detector.state_dict()) + 1
    other = tiny()
    report = load_detector(other, path)
    assert report.loaded == len(detector.state_dict())
    assert all(torch.equal(v, detector.state_dict()[k]) for k, v in other.state_dict().items())
    with pytest.raises(CheckpointError, match=r"roi_head\.shared_fc_layer\.0\.weight"):
        load_detector(tiny(second_stage=replace(STAGE, grid_size=2)), path)


def test_a_training_step_reaches_every_parameter_and_is_a_function_of_seeds_and_step():
    detector, batch = tiny(), labelled_batch(samples=2)
    assert isinstance(detector, Detector)
    loss = detector.training_step(batch, 3)
    names = [f"loss/{n}" for n in ("proposals", "keypoints", "roi_score", "roi_box", "roi_corner")]
    torch.testing.assert_close(loss.total.detach(), sum(loss.parts[name] for name in names))
    loss.total.backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert tiny().training_step(batch, 3).total == loss.total
    other = replace(batch, points=replace(batch.points, seeds=(5, 6)))
    for changed in (tiny().training_step(batch, 4), tiny().training_step(other, 3)):
        assert changed.parts["loss/proposals"] == loss.parts["loss/proposals"]
        assert changed.parts["loss/roi_score"] != loss.parts["loss/roi_score"]


def test_no_objects_and_no_points_are_fine():
    none = torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64)
    truth = GroundTruth.padded([none[0]] * 2, [none[1]] * 2)
    detector = tiny()
    loss = detector.training_step(
        DetectionBatch(points=batch_of([scene(), torch.zeros(0, 4)]), truth=truth), 0
    )
    loss.total.backward()
    assert loss.parts["loss/roi_box"] == loss.parts["loss/roi_corner"] == 0
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)
    nothing = DetectionBatch(
        points=batch_of([torch.zeros(0, 4)]), truth=GroundTruth.padded([none[0]], [none[1]])
    )
    assert tiny(synced=True).training_step(nothing, 0).total.isfinite()
    assert len(detector.detect(nothing)) == 1


def test_bfloat16_gives_nearly_the_same_losses():
    batch = labelled_batch()
    exact = tiny().training_step(batch, 0).parts
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = tiny().training_step(batch, 0)
    loss.total.backward()
    for name in ("loss/proposals", "loss/keypoints", "loss/roi_score"):
        torch.testing.assert_close(loss.parts[name], exact[name], rtol=0.05, atol=0.02)


def test_training_without_truth_is_refused():
    with pytest.raises(ValueError, match="needs ground truth"):
        tiny().training_step(replace(labelled_batch(), truth=None), 0)


def test_held_out_losses_leave_the_detector_as_it_was():
    detector, batch = tiny(), labelled_batch()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    monitors = detector.monitors([batch])
    assert monitors == detector.monitors([batch])
    assert monitors["loss/total"] > 0
    assert detector.training
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def test_proposals_are_the_best_of_the_first_stage():
    boxes = torch.tensor([[[0.0, 0, 0, 4, 2, 1, 0], [0.1, 0, 0, 4, 2, 1, 0], [9, 0, 0, 4, 2, 1, 0]]] * 2)
    logits = torch.tensor([[[0.0, 1], [2, 0], [0, 3]], [[9, 1], [2, 0], [0, 3]]], requires_grad=True)
    rois = Proposals(iou=0.8, before=3, after=9)(boxes, logits)
    assert rois.sample.tolist() == [0, 0, 1, 1]
    assert rois.boxes[:, 0].tolist() == pytest.approx([9, 0.1, 0, 9])
    assert rois.labels.tolist() == [1, 0, 0, 1]
    assert len(Proposals(iou=0.8, before=1, after=9)(boxes, logits)) == 2
    assert not rois.boxes.requires_grad


def _loss(parameters, batch):
    """Of a detector with these parameters; its draws are the samples' own."""
    detector = tiny(synced=True, second_stage=TINIER).double()
    for (name, _), value in zip([*detector.named_parameters()], parameters, strict=True):
        module, _, leaf = name.rpartition(".")
        owner = detector.get_submodule(module)
        delattr(owner, leaf)
        setattr(owner, leaf, value)
    # One parameter is asked for its type.
    detector.register_parameter("first", torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    return detector.training_step(batch, 5).total


def test_two_processes_equal_one(two_processes: TwoProcesses):
    joined = labelled_batch(samples=3)
    points = joined.points
    shares = []
    for samples in ([0], [1, 2]):
        clouds = [points.points[points.batch_index == s] for s in samples]
        truth = GroundTruth(boxes=joined.truth.boxes[samples], labels=joined.truth.labels[samples])
        shares.append(DetectionBatch(points=batch_of(clouds, samples), truth=truth))
    assert_equals_one_process(
        two_processes,
        _loss,
        parameters=[p.detach() for p in tiny(synced=True, second_stage=TINIER).double().parameters()],
        shares=shares,
        joined=joined,
        atol=1e-9,
    )


def test_overfits_a_scene():
    assert_finds_all(overfitted(tiny(), labelled_batch(), steps=60), labelled_batch())


@pytest.mark.slow
def test_a_full_size_step_on_real_frames(real_data):
    scans = KittiObject(root=real_data("kitti_object"), view="camera")
    frames = LabelledFrames(
        source=LabelledKitti(scans=scans),
        refs=[ref for ref in scans.frames if ref.frame_id in ("000008", "000010")],
        point_range=KITTI_GRID.point_range,
        classes=ClassNames(names=KITTI_CLASSES),
    )
    batch = collate([frames[0, 0], frames[1, 1]])
    # Proposals beside the objects, as a trained first stage makes: all losses take part.
    detector = pv_rcnn_kitti()
    made = detector.training_proposals
    detector.training_proposals = lambda boxes, logits: with_objects(made(boxes, logits), batch.truth)
    loss = detector.training_step(batch, 0)
    loss.total.backward()
    assert loss.parts["loss/roi_box"] > 0
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert len(detector.detect(batch)) == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 16 * 2**20  # KiB
