"""The commands that train and roll out imitation policies, on a toy: a run of seconds, its resume, its evaluation."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

pytest.importorskip("pyarrow")

from envs.demonstrations import MissingColumn
from envs.lerobot import Feature, LeRobotWriter
from envs.manipulation.recording import RecordingSettings, record
from envs.manipulation.registry import EnvOptions
from envs.manipulation.rollout import RolloutSettings
from policies.imitation.batches import PolicyObservation
from policies.imitation.export import load_exported
from tests.envs.manipulation import toy
from tests.scripts.conftest import ROOT
from worldmodel.seq_jepa import SeqJEPA
from worldmodel.training.checkpoints import CheckpointError
from worldmodel.training.run_folder import RunFolderError

Script = Callable[[str], ModuleType]
TINY = [
    "demonstrations.heldout_per_task=2", "size.dim=16", "size.heads=2", "size.hidden=32", "size.predictor_dim=8",
    "size.predictor_hidden=16", "size.vision_width=8", "chunk=4", "trainer.max_steps=4", "trainer.batch_size=8",
    "trainer.heldout_stretches=16", "trainer.eval_every=2", "trainer.checkpoint_every=2", "trainer.device=cpu",
    "trainer.progress=false",
]  # fmt: skip


def composed(name: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose(name, overrides=list(overrides))
    made = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(made, dict)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six demonstrations of the toy with pictures."""
    assert toy.SUITES
    root = tmp_path_factory.mktemp("toy") / "set"
    rollout = RolloutSettings(options=EnvOptions(image_size=16, max_steps=11), image=True)
    settings = RecordingSettings(rollout=rollout)
    record(root, names=["toy/reach", "toy/reach-too"], episodes=6, settings=settings)
    return root


def settings(data: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    return composed("train_policy", *TINY, f"demonstrations.root={data}", f"run.dir={folder}", *overrides)


@pytest.mark.parametrize(
    "options",
    [
        ["policy=act_jepa"],
        ["policy=raw_state", "observe.image=true", "demonstrations.action_free=1"],
        ["policy=flow", "observe.environment=false"],
        ["policy=autoregressive", "observe.image=true"],
    ],
)
def test_train_stop_resume_and_load(options: list[str], data: Path, tmp_path: Path, script: Script) -> None:
    train, imitation = script("train_policy"), script("imitation")
    assert train.run(settings(data, tmp_path / "whole", *options)) == 0
    assert train.run(settings(data, tmp_path / "parts", *options, "trainer.stop_after=2")) == 130
    assert train.run(settings(data, tmp_path / "parts", *options, "resume=true")) == 0
    whole, parts = (imitation.load_policy(tmp_path / name).policy for name in ("whole", "parts"))
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert whole.interface.tasks == ("toy/reach", "toy/reach-too")


def test_evaluation_beside_random_and_expert(
    data: Path, tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    train, evaluate = script("train_policy"), script("evaluate_policy")
    for seed in (0, 1):
        chosen = ["policy=act", "observe.image=true", f"seed={seed}"]
        assert train.run(settings(data, tmp_path / str(seed), *chosen)) == 0
    runs = f"+runs.act=[{tmp_path / '0'},{tmp_path / '1'}]"
    chosen = composed(
        "evaluate_policy", runs, "per_task=3", f"out={tmp_path / 'out'}", "progress=false", "videos=1",
        f"report={tmp_path / 'report'}",
    )  # fmt: skip
    evaluate.run(chosen)
    evaluate.run(chosen)  # nothing is run again
    assert "| act | 2 | " in capsys.readouterr().out
    results = json.loads((tmp_path / "report" / "policies.json").read_text())
    assert len(results["episodes"]["act"]) == 2
    assert len(results["episodes"]["expert"][0]) == 6
    assert len(list((tmp_path / "out" / "videos").glob("*.gif"))) == 3
    assert results["summary"]["protocol"]["options"]["max_steps"] == 11  # as recorded
    assert max(e["steps"] for e in results["episodes"]["random"][0]) == 11
    header = json.loads((tmp_path / "out" / "act_0.jsonl").read_text().splitlines()[0])
    assert header["settings"]["execution"] == {"execute": 4, "ensemble": None}
    other = ["env.max_steps=3", "per_task=1", "progress=false", f"out={tmp_path / 'short'}"]
    evaluate.run(composed("evaluate_policy", runs, *other))
    assert "env.max_steps=3, but the demonstrations were recorded with 11" in capsys.readouterr().out
    with pytest.raises(ValueError, match="act: execute=9 actions, but the policy's chunks hold 4"):
        evaluate.run(composed("evaluate_policy", runs, "execution.execute=9", f"out={tmp_path / 'never'}"))
    assert not (tmp_path / "never").exists()
    with pytest.raises(ValueError, match=r"env.image_size=32, but the policies see 16 x 16"):
        evaluate.run(composed("evaluate_policy", runs, "env.image_size=32"))
    with pytest.raises(ValueError, match="name policies"):
        evaluate.run(composed("evaluate_policy"))
    with pytest.raises(ValueError, match="agents are random, expert"):
        evaluate.run(composed("evaluate_policy", runs, "agents=[oracle]"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.name=bert", "the policy is one of"),
        ("demonstrations.heldout_per_task=0", "hold out at least one"),
        ("demonstrations.heldout_per_task=9", "cannot be held out"),
        ("demonstrations.per_task=5", "has 4 training episodes, asked were 5"),
        ("demonstrations.action_free=4", "asked were 4, of which 4 without actions"),
        ("demonstrations.tasks=[toy/fly]", "has no task toy/fly"),
        ("policy.auxiliary.target=sound", "the target is one of"),
        ("policy.auxiliary.target=image", "image targets need a policy that sees images"),
    ],
)
def test_errors_name_the_fix(override: str, message: str, data: Path, tmp_path: Path, script: Script) -> None:
    made = settings(data, tmp_path / "run", override)
    with pytest.raises(ValueError, match=message):
        script("train_policy").run(made)


def test_two_stages_a_pretrained_backbone_and_averaged_weights(
    data: Path, tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, imitation = script("train_policy"), script("imitation")
    monkeypatch.setattr(SeqJEPA, "monitors", lambda self, batches: {})  # toy pictures hardly differ
    seen = ["observe.image=true"]
    world_model = [
        "episodes=lerobot", f"episodes.root={data}", "episodes.observation=observation.image",
        "world_model=seq_jepa", "world_model.encoder=resnet18", "world_model.embed_dim=64", "world_model.layers=1",
        "world_model.heads=2", "world_model.hidden=16", "trainer.max_steps=2",
        "trainer.batch_size=4", "trainer.heldout_episodes=2", "episodes.min_frames=2", "world_model.views=1",
        "trainer.progress=false", f"run.dir={tmp_path / 'wm'}",
    ]  # fmt: skip
    assert script("train_world_model").run(composed("train_world_model", *world_model)) == 0
    pretrained = [*seen, f"backbone.run={tmp_path / 'wm'}"]
    first = [*pretrained, "policy.auxiliary.action_weight=0.0", "weight_average=0.9"]
    assert train.run(settings(data, tmp_path / "first", *first)) == 0
    encoder = script("world_models").load_world_model(tmp_path / "wm").model.encoder.state_dict()
    stage = imitation.load_policy(tmp_path / "first").policy
    kept = stage.network.act.context.vision.backbone.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in encoder.items())

    second = [*pretrained, "policy=act", f"start.run={tmp_path / 'first'}", "demonstrations.per_task=2"]
    assert train.run(settings(data, tmp_path / "second", *second, "trainer.stop_after=2")) == 130
    assert train.run(settings(data, tmp_path / "second", *second, "resume=true")) == 0
    made = imitation.load_policy(tmp_path / "second").policy
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    seen_before = json.loads((tmp_path / "first" / "config.json").read_text())["training_seeds"]
    assert config["training_seeds"] == seen_before  # half of them, and those of the first stage
    assert {len(seeds) for seeds in seen_before.values()} == {4}
    other_split = [*second, "demonstrations.split_seed=1"]
    with pytest.raises(ValueError, match="held-out episodes were trained on before"):
        train.run(settings(data, tmp_path / "leak", *other_split))
    loaded = imitation.load_policy(tmp_path / "second").settings
    with pytest.raises(ValueError, match="held-out episodes were trained on before"):
        imitation.demonstrations({**loaded, "demonstrations": {**loaded["demonstrations"], "split_seed": 1}})
    assert len(imitation.demonstrations(loaded).training) == 4
    own = made.network.context.state_dict()
    assert all(
        torch.equal(value, own[name]) for name, value in stage.network.act.context.state_dict().items()
    )
    assert torch.equal(made.statistics.state_mean, stage.statistics.state_mean)

    script("export_policy").main([str(tmp_path / "second"), str(tmp_path / "policy")])
    observation = PolicyObservation(
        state=torch.rand(1, 2), environment=torch.rand(1, 2), task=torch.tensor([1]),
        image=torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8),
    )  # fmt: skip
    assert torch.equal(made.act(observation), load_exported(tmp_path / "policy").policy.act(observation))

    with pytest.raises(ValueError, match="takes over the context encoder"):
        train.run(
            settings(data, tmp_path / "bc", *pretrained, "policy=bc", f"start.run={tmp_path / 'first'}")
        )
    with pytest.raises(ValueError, match="this policy a state of 2, an environment of 2, images of None"):
        train.run(settings(data, tmp_path / "blind", "policy=act", f"start.run={tmp_path / 'first'}"))


def test_only_successes_are_imitated_unless_asked_for(
    tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    rollout = RolloutSettings(options=EnvOptions(image_size=8), image=False)
    root = tmp_path / "set"
    kept = RecordingSettings(rollout=rollout, keep_failures=True)
    record(root, names=["toy/reach"], episodes=9, settings=kept)  # seeds 0, 3 and 6 fail
    imitation = script("imitation")
    found = imitation.demonstrations(settings(root, tmp_path / "run"))
    assert {d.seed for d in found.training + found.heldout} == {1, 2, 4, 5, 7, 8}
    assert found.failures_left_out == 3
    assert [edge.tolist() for edge in found.bounds] == [[-1, -1], [1, 1]]
    whole = imitation.demonstrations(settings(root, tmp_path / "run", "demonstrations.failures=true"))
    assert len(whole.training + whole.heldout) == 9
    with pytest.raises(MissingColumn, match=r"no column 'observation.image'.*observe\.image=false"):
        imitation.demonstrations(settings(root, tmp_path / "run", "observe.image=true"))
    record(tmp_path / "never", names=["toy/never"], episodes=2, settings=kept)
    with pytest.raises(ValueError, match=r"no demonstration of toy/never succeeded.*failures=true"):
        imitation.demonstrations(settings(tmp_path / "never", tmp_path / "run"))


def test_a_data_set_of_another_program_is_trained_on_and_rolled_out(tmp_path: Path, script: Script) -> None:
    """Other columns, no bounds, no seeds; what its task is called here is told for rolling out."""
    types = {"observation.pose": "float64", "goal": "float32", "torque": "float32"}
    features = {name: Feature(kind, (2,)) for name, kind in types.items()}
    rng, root = np.random.default_rng(0), tmp_path / "set"
    with LeRobotWriter(root, features=features, fps=10) as writer:
        for _ in range(5):
            rows = {name: rng.uniform(-0.5, 0.5, (7, 2)).astype(kind) for name, kind in types.items()}
            writer.append(rows, task="Go there")
    columns = (
        "demonstrations.columns={state: observation.pose, environment: goal, image: null, action: torque}"
    )
    named = "demonstrations.environments={Go there: toy/reach}"
    chosen = settings(root, tmp_path / "run", columns, named, "policy=act")
    found = script("imitation").demonstrations(chosen)
    assert found.options is None
    assert found.tasks == ("toy/reach",)
    labelled = np.concatenate([d.action for d in found.training])
    assert [edge.tolist() for edge in found.bounds] == [labelled.min(0).tolist(), labelled.max(0).tolist()]
    assert script("train_policy").run(chosen) == 0
    evaluation = ["per_task=2", "agents=[random]", "progress=false", f"out={tmp_path / 'out'}"]
    script("evaluate_policy").run(composed("evaluate_policy", f"+runs.act=[{tmp_path / 'run'}]", *evaluation))
    assert (tmp_path / "out" / "act.jsonl").is_file()
    with pytest.raises(ValueError, match=r"environments names Fly, of which"):
        script("imitation").demonstrations(
            settings(root, tmp_path / "run", columns, "demonstrations.environments={Fly: toy/reach}")
        )


def test_a_run_without_statistics_or_of_something_else(
    data: Path, tmp_path: Path, tiny_run: Path, script: Script
) -> None:
    with pytest.raises(RunFolderError, match="does not describe a policy"):
        script("imitation").load_policy(tiny_run)
    assert (
        script("train_policy").run(settings(data, tmp_path / "run", "policy=bc", "trainer.max_steps=1")) == 0
    )
    checkpoint = script("imitation").load_policy(tmp_path / "run").checkpoint
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("statistics.")}
    save_file(kept, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match="statistics"):
        script("imitation").load_policy(tmp_path / "run")


def test_an_exported_policy_acts_like_its_run(
    data: Path, tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("train_policy").run(settings(data, tmp_path / "run", "trainer.max_steps=2")) == 0
    folder, export = tmp_path / "policy", script("export_policy")
    export.main([str(tmp_path / "run"), str(folder)])
    assert "a decision of 4 actions takes" in capsys.readouterr().out
    loaded, exported = script("imitation").load_policy(tmp_path / "run").policy, load_exported(folder)
    observation = PolicyObservation(
        state=torch.rand(3, 2), environment=torch.rand(3, 2), image=None, task=torch.tensor([0, 1, 0])
    )
    assert torch.equal(loaded.act(observation), exported.policy.act(observation))
    assert not any("predictor" in name or "target" in name for name in exported.policy.state_dict())
    with pytest.raises(SystemExit, match="holds a policy already"):
        export.main([str(tmp_path / "run"), str(folder)])
    with pytest.raises(FileNotFoundError, match="export a run with"):
        load_exported(tmp_path)
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="export the run again"):
        load_exported(folder)
    told = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps({**told, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        load_exported(folder)


def test_rollouts_to_watch(
    data: Path, tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("train_policy").run(settings(data, tmp_path / "run", "trainer.max_steps=2")) == 0
    rollout = script("rollout_policy")
    rollout.main(
        [str(tmp_path / "run"), "--seeds", "1", "2", "--image-size=8", f"--out={tmp_path / 'videos'}"]
    )
    assert capsys.readouterr().out.count("after ") == 4
    assert len(list((tmp_path / "videos").glob("toy_reach*.gif"))) == 4
    script("export_policy").main([str(tmp_path / "run"), str(tmp_path / "policy")])
    assert load_exported(tmp_path / "policy").options == EnvOptions(image_size=16, max_steps=11)
    capsys.readouterr()
    rollout.main([str(tmp_path / "policy"), "--seeds", "3", "--max-steps=2", f"--out={tmp_path / 'short'}"])
    told = capsys.readouterr().out
    assert "env.max_steps=2, but the demonstrations were recorded with 11" in told
    assert told.count("failure after 2 steps") == 2
    with pytest.raises(SystemExit, match="execute=9 actions, but the policy's chunks hold 4"):
        rollout.main([str(tmp_path / "run"), "--execute=9"])
    with pytest.raises(SystemExit, match="has no task 'toy/fly'"):
        rollout.main([str(tmp_path / "run"), "--task=toy/fly"])
