"""Policies of drives: a LiDAR encoder of a pretraining run under train_policy.py, frozen or trained on."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from envs.driving.demonstrations import drive_demonstration
from envs.driving.drive_store import read_drive, save_drive
from envs.driving.drives import Drive
from policies.imitation.chunks import chunk_batches
from policies.imitation.export import load_exported
from tests.scripts.test_train_policy import TINY, composed
from worldmodel.training.run_folder import RunFolderError

Script = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four drives of nine sweeps of random points."""
    folder = tmp_path_factory.mktemp("drives")
    for number in range(4):
        rng = np.random.default_rng(number)
        low, high = (0, -12.8, -2, 0), (25.6, 12.8, 0.5, 1)
        sweeps = [rng.uniform(low, high, (300 + 10 * n, 4)).astype(np.float32) for n in range(9)]
        drive = Drive(
            points=tuple(sweeps),
            actions=rng.uniform((0, -0.2), (12, 0.2), (8, 2)).astype(np.float32),
            poses=np.zeros((9, 3)),
            seen=np.zeros(9, np.int32),
            manoeuvre="stand",
        )
        save_drive(folder / f"{number:05d}.npz", drive)
    return folder


def settings(drives: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    return composed(
        "train_policy", *TINY, f"demonstrations.root={drives}", f"run.dir={folder}",
        "demonstrations.heldout_per_task=1", *overrides,
    )  # fmt: skip


@pytest.mark.parametrize("extra", [[], ["backbone.frozen=false"], ["backbone.weights=random"]])
def test_train_stop_resume_and_export(
    extra: list[str], drives: Path, tiny_run: Path, tmp_path: Path, script: Script
) -> None:
    train, imitation, runs = script("train_policy"), script("imitation"), script("runs")
    options = ["observe.points=true", f"backbone.run={tiny_run}", *extra]
    assert train.run(settings(drives, tmp_path / "whole", *options)) == 0
    assert train.run(settings(drives, tmp_path / "parts", *options, "trainer.stop_after=2")) == 130
    assert train.run(settings(drives, tmp_path / "parts", *options, "resume=true")) == 0
    whole, parts = (imitation.load_policy(tmp_path / name).policy for name in ("whole", "parts"))
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b), name

    run, checkpoint = runs.locate(tiny_run)
    pretrained = runs.load_task(runs.run_settings(run), checkpoint).model.encoder
    kept = dict(whole.network.act.context.vision.backbone.encoder.named_parameters())
    same = [torch.equal(value, kept[name]) for name, value in pretrained.named_parameters()]
    assert all(same) if not extra else not all(same)

    script("export_policy").main([str(tmp_path / "whole"), str(tmp_path / "policy")])
    found = imitation.demonstrations(imitation.load_policy(tmp_path / "whole").settings)
    assert [len(d) for d in found.training] == [7, 7, 7]
    assert (found.bounds[0] <= 0).all()
    _, heldout = imitation.datasets(imitation.load_policy(tmp_path / "whole").settings, found)
    observation = chunk_batches(heldout, batch_size=4)[0].observation
    exported = load_exported(tmp_path / "policy").policy
    assert torch.equal(exported.act(observation), whole.act(observation))


def test_what_is_driven_next_follows_what_was_driven(drives: Path, script: Script) -> None:
    made, drive = drive_demonstration(drives / "00002.npz"), read_drive(drives / "00002.npz")
    assert made.points is not None
    assert np.array_equal(made.state[3], drive.actions[3])  # between the sweeps 3 and 4
    assert np.array_equal(made.points[3], drive.points[4])
    assert np.array_equal(made.action[3], drive.actions[4])
    assert (made.seed, len(made)) == (2, 7)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["observe.points=true"], r"add backbone\.run=RUN, of pretrain_lidar"),
        (["backbone.run=RUN"], r"add observe\.image=true or observe\.points=true"),
        (["observe.points=true", "backbone.run=RUN", "backbone.pool=7"], "choose another pool"),
        (["observe.points=true", "backbone.run=RUN", "backbone.weights=old"], "pretrained or random"),
        (["observe.points=true", "backbone.run=RUN", "policy=autoregressive"], "sees no LiDAR sweeps"),
        (["observe.points=true", "demonstrations.root=ELSEWHERE"], r"simulate_lidar\.py --drives"),
        (["demonstrations.tasks=[flying]"], "has no task flying"),
        (["observe.image=true"], r"holds drives, .* leave out observe\.image"),
    ],
)
def test_errors_name_the_fix(
    overrides: list[str], message: str, drives: Path, tiny_run: Path, tmp_path: Path, script: Script
) -> None:
    named = [o.replace("RUN", str(tiny_run)).replace("ELSEWHERE", str(tmp_path)) for o in overrides]
    with pytest.raises(ValueError, match=message):
        script("train_policy").run(settings(drives, tmp_path / "run", *named))


def test_a_folder_that_is_no_run_is_named(drives: Path, tmp_path: Path, script: Script) -> None:
    with pytest.raises(RunFolderError, match="holds no checkpoint"):
        script("train_policy").run(
            settings(drives, tmp_path / "run", "observe.points=true", f"backbone.run={tmp_path}")
        )


def test_a_second_stage_sees_the_same_tokens_and_nothing_is_rolled_out(
    drives: Path, tiny_run: Path, tmp_path: Path, script: Script
) -> None:
    train = script("train_policy")
    lidar = ["observe.points=true", f"backbone.run={tiny_run}", "backbone.pool=4"]
    assert train.run(settings(drives, tmp_path / "first", *lidar, "policy.auxiliary.action_weight=0.0")) == 0
    second = [*lidar, "policy=act", f"start.run={tmp_path / 'first'}"]
    assert train.run(settings(drives, tmp_path / "second", *second)) == 0
    with pytest.raises(ValueError, match=r"rows=8, columns=8, .* this policy .*rows=16, columns=16"):
        train.run(settings(drives, tmp_path / "other", *second, "backbone.pool=2"))
    with pytest.raises(SystemExit, match="no environment here has a LiDAR"):
        script("rollout_policy").main([str(tmp_path / "second")])
