"""scripts/export_encoder.py on a run of two steps."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lidar.encoder import small_encoder
from lidar.grid import VoxelGrid
from lidar.interop import load_encoder
from lidar.sparse import Sites, SparseTensor
from tests.scripts.conftest import write_clouds

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture
def export(script):
    """Runs the command with arguments."""
    module = script("export_encoder")
    return lambda *arguments: module.main([str(a) for a in arguments])


@pytest.fixture
def editable(tiny_run, tmp_path):
    """A copy of the tiny run that a test may break."""
    return shutil.copytree(tiny_run, tmp_path / "copy")


def trained(run, branch="model.encoder.", step=2):
    """Encoder tensors of a checkpoint under OpenPCDet's names."""
    tensors = load_file(run / f"checkpoints/step_{step:08d}/model.safetensors")
    return {f"backbone_3d.{n.removeprefix(branch)}": t for n, t in tensors.items() if n.startswith(branch)}


def beside(out):
    return out.with_name(f"{out.name}.json")


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_exports_the_context_encoder_of_the_last_step(tiny_run, tmp_path, export, capsys):
    out = tmp_path / "out/encoder.safetensors"
    export(tiny_run, out)
    assert_same(load_file(out), trained(tiny_run))
    text = capsys.readouterr().out
    assert "step_00000002: loaded 54 of 54 encoder tensors; ignored" in text
    assert "features equal bit for bit" in text
    assert "not those of VoxelBackBone8x" in text
    assert "not at its end" not in text

    about = json.loads(beside(out).read_text())
    assert (about["step"], about["max_steps"], about["branch"]) == (2, 2, "context")
    assert (about["tensors"], about["parameters"], about["stride"]) == (54, 92_448, 4)
    assert about["encoder"]["voxel_size"] == [0.2, 0.2, 0.2]
    assert about["encoder"]["in_channels"] == 4
    assert about["sparse_shape_zyx"] == [21, 128, 128]
    assert about["bev"] == {"channels": 64, "shape_yx": [32, 32]}
    assert about["batch_norm_recalibrated_on"] == 0
    assert about["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert {"command", "commit", "date", "torch"} <= about["provenance"].keys()

    grid = VoxelGrid(point_range=about["encoder"]["point_range"], voxel_size=about["encoder"]["voxel_size"])
    assert load_encoder(small_encoder(grid=grid), out).loaded == 54


def test_an_earlier_checkpoint_and_the_target(tiny_run, tmp_path, export, capsys):
    export(tiny_run / "checkpoints/step_00000001", tmp_path / "one.safetensors")
    assert "step 1 of 2, the run is not at its end" in capsys.readouterr().out
    assert_same(load_file(tmp_path / "one.safetensors"), trained(tiny_run, step=1))
    export(tiny_run, tmp_path / "target.safetensors", "--target")
    assert_same(load_file(tmp_path / "target.safetensors"), trained(tiny_run, "model.target.encoder."))
    assert json.loads(beside(tmp_path / "target.safetensors").read_text())["branch"] == "target"


def test_frameworks_and_layouts(tiny_run, tmp_path, export):
    expected = trained(tiny_run)
    export(tiny_run, tmp_path / "one.pth", "--layout", "spconv1")
    state = torch.load(tmp_path / "one.pth", weights_only=True)["model_state"]
    assert state.keys() == expected.keys()
    assert state["backbone_3d.conv2.0.0.weight"].shape == (3, 3, 3, 8, 16)
    export(tiny_run, tmp_path / "two.pth", "--framework", "mmdet3d", "--prefix", "pts_middle_encoder.")
    state = torch.load(tmp_path / "two.pth", weights_only=True)["state_dict"]
    assert len(state) == 54
    assert "pts_middle_encoder.encoder_layers.encoder_layer3.2.1.bias" in state


def test_recalibration_on_the_runs_own_data(tiny_run, tmp_path, script, export):
    """Only running statistics move; the first layer's are those of its convolution on the whole clouds."""
    out = tmp_path / "encoder.safetensors"
    export(tiny_run, out, "--recalibrate", "--frames", "3")
    before, after = trained(tiny_run), load_file(out)
    assert {n for n in before if not torch.equal(before[n], after[n])} == {
        n for n in before if n.endswith(STATISTICS)
    }
    assert json.loads(beside(out).read_text())["batch_norm_recalibrated_on"] == 3
    module = script("export_encoder")
    settings = module.run_settings(module.RunFolder(tiny_run))
    config = module.encoder_config(settings)
    encoder = config.encoder(synced=False)
    load_encoder(encoder, out)
    (cloud,) = module.full_clouds(settings, "", frames=3, config=config)
    sites = Sites.from_coordinates(cloud.coordinates, shape=encoder.input_shape, batch_size=3)
    with torch.no_grad():
        rows = encoder.conv_input[0](SparseTensor(features=cloud.features, sites=sites, tables={})).features
    assert torch.allclose(after["backbone_3d.conv_input.1.running_mean"], rows.mean(0), atol=1e-5)
    assert torch.allclose(after["backbone_3d.conv_input.1.running_var"], rows.var(0), rtol=1e-4)

    again = tmp_path / "again.safetensors"
    export(tiny_run, again, "--recalibrate", tiny_run, "--frames", "3")
    assert_same(load_file(again), after)
    # More frames than there are: all of them.
    export(tiny_run, again, "--recalibrate")
    assert json.loads(beside(again).read_text())["batch_norm_recalibrated_on"] == 4


def test_recalibration_on_another_folder(tiny_run, tmp_path, export):
    clouds = write_clouds(tmp_path / "elsewhere", frames=4, points=900)
    export(tiny_run, tmp_path / "own.safetensors", "--recalibrate", "--frames", "2")
    export(tiny_run, tmp_path / "other.safetensors", "--recalibrate", clouds, "--frames", "2")
    name = "backbone_3d.conv_input.1.running_mean"
    own, other = load_file(tmp_path / "own.safetensors"), load_file(tmp_path / "other.safetensors")
    assert not torch.equal(own[name], other[name])


def test_frames_are_spread_over_the_run(tiny_run, script):
    module = script("export_encoder")
    settings = module.run_settings(module.RunFolder(tiny_run))
    config = module.encoder_config(settings)
    settings["model"]["max_voxels"] = 10
    clouds = module.full_clouds(settings, "", frames=2, config=module.encoder_config(settings))
    assert [c.batch_size for c in clouds] == [2]
    # Whole clouds: the cap of training is lifted.
    everything = module.full_clouds(settings, "", frames=4, config=config)[0]
    sample = everything.coordinates[:, 0]
    expected = torch.cat([everything.features[sample == 0], everything.features[sample == 2]])
    assert torch.equal(clouds[0].features, expected)


def fails(capsys, *, export, arguments, message):
    with pytest.raises(SystemExit) as stop:
        export(*arguments)
    text = f"{stop.value.code} {capsys.readouterr().err}"
    assert message in text
    assert stop.value.code != 0


@pytest.mark.parametrize(("arguments", "message"), [
    (("RUN", "OUT.onnx"), "OUT must end in .safetensors or .pth"),
    (("RUN", "OUT.pth", "--frames", "0"), "--frames must be 1 or more"),
    (("RUN", "OUT.pth", "--layout", "spconv3"), "invalid choice"),
    (("RUN",), "required: OUT"),
    (("ABSENT", "OUT.pth"), "holds no checkpoint: name a run folder"),
    (("RUN", "OUT.pth", "--recalibrate", "ABSENT"), "ABSENT"),
], ids=str)  # fmt: skip
def test_wrong_arguments(tiny_run, tmp_path, export, capsys, arguments, message):
    names = {"RUN": tiny_run, "ABSENT": tmp_path / "ABSENT"}
    replaced = [names.get(a, tmp_path / a if a.startswith("OUT") else a) for a in arguments]
    fails(capsys, export=export, arguments=replaced, message=message)
    assert not any(tmp_path.iterdir())


def test_help_names_every_option(export, capsys):
    with pytest.raises(SystemExit) as stop:
        export("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{o}" in text for o in ("recalibrate", "frames", "framework", "prefix", "layout", "target"))


def test_run_without_config(editable, tmp_path, export, capsys):
    (editable / "config.json").unlink()
    fails(
        capsys,
        export=export,
        arguments=(editable, tmp_path / "o.pth"),
        message="it is not the folder of a run",
    )


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"widths": [8]}}', "[]"])
def test_config_of_something_else(editable, tmp_path, export, capsys, content):
    (editable / "config.json").write_text(content)
    fails(
        capsys,
        export=export,
        arguments=(editable, tmp_path / "o.pth"),
        message="does not describe a pretraining run",
    )


def test_config_of_another_encoder(editable, tmp_path, export, capsys):
    config = json.loads((editable / "config.json").read_text())
    config["model"]["widths"] = [8, 16, 32, 64]
    (editable / "config.json").write_text(json.dumps(config))
    fails(
        capsys, export=export, arguments=(editable, tmp_path / "o.pth"),
        message="conv_out.0.weight is (32, 3, 1, 1, 32), the encoder has (64, 3, 1, 1, 32)",
    )  # fmt: skip


def test_damaged_checkpoint(editable, tmp_path, export, capsys):
    file = editable / "checkpoints/step_00000002/model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    fails(capsys, export=export, arguments=(editable, tmp_path / "o.pth"), message="cannot be read")


def test_simulated_run_takes_no_folder(editable, tmp_path, export, capsys):
    config = json.loads((editable / "config.json").read_text())
    config["data"]["name"] = "simulated"
    (editable / "config.json").write_text(json.dumps(config))
    arguments = (editable, tmp_path / "o.pth", "--recalibrate", tmp_path)
    fails(capsys, export=export, arguments=arguments, message="the run learnt from simulated frames")


def test_run_without_an_ema_target(editable, tmp_path, export, capsys):
    """As SIGReg leaves it."""
    file = editable / "checkpoints/step_00000002/model.safetensors"
    tensors = load_file(file)
    save_file({n: t for n, t in tensors.items() if not n.startswith("model.target.")}, file)
    fails(
        capsys, export=export, arguments=(editable, tmp_path / "o.pth", "--target"), message="no EMA target"
    )
    export(editable, tmp_path / "o.pth")
    assert beside(tmp_path / "o.pth").is_file()


def test_a_difference_after_reading_back_is_fatal(tiny_run, tmp_path, script, monkeypatch):
    module = script("export_encoder")
    real = module.export_encoder

    def damaged(encoder, path, **options):
        with torch.no_grad():
            count = real(encoder, path, **options)
            encoder.conv_out[0].weight.mul_(2)
        return count

    monkeypatch.setattr(module, "export_encoder", damaged)
    with pytest.raises(RuntimeError, match="other features than the one that was exported"):
        module.main([str(tiny_run), str(tmp_path / "o.pth")])
