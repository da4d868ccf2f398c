"""Whole detectors and pretrained encoders from files: all tensors or none, and every reason named."""

import copy
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from lidar.detection.checkpoints import export_detector, load_detector, load_pretrained_encoder
from lidar.detection.models import center_point_small, second_kitti, second_small
from tests.lidar.detection.scenes import TINY_OPTIONS, labelled_batch
from tests.lidar.openpcdet import backbone_state, second_state
from tests.lidar.scenes import tiny_task
from worldmodel.training.checkpoints import CheckpointError

residual_small = partial(center_point_small, residual=True)


def randomised(detector, seed):
    """Other weights and BatchNorm statistics."""
    generator = torch.Generator().manual_seed(seed)
    for value in detector.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    return detector


def same_state(a, b):
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("layout", ["spconv2", "spconv1"])
def test_second_checkpoint_of_openpcdet(tmp_path, layout):
    state = randomised_state(second_state(layout=layout))
    torch.save({"epoch": 80, "it": 1, "model_state": state}, tmp_path / "second.pth")
    detector = second_kitti()
    report = load_detector(detector, tmp_path / "second.pth")
    assert (report.loaded, report.total, report.layout) == (162, 162, layout)
    converted = ", converted from the spconv 1 layout" if layout == "spconv1" else ""
    assert report.summary() == (
        f"loaded 162 of 162 detector tensors{converted}; ignored 1 others (global_step 1)"
    )
    for name, value in detector.state_dict().items():
        stored = state[name]
        if value.ndim == 5 and layout == "spconv1":
            stored = torch.einsum("zyxio->ozyxi", stored)
        assert torch.equal(value, stored), name


def randomised_state(state):
    return {n: torch.rand_like(t) if t.is_floating_point() else t for n, t in state.items()}


@pytest.mark.parametrize("layout", ["spconv2", "spconv1"])
@pytest.mark.parametrize("build", [second_small, center_point_small, residual_small])
def test_export_and_back(tmp_path, build, layout):
    first, second = randomised(build(), 0), build(seed=1)
    assert (
        export_detector(first, tmp_path / "new/d.pth", step=7, layout=layout) == len(first.state_dict()) + 1
    )
    stored = torch.load(tmp_path / "new/d.pth", weights_only=True)
    assert stored["model_state"]["global_step"].tolist() == [7]
    assert load_detector(second, tmp_path / "new/d.pth").layout == layout
    assert same_state(first, second)


def test_a_checkpoint_of_our_own_runs(tmp_path):
    first, second = randomised(second_small(), 0), second_small(seed=1)
    save_file(first.state_dict(), tmp_path / "model.safetensors")
    assert (
        load_detector(second, tmp_path / "model.safetensors").summary()
        == "loaded 108 of 108 detector tensors"
    )
    assert same_state(first, second)


def unchanged_after(load, detector, path):
    before = copy.deepcopy(detector)
    with pytest.raises(CheckpointError) as caught:
        load(detector, path)
    assert same_state(before, detector)
    return str(caught.value)


def test_every_difference_is_named(tmp_path):
    state = second_small().state_dict()
    del state["dense_head.conv_box.bias"]
    state["backbone_2d.blocks.0.1.weight"] = torch.zeros(32, 65, 3, 3)
    state["roi_head.fc.weight"] = torch.zeros(3)
    save_file(state, tmp_path / "bad.safetensors")
    text = unchanged_after(load_detector, second_small(seed=1), tmp_path / "bad.safetensors")
    assert text.splitlines() == [
        f"{tmp_path / 'bad.safetensors'} does not fit the detector, nothing was loaded:",
        "  missing dense_head.conv_box.bias",
        "  unexpected roi_head.fc.weight",
        "  backbone_2d.blocks.0.1.weight is (32, 65, 3, 3), the detector has (32, 64, 3, 3)",
    ]


def test_other_features_per_point_are_named(tmp_path):
    save_file(second_small(in_channels=5).state_dict(), tmp_path / "five.safetensors")
    text = unchanged_after(load_detector, second_small(), tmp_path / "five.safetensors")
    assert "reads 5 features per point" in text
    assert "in_channels=5" in text


def test_an_encoder_alone_is_no_detector(tmp_path):
    save_file(backbone_state(), tmp_path / "encoder.safetensors")
    text = unchanged_after(load_detector, second_kitti(), tmp_path / "encoder.safetensors")
    assert text.count("missing") == 90


def test_nan_is_refused(tmp_path):
    state = second_small().state_dict()
    state["dense_head.conv_cls.bias"][1] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    text = unchanged_after(load_detector, second_small(seed=1), tmp_path / "nan.safetensors")
    assert "NaN or inf in 1 tensors: dense_head.conv_cls.bias" in text
    broken = randomised(second_small(), 0)
    broken.dense_head.conv_cls.bias.data[0] = float("inf")
    with pytest.raises(CheckpointError, match=r"the detector holds NaN or inf.*dense_head\.conv_cls\.bias"):
        export_detector(broken, tmp_path / "d.pth")
    with pytest.raises(ValueError, match=r"OpenPCDet reads \.pth files, got 'd\.onnx'"):
        export_detector(second_small(), tmp_path / "d.onnx")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_detector(second_small(), tmp_path / "absent.pth")


@pytest.mark.parametrize("build", [second_small, center_point_small])
def test_the_encoder_of_our_pretraining(tmp_path, build):
    task, detector = tiny_task(seed=3), build(**TINY_OPTIONS)
    save_file(
        {name: value.clone() for name, value in task.state_dict().items()}, tmp_path / "model.safetensors"
    )
    heads = copy.deepcopy(detector.dense_head)
    report = load_pretrained_encoder(detector, tmp_path / "model.safetensors")
    assert report.prefix == "model.encoder."
    assert report.loaded == len(detector.backbone_3d.state_dict()) == 54
    assert same_state(heads, detector.dense_head)
    with torch.no_grad():
        voxels = detector.eval().voxels(labelled_batch().points)
        assert torch.equal(detector.backbone_3d(voxels), task.eval().model.encoder(voxels))


def test_the_encoder_of_another_size_is_refused(tmp_path):
    save_file(backbone_state(), tmp_path / "full.safetensors")
    text = unchanged_after(load_pretrained_encoder, second_small(), tmp_path / "full.safetensors")
    assert "conv_out.0.weight is (128, 3, 1, 1, 64), the encoder has (32, 3, 1, 1, 32)" in text
    load_pretrained_encoder(second_kitti(), tmp_path / "full.safetensors")


def test_a_residual_encoder_is_exchanged_with_its_like_only(tmp_path):
    export_detector(randomised(residual_small(), 0), tmp_path / "center.pth")
    report = load_pretrained_encoder(residual_small(seed=1), tmp_path / "center.pth")
    assert report.loaded == len(residual_small().backbone_3d.state_dict())
    text = unchanged_after(load_pretrained_encoder, second_small(), tmp_path / "center.pth")
    assert "unexpected conv1.0.conv1.weight" in text
