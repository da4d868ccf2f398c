"""What holds for every arm: padding counts for nothing, the future is not seen, units, seeds, learning, the loop."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies.imitation.batches import ChunkBatch, ObservationError
from policies.imitation.build import NAMES, Auxiliary, build_network, build_policy, image_tokens
from policies.imitation.chunks import ChunkDataset, collate_chunks
from policies.imitation.interface import ChunkError
from policies.imitation.policy import ImitationPolicy
from policies.imitation.statistics import MissingStatistics
from policies.imitation.vision import Backbone
from tests.policies.imitation.toys import (
    ARMS,
    TASKS,
    TINY,
    C,
    batch,
    batches,
    demonstrations,
    interface,
    policy,
    with_garbage,
)
from worldmodel.nn.resnet import ResNet18
from worldmodel.protocols import Task
from worldmodel.training import RunFolder, TrainerConfig, fit
from worldmodel.training.checkpoints import CheckpointError, load_checkpoint, load_strict
from worldmodel.training.schedules import WarmupCosine


def loss_and_gradients(made: ImitationPolicy, data: ChunkBatch) -> list[torch.Tensor]:
    made.zero_grad()
    loss = made.training_step(data, 3)
    loss.total.backward()
    return [loss.total.detach(), *[p.grad.clone() for p in made.parameters() if p.grad is not None]]


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_toy_batch_pads() -> None:
    assert 0 < int(batch().is_pad.sum()) < batch().is_pad.numel() / 2


@pytest.mark.parametrize("arm", ARMS)
def test_padding_changes_neither_loss_nor_gradient_nor_action(arm: str) -> None:
    made, clean = policy(arm), batch(arm, size=24)
    dirty = with_garbage(clean)
    assert not torch.equal(clean.state, dirty.state)
    for one, other in zip(loss_and_gradients(made, clean), loss_and_gradients(made, dirty), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    made.eval()
    assert torch.equal(made.act(clean.observation, noise()), made.act(dirty.observation, noise()))
    assert made.monitors([clean])["action_l1"] == made.monitors([dirty])["action_l1"]


@pytest.mark.parametrize("arm", ARMS)
def test_the_future_reaches_neither_memory_nor_actions(arm: str) -> None:
    made, now = policy(arm).eval(), batch(arm)
    later = replace(now, state=now.state.clone(), action=torch.randn(now.action.shape))
    later.state[:, 1:] += 1
    if later.environments is not None:
        later = replace(later, environments=later.environments + 1)
    with torch.no_grad():
        memories = [made.network.memory(b.observation) for b in (now, later)]  # type: ignore[operator]
    assert torch.equal(*memories)
    assert torch.equal(made.act(now.observation, noise()), made.act(later.observation, noise()))


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_task_whose_gradient_reaches_all_it_trains(arm: str) -> None:
    made = policy(arm)
    assert isinstance(made, Task)
    made.training_step(batch(arm), 0).total.backward()
    trained = {name: p for name, p in made.named_parameters() if p.requires_grad}
    assert not [name for name, p in trained.items() if p.grad is None]
    values = made.eval().monitors(batches(arm))
    assert {"action_l1", "action_l1_mean"} <= values.keys()


@pytest.mark.parametrize("arm", ARMS)
def test_monitors_and_actions_leave_the_policy_as_it_is(arm: str) -> None:
    made = policy(arm).eval()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made.monitors([batch(arm)])
    made.act(batch(arm).observation, noise())
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())


@pytest.mark.parametrize("arm", ["act", "act_jepa", "act_cvae", "flow"])
def test_dropout_is_a_function_of_seeds_and_step(arm: str) -> None:
    made, data = policy(arm, sizes=replace(TINY, dropout=0.5)), batch(arm)
    state = torch.get_rng_state()
    losses = [float(made.training_step(data, step).total.detach()) for step in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(state, torch.get_rng_state())


def test_actions_are_denormalised_and_then_clipped() -> None:
    made = policy("act").eval()
    observation = batch().observation
    raw = made.network.sample(made.statistics.normalise(observation))  # type: ignore[operator]
    expected = raw * made.statistics.action_std + made.statistics.action_mean
    torch.testing.assert_close(made.act(observation), expected.clamp(-0.3, 0.3))
    with torch.no_grad():
        made.network.decoder.head.bias.fill_(50.0)  # type: ignore[union-attr,operator]
    assert torch.equal(made.act(observation), torch.full((8, C, 2), 0.3))


@pytest.mark.parametrize("arm", ["act", "act_jepa", "bc"])
def test_one_batch_is_learned_by_heart(arm: str) -> None:
    made, data = policy(arm, sizes=replace(TINY, dim=32, hidden=64)), batch(arm, size=8)
    optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=5e-3)
    errors = []
    for step in range(300):
        optimizer.zero_grad()
        loss = made.training_step(data, step)
        errors.append(float(loss.parts["loss/action"]))
        if errors[-1] < 0.05:
            break
        loss.total.backward()
        optimizer.step()
        made.after_step(step, 300)
    assert errors[0] > 0.5
    assert errors[-1] < 0.05


def test_policies_act_in_evaluation_mode_only() -> None:
    with pytest.raises(RuntimeError, match=r"call policy.eval\(\)"):
        policy("act").act(batch().observation)


def test_observations_that_do_not_fit_are_named() -> None:
    made, good = policy("act").eval(), batch().observation
    image = torch.zeros(8, 3, 16, 16, dtype=torch.uint8)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"environment": None}, "sees environment"),
        ({"image": image}, "built without image"),
        ({"state": torch.zeros(8, 5)}, r"state must be \[3\]"),
        ({"state": torch.full((8, 3), torch.nan)}, "state of row 0 holds NaN"),
        ({"environment": torch.full((8, 4), torch.inf)}, "environment of row 0"),
        ({"task": torch.full((8,), 2)}, r"0\.\.1"),
    ]
    for changes, message in wrong:
        with pytest.raises(ObservationError, match=message):
            made.act(replace(good, **changes))
    with pytest.raises(ObservationError, match="sees image"):
        policy("image").eval().act(good)
    with pytest.raises(ObservationError, match="no task 'fly'"):
        interface().task_index("fly")
    assert interface().task_index("push") == 1


def test_batches_that_do_not_fit_are_named() -> None:
    made, dataset = policy("act"), ChunkDataset(demonstrations(), tasks=TASKS, chunk=C + 1)
    with pytest.raises(ChunkError, match=f"chunk={C}"):
        made.training_step(collate_chunks([dataset[(0, 0)]]), 0)
    data = batch()
    with pytest.raises(ObservationError, match="actions have 3 numbers"):
        made.training_step(replace(data, action=torch.zeros(8, C, 3)), 0)


def test_names_and_sizes_that_do_not_exist() -> None:
    wrong: Any = "gpt"
    with pytest.raises(ValueError, match="act_jepa"):
        build_network(wrong, interface=interface(), sizes=TINY)
    with pytest.raises(ValueError, match="latent, shared_latent"):
        policy("act_jepa", target=wrong)
    with pytest.raises(ValueError, match="image targets need a policy that sees"):
        policy("act_jepa", target="image")
    with pytest.raises(ValueError, match="small or resnet18"):
        image_tokens(replace(TINY, vision=wrong))
    with pytest.raises(ValueError, match="multiple of 3 heads"):
        build_network("act", interface=interface(), sizes=replace(TINY, heads=3))
    with pytest.raises(ValueError, match="at least one task"):
        replace(interface(), tasks=())
    with pytest.raises(ValueError, match="stands twice"):
        replace(interface(), tasks=("a", "a"))


@pytest.mark.parametrize("name", NAMES)
def test_images_are_seen_by_every_policy(name: Any) -> None:
    made = build_policy(
        name, interface=interface(images=True), sizes=TINY, statistics=policy("act").statistics
    ).eval()
    observation = batch("image").observation
    assert observation.image is not None
    other = replace(observation, image=255 - observation.image)
    assert not torch.equal(made.act(observation, noise()), made.act(other, noise()))


@pytest.mark.parametrize("frozen", [True, False])
def test_the_image_encoder_of_a_world_model_is_used_frozen_or_trained_on(frozen: bool) -> None:
    made = build_policy(
        "act",
        interface=interface(images=True),
        sizes=TINY,
        statistics=policy("act").statistics,
        backbone=Backbone(encoder="resnet18", embed_dim=32, options={"stem": "imagenet"}, frozen=frozen),
    ).train()
    encoder = made.network.context.vision.backbone  # type: ignore[union-attr]
    assert isinstance(encoder, ResNet18)
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    made.training_step(batch("image"), 0).total.backward()
    assert all((p.grad is None) is frozen for p in encoder.parameters())
    assert all(torch.equal(before[name], b) for name, b in encoder.named_buffers()) is frozen


def test_a_convnet_is_that_of_its_image_size_and_its_unread_layers_are_frozen() -> None:
    """Strides depend on the size: weights for 64 pixels load into the network for 16, and mean nothing there."""
    seen = interface(images=True)
    backbone = Backbone(encoder="convnet", embed_dim=32, image_size=(16, 16), frozen=False)
    made = build_policy(
        "act", interface=seen, sizes=TINY, statistics=policy("act").statistics, backbone=backbone
    )
    made.training_step(batch("image"), 0).total.backward()
    assert not [name for name, p in made.named_parameters() if p.requires_grad and p.grad is None]
    assert made.network.context.vision.backbone.stages[0].weight.grad is not None  # type: ignore[union-attr, index]
    with pytest.raises(ValueError, match=r"trained on images of \(64, 64\), the policy sees \(16, 16\)"):
        build_network("act", interface=seen, sizes=TINY, backbone=replace(backbone, image_size=(64, 64)))


def test_a_flow_draws_where_its_generators_are() -> None:
    """Rollouts draw on the CPU whatever the device of the policy; the device without numbers stands for another."""
    made, seen = policy("flow").eval(), batch("flow").observation
    away = made.network.to("meta")
    for source in (noise(), [noise(i) for i in range(8)]):
        assert away.sample(seen.to("meta"), source).shape == (8, C, 2)  # type: ignore[operator]


def test_a_backbone_needs_a_map_and_a_policy_that_sees_pictures() -> None:
    backbone = Backbone(encoder="patch_mlp", embed_dim=16)
    with pytest.raises(ValueError, match="convnet or resnet18"):
        build_network("act", interface=interface(images=True), sizes=TINY, backbone=backbone)
    with pytest.raises(ValueError, match=r"observe\.image=true"):
        build_network("act", interface=interface(), sizes=TINY, backbone=backbone)


def test_a_frozen_context_stays_in_evaluation_mode_and_gets_no_gradient() -> None:
    made = policy("act", sizes=replace(TINY, dropout=0.5))
    made.network.context.freeze()  # type: ignore[union-attr, operator]
    made.train()
    assert not any(m.training for m in made.network.context.modules())  # type: ignore[union-attr]
    made.training_step(batch("act"), 0).total.backward()
    assert {n.split(".")[1] for n, p in made.named_parameters() if p.grad is not None} == {"decoder"}


def test_the_first_of_two_stages_learns_no_actions() -> None:
    made = policy("act_jepa", action_weight=0.0)
    data = batch("act_jepa")
    other = replace(data, action=-data.action)
    losses = [made.training_step(d, 0) for d in (data, other)]
    assert float(losses[0].total.detach()) == float(losses[1].total.detach())
    with pytest.raises(ValueError, match="not both 0"):
        policy("act_jepa", action_weight=0.0, weight=0.0)


@pytest.mark.parametrize("arm", ARMS)
def test_losses_in_bf16_are_close_to_those_in_fp32(arm: str) -> None:
    made, data = policy(arm), batch(arm)
    expected = made.training_step(data, 0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = made.training_step(data, 0)
    assert loss.total.dtype == torch.float32
    assert float(loss.total.detach()) == pytest.approx(float(expected.total.detach()), rel=0.05)


def trained(folder: Path, **changes: Any) -> ImitationPolicy:
    folder.mkdir(exist_ok=True)
    made = policy("act_jepa", sizes=replace(TINY, dropout=0.1))
    dataset = ChunkDataset(demonstrations(), tasks=TASKS, chunk=C)
    settings: dict[str, Any] = {"max_steps": 6, "batch_size": 8, "eval_every": 3, "checkpoint_every": 2}
    config = TrainerConfig(
        schedule=WarmupCosine(max_lr=1e-3, warmup=2), device="cpu", progress=False, **{**settings, **changes}
    )
    fit(
        made,
        dataset=dataset,
        collate=collate_chunks,
        heldout=batches(first=50),
        run=RunFolder(folder),
        config=config,
        device=torch.device("cpu"),
    )
    return made.eval()


def test_the_training_loop_trains_resumes_and_keeps_the_statistics(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "pieces", stop_after=3)
    pieces = trained(tmp_path / "pieces")
    assert all(torch.equal(a, pieces.state_dict()[name]) for name, a in whole.state_dict().items())
    latest = RunFolder(tmp_path / "whole").latest_checkpoint()
    assert latest is not None
    tensors = load_checkpoint(latest).model
    fresh = policy_without_statistics()
    observation = batch().observation
    with pytest.raises(MissingStatistics, match="state_mean"):
        fresh.act(observation)
    with pytest.raises(MissingStatistics, match="load a checkpoint"):
        fresh.train().training_step(batch(), 0)
    load_strict(fresh, tensors, source="the checkpoint")
    assert torch.equal(fresh.eval().act(observation), whole.act(observation))
    without = {name: value for name, value in tensors.items() if not name.startswith("statistics.")}
    with pytest.raises(CheckpointError, match=r"missing statistics\.state_mean"):
        load_strict(policy_without_statistics(), without, source="the checkpoint")


def policy_without_statistics() -> ImitationPolicy:
    return build_policy("act_jepa", interface=interface(), sizes=TINY, auxiliary=Auxiliary(horizon=C)).eval()


def test_infinite_bounds_can_be_saved() -> None:
    made = policy("act").statistics
    made.set_bounds(-np.full(2, np.inf), np.full(2, np.inf))
    assert all(bool(b.isfinite().all()) for b in made.buffers())
    assert torch.equal(made.executable(torch.full((1, 2), 9.0)), 9 * made.action_std + made.action_mean[None])
