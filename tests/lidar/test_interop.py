"""Encoder weights to and from OpenPCDet and mmdetection3d: names, layouts, strictness, spconv as the reference."""

import copy
import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lidar.ad_l_jepa import Predictor
from lidar.batch import PointCloudBatch
from lidar.datasets import KittiObject, LidarFrames, collate
from lidar.encoder import SparseEncoder, voxel_backbone_8x
from lidar.grid import VoxelGrid
from lidar.interop import LoadReport, export_encoder, load_encoder
from lidar.sparse import spconv_backend
from lidar.voxels import voxelize
from tests.lidar.openpcdet import backbone_names, backbone_state, second_state, spconv_backbone
from worldmodel.nn.batch_norm import recalibrated
from worldmodel.training.checkpoints import CheckpointError

KITTI = VoxelGrid(point_range=(0, -40, -3, 70.4, 40, 1), voxel_size=(0.05, 0.05, 0.1))
CROP = VoxelGrid(point_range=(0, -3.2, -3, 6.4, 3.2, 1), voxel_size=(0.1, 0.1, 0.1))  # 64 x 64 x 40 voxels
SMALL = VoxelGrid(point_range=(0, -3.2, -3, 6.4, 3.2, 1), voxel_size=(0.2, 0.2, 0.2))


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def make_encoder(grid=CROP, *, seed=1, in_channels=4):
    """VoxelBackBone8x with random weights and random BatchNorm statistics, in eval mode."""
    torch.manual_seed(seed)
    encoder = voxel_backbone_8x(grid=grid, in_channels=in_channels, backend="torch")
    randomise_norms(encoder)
    return encoder.eval()


@torch.no_grad()
def randomise_norms(module):
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm1d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.1)
        norm.num_batches_tracked.fill_(11)


def scan(grid=CROP, *, points=6000, seed=3):
    """A floor and a wall, voxelised."""
    rng = np.random.default_rng(seed)
    low, high = np.array(grid.point_range[:3]), np.array(grid.point_range[3:])
    cloud = np.concatenate([rng.uniform(low, high, (points, 3)), rng.uniform(0, 1, (points, 1))], axis=1)
    cloud[: points // 2, 2] = low[2] + 1.3 + 0.05 * rng.normal(size=points // 2)
    cloud[points // 2 :, 0] = high[0] * 0.7 + 0.05 * rng.normal(size=points - points // 2)
    batch = PointCloudBatch(
        points=torch.from_numpy(cloud.astype(np.float32)),
        batch_index=torch.zeros(points, dtype=torch.int64),
        batch_size=1,
        frame_ids=("scan",),
        seeds=(0,),
    )
    return voxelize(batch, grid, max_points_per_voxel=None, max_voxels=None)


@torch.no_grad()
def features(encoder, voxels):
    return encoder.eval()(voxels)


# ---------------------------------------------------------------------------------------------------------- parity


def test_full_size_parity():
    encoder = voxel_backbone_8x(grid=KITTI)
    assert sum(p.numel() for p in encoder.parameters()) == 711_872
    assert len(encoder.state_dict()) == 72
    assert sum(p.numel() for p in Predictor(encoder.bev_channels).parameters()) == 1_771_776


def test_the_layer_tables_of_this_test_make_second():
    state = second_state()
    assert len(state) == 163
    learned = [t.numel() for name, t in state.items() if "running" not in name and t.is_floating_point()]
    assert sum(learned) == 5_325_576


# ---------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("layout", ["spconv2", "spconv1"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_export_is_openpcdet_by_name_and_shape(tmp_path, suffix, layout):
    path = tmp_path / f"new/encoder{suffix}"
    assert export_encoder(make_encoder(), path, layout=layout, metadata={"about": "x"}) == 72
    if suffix == ".pth":
        content = torch.load(path, weights_only=True)
        state = content["model_state"]
        assert content["metadata"] == {"framework": "openpcdet", "layout": layout, "about": "x"}
    else:
        state = load_file(path)
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        assert header["__metadata__"] == {
            "format": "pt", "framework": "openpcdet", "layout": layout, "about": "x",
        }  # fmt: skip
    expected = backbone_state(layout=layout)
    assert sorted(state) == sorted(backbone_names())
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in expected.items()}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("options", [
    {}, {"layout": "spconv1"}, {"prefix": ""}, {"framework": "mmdet3d"},
    {"framework": "mmdet3d", "prefix": "pts_middle_encoder.", "layout": "spconv2"},
], ids=str)  # fmt: skip
def test_features_survive_the_round_trip_bit_for_bit(tmp_path, suffix, options):
    path, voxels = tmp_path / f"encoder{suffix}", scan()
    encoder, other = make_encoder(seed=1), make_encoder(seed=2)
    export_encoder(encoder, path, **options)
    before = features(encoder, voxels)
    assert not torch.equal(before, features(other, voxels))
    report = load_encoder(other, path)
    assert torch.equal(before, features(other, voxels))
    assert all(torch.equal(v, other.state_dict()[n]) for n, v in encoder.state_dict().items())
    assert (report.loaded, report.total, dict(report.ignored)) == (72, 72, {})
    mmdet3d = options.get("framework") == "mmdet3d"
    assert report.layout == options.get("layout", "spconv1" if mmdet3d else "spconv2")
    assert report.prefix == options.get("prefix", "middle_encoder." if mmdet3d else "backbone_3d.")


def test_mmdetection3d_names(tmp_path):
    """SparseEncoder of mmdetection3d: stages are encoder_layers.encoder_layerN, weights in the layout of spconv 1."""
    export_encoder(make_encoder(), tmp_path / "encoder.pth", framework="mmdet3d")
    state = torch.load(tmp_path / "encoder.pth", weights_only=True)["state_dict"]
    expected = set()
    for name in backbone_names("middle_encoder."):
        for stage in "1234":
            name = name.replace(f".conv{stage}.", f".encoder_layers.encoder_layer{stage}.")
        expected.add(name)
    assert set(state) == expected
    assert "middle_encoder.encoder_layers.encoder_layer2.0.0.weight" in expected
    assert state["middle_encoder.conv_out.0.weight"].shape == (3, 1, 1, 64, 128)


def test_small_encoder_round_trip(tmp_path):
    torch.manual_seed(5)
    first, second = (
        SparseEncoder(in_channels=4, grid=SMALL, widths=(8, 16, 32, 32), backend="torch") for _ in range(2)
    )
    export_encoder(first, tmp_path / "small.safetensors")
    assert load_encoder(second, tmp_path / "small.safetensors").summary() == "loaded 54 of 54 encoder tensors"
    voxels = scan(SMALL)
    assert torch.equal(features(first, voxels), features(second, voxels))


@pytest.mark.parametrize(("options", "message"), [
    ({"layout": "spconv3"}, "layout is one of spconv2, spconv1"),
    ({"framework": "open3d"}, "framework is one of openpcdet, mmdet3d"),
])  # fmt: skip
def test_export_refuses_unknown_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_encoder(make_encoder(), tmp_path / "encoder.pth", **options)


def test_export_refuses_an_unknown_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"\.safetensors or \.pth, got 'encoder\.onnx'"):
        export_encoder(make_encoder(), tmp_path / "encoder.onnx")


def test_export_refuses_a_broken_encoder(tmp_path):
    encoder = make_encoder()
    encoder.conv_out[1].running_var[3] = float("nan")
    with pytest.raises(
        CheckpointError, match=r"NaN or inf in 1 tensors: backbone_3d\.conv_out\.1\.running_var"
    ):
        export_encoder(encoder, tmp_path / "encoder.pth")
    assert not any(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("layout", ["spconv2", "spconv1"])
def test_second_checkpoint_of_openpcdet(tmp_path, layout):
    state = second_state(layout=layout)
    torch.save(
        {"epoch": 80, "it": 1, "model_state": state, "optimizer_state": {"lr": [0.1]}}, tmp_path / "s.pth"
    )
    encoder = make_encoder()
    report = load_encoder(encoder, tmp_path / "s.pth")
    converted = ", converted from the spconv 1 layout" if layout == "spconv1" else ""
    assert report.summary() == (
        f"loaded 72 of 72 encoder tensors{converted}; "
        f"ignored 91 others (backbone_2d 84, dense_head 6, global_step 1)"
    )
    assert report.ignored["global_step"] == ("global_step",)
    assert (report.layout, report.prefix) == (layout, "backbone_3d.")
    for name, value in encoder.state_dict().items():
        stored = state[f"backbone_3d.{name}"]
        # Entry by entry, not by permute: weight[c_out, z, y, x, c_in].
        if value.ndim == 5 and layout == "spconv1":
            assert value[1, 2, 0, 0, 3] == stored[2, 0, 0, 3, 1]
            assert torch.equal(value, torch.einsum("zyxio->ozyxi", stored))
        else:
            assert torch.equal(value, stored)


def test_checkpoint_of_the_adljepa_release(tmp_path):
    """Online and target encoder, predictor and tokens side by side; only the online encoder is taken."""
    online = backbone_state(prefix="backbone_3d.encoder.")
    state = {
        **backbone_state(prefix="backbone_3d.target_encoder."),
        **online,
        "global_step": torch.zeros(1),
        "backbone_3d.mask_token": torch.zeros(1, 256, 1, 1),
        "backbone_3d.empty_token": torch.zeros(1, 256, 1, 1),
        "backbone_3d.predictor.0.weight": torch.zeros(256, 256, 3, 3),
    }
    torch.save({"model_state": state}, tmp_path / "release.pth")
    encoder = make_encoder()
    report = load_encoder(encoder, tmp_path / "release.pth")
    assert report.prefix == "backbone_3d.encoder."
    assert {group: len(names) for group, names in report.ignored.items()} == {
        "backbone_3d.target_encoder": 72, "global_step": 1, "backbone_3d.mask_token": 1,
        "backbone_3d.empty_token": 1, "backbone_3d.predictor": 1,
    }  # fmt: skip
    assert all(torch.equal(v, online[f"backbone_3d.encoder.{n}"]) for n, v in encoder.state_dict().items())
    load_encoder(encoder, tmp_path / "release.pth", prefix="backbone_3d.target_encoder.")
    assert all(
        torch.equal(v, state[f"backbone_3d.target_encoder.{n}"]) for n, v in encoder.state_dict().items()
    )


def test_half_precision_is_converted(tmp_path):
    state = {n: t.half() if t.is_floating_point() else t for n, t in backbone_state().items()}
    save_file(state, tmp_path / "half.safetensors")
    encoder = make_encoder()
    load_encoder(encoder, tmp_path / "half.safetensors")
    assert encoder.conv_input[0].weight.dtype == torch.float32
    assert torch.equal(encoder.conv_input[0].weight, state["backbone_3d.conv_input.0.weight"].float())


def unchanged_after(encoder, path, message, **options):
    before = copy.deepcopy(encoder.state_dict())
    with pytest.raises(CheckpointError, match=message) as caught:
        load_encoder(encoder, path, **options)
    assert all(torch.equal(v, encoder.state_dict()[n]) for n, v in before.items())
    return str(caught.value)


@pytest.mark.parametrize("layout", ["spconv2", "spconv1"])
def test_five_channels_into_four(tmp_path, layout):
    save_file(backbone_state(in_channels=5, layout=layout), tmp_path / "waymo.safetensors")
    text = unchanged_after(make_encoder(), tmp_path / "waymo.safetensors", "does not fit the encoder")
    assert "conv_input.0.weight is (16, 3, 3, 3, 5), the encoder has (16, 3, 3, 3, 4)" in text
    assert "reads 5 features per point" in text
    assert "in_channels=5" in text
    assert text.count("\n") == 2
    load_encoder(make_encoder(in_channels=5), tmp_path / "waymo.safetensors")


def test_every_difference_is_named(tmp_path):
    state = backbone_state()
    del state["backbone_3d.conv_input.0.weight"], state["backbone_3d.conv3.1.1.running_var"]
    state["backbone_3d.conv5.0.0.weight"] = torch.zeros(64, 3, 3, 3, 64)
    state["backbone_3d.conv_out.0.weight"] = torch.zeros(256, 3, 1, 1, 64)
    save_file(state, tmp_path / "bad.safetensors")
    text = unchanged_after(make_encoder(), tmp_path / "bad.safetensors", "nothing was loaded")
    assert text.splitlines()[1:] == [
        "  missing conv_input.0.weight",
        "  missing conv3.1.1.running_var",
        "  unexpected conv5.0.0.weight",
        "  conv_out.0.weight is (256, 3, 1, 1, 64), the encoder has (128, 3, 1, 1, 64)",
    ]


def test_residual_backbone_is_refused(tmp_path):
    """VoxelResBackBone8x shares some names; a load must not take those and leave the rest random."""
    state = {n: t for n, t in backbone_state().items() if ".conv1." not in n}
    state["backbone_3d.conv1.0.conv1.weight"] = torch.zeros(16, 3, 3, 3, 16)
    save_file(state, tmp_path / "res.safetensors")
    text = unchanged_after(make_encoder(), tmp_path / "res.safetensors", "missing conv1.0.0.weight")
    assert "unexpected conv1.0.conv1.weight" in text


def test_nan_is_refused(tmp_path):
    state = backbone_state()
    state["backbone_3d.conv1.0.1.bias"][0] = float("inf")
    save_file(state, tmp_path / "nan.safetensors")
    unchanged_after(
        make_encoder(), tmp_path / "nan.safetensors", r"NaN or inf in 1 tensors: conv1\.0\.1\.bias"
    )


def test_file_without_an_encoder(tmp_path):
    state = {n: t for n, t in second_state().items() if not n.startswith("backbone_3d.")}
    torch.save({"model_state": state}, tmp_path / "head.pth")
    unchanged_after(
        make_encoder(),
        tmp_path / "head.pth",
        r"no tensor of this encoder such as backbone_3d\.conv_input\.0\.weight; it holds backbone_2d 84, dense_head 6",
    )


def test_wrong_prefix(tmp_path):
    save_file(backbone_state(), tmp_path / "encoder.safetensors")
    unchanged_after(
        make_encoder(), tmp_path / "encoder.safetensors", "no tensor of this encoder such as vfe.conv_input",
        prefix="vfe.",
    )  # fmt: skip


def test_an_ema_target_is_not_taken_unasked(tmp_path):
    save_file(backbone_state(prefix="model.target.encoder."), tmp_path / "target.safetensors")
    unchanged_after(make_encoder(), tmp_path / "target.safetensors", "an EMA target is taken only so")
    load_encoder(make_encoder(), tmp_path / "target.safetensors", prefix="model.target.encoder.")


def test_two_encoders_need_a_prefix(tmp_path):
    save_file({**backbone_state(prefix="a."), **backbone_state(prefix="b.")}, tmp_path / "two.safetensors")
    unchanged_after(make_encoder(), tmp_path / "two.safetensors", r"several encoders \('a\.', 'b\.'\)")
    assert load_encoder(make_encoder(), tmp_path / "two.safetensors", prefix="b.").prefix == "b."


class _Run:
    """A pickled object whose reading would have run code; at module level so that it can be pickled."""

    def __reduce__(self):
        return (print, ("code from the file ran",))


def test_code_in_a_checkpoint_is_never_run(tmp_path, capsys):
    torch.save({"model_state": backbone_state(), "optimizer": _Run()}, tmp_path / "evil.pth")
    unchanged_after(make_encoder(), tmp_path / "evil.pth", "would run code from the file.*strip it once")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0.0, 0.6])
def test_truncated_file(tmp_path, suffix, keep):
    path = tmp_path / f"encoder{suffix}"
    export_encoder(make_encoder(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    unchanged_after(make_encoder(), path, "damaged or not a checkpoint")


def test_other_files(tmp_path):
    (tmp_path / "text.pth").write_text("hello world")
    unchanged_after(make_encoder(), tmp_path / "text.pth", "damaged or not a checkpoint")
    torch.save([1, 2], tmp_path / "list.pth")
    unchanged_after(make_encoder(), tmp_path / "list.pth", "holds no tensors by name")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_encoder(make_encoder(), tmp_path / "absent.pth")


def test_report_without_ignored_tensors(tmp_path):
    report = LoadReport(path=tmp_path, prefix="", layout="spconv2", loaded=72, total=72, ignored={})
    assert report.summary() == "loaded 72 of 72 encoder tensors"


# --------------------------------------------------------------------------------- BatchNorm, spconv as the reference


def test_recalibration_changes_running_statistics_only(tmp_path):
    encoder = make_encoder()
    before = copy.deepcopy(encoder.state_dict())
    frozen = recalibrated(encoder, [scan(seed=8), scan(seed=9)], lambda module, voxels: module(voxels))
    export_encoder(encoder, tmp_path / "plain.safetensors")
    export_encoder(frozen, tmp_path / "recalibrated.safetensors")
    plain, new = load_file(tmp_path / "plain.safetensors"), load_file(tmp_path / "recalibrated.safetensors")
    changed = {name for name in plain if not torch.equal(plain[name], new[name])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {n for n in backbone_names() if n.endswith(statistics)}
    assert all(torch.equal(v, encoder.state_dict()[n]) for n, v in before.items())

    assert int(new["backbone_3d.conv_input.1.num_batches_tracked"]) == 2


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(not spconv_backend.available(), reason="spconv is not installed")
@torch.no_grad()
def test_spconv_itself_loads_the_export_and_agrees(tmp_path, one_thread):
    """The file in an independent model of spconv's modules, strict: same names, same features, same BEV channels."""
    encoder, voxels = make_encoder(), scan()
    export_encoder(encoder, tmp_path / "encoder.pth")
    state = torch.load(tmp_path / "encoder.pth", weights_only=True)["model_state"]
    model, run = spconv_backbone(CROP.sparse_shape)
    model.load_state_dict({n.removeprefix("backbone_3d."): t for n, t in state.items()}, strict=True)
    theirs, ours = run_eval(model, run, voxels), features(encoder, voxels)
    assert theirs.shape == ours.shape == (1, 256, 8, 8)
    assert ours.abs().max() > 0.1
    assert (theirs - ours).abs().max() <= 1e-4 * float(ours.abs().max())
    # And back: a state dict that spconv wrote.
    randomise_norms(model)
    torch.save(
        {"model_state": {f"backbone_3d.{n}": t for n, t in model.state_dict().items()}},
        tmp_path / "theirs.pth",
    )
    load_encoder(encoder, tmp_path / "theirs.pth")
    theirs = run_eval(model, run, voxels)
    assert (theirs - features(encoder, voxels)).abs().max() <= 1e-4 * float(theirs.abs().max())


def run_eval(model, run, voxels):
    model.eval()
    return run(voxels)


@pytest.mark.skipif(not spconv_backend.available(), reason="spconv is not installed")
@torch.no_grad()
def test_real_scan_at_full_size(real_data, tmp_path, one_thread):
    """A whole KITTI scan on the whole grid: equal after reading back, and equal to spconv."""
    source = KittiObject(root=real_data("kitti_object"))
    frames = LidarFrames(source=source, refs=source.frames[:1], point_range=KITTI.point_range)
    voxels = voxelize(collate([frames[(0, 0)]]), KITTI, max_points_per_voxel=5, max_voxels=None)
    encoder, other = make_encoder(KITTI, seed=1), make_encoder(KITTI, seed=2)
    before = features(encoder, voxels)
    assert before.shape == (1, 256, 200, 176)
    export_encoder(encoder, tmp_path / "encoder.pth")
    load_encoder(other, tmp_path / "encoder.pth")
    assert torch.equal(features(other, voxels), before)
    model, run = spconv_backbone(KITTI.sparse_shape)
    state = torch.load(tmp_path / "encoder.pth", weights_only=True)["model_state"]
    model.load_state_dict({n.removeprefix("backbone_3d."): t for n, t in state.items()}, strict=True)
    assert (run_eval(model, run, voxels) - before).abs().max() <= 1e-4 * float(before.abs().max())
