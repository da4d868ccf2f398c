"""ACT-JEPA against its description: targets, moving average, loss, gradient paths, sizes, several processes."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.func import functional_call

from policies.imitation.act_jepa import ACTJEPA
from policies.imitation.batches import ChunkBatch, ObservationError
from policies.imitation.build import Auxiliary, Sizes, build_network
from policies.imitation.context import StateSequence
from policies.imitation.interface import ChunkError, Interface
from policies.imitation.policy import ImitationPolicy
from policies.imitation.targets import ImageTargets, LatentTargets, momentum_of_run, sequence_of
from tests.policies.imitation.toys import (
    TASKS,
    TINY,
    C,
    batch,
    batches,
    in_double,
    policy,
    rows_of,
    with_garbage,
)
from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process
from worldmodel.nn.decoder import sequence_positions
from worldmodel.protocols import RepresentationCollapse


def network(made: ImitationPolicy) -> ACTJEPA:
    assert isinstance(made.network, ACTJEPA)
    return made.network


def normal(made: ImitationPolicy, **options: Any) -> ChunkBatch:
    return made.statistics.normalise_batch(batch(**options))


def teacher(made: ImitationPolicy) -> Any:
    targets = network(made).targets
    assert isinstance(targets, LatentTargets)
    return targets.teacher.encoder


def test_parameters_at_the_size_of_the_paper() -> None:
    """Meta-World: 4 numbers of state and action, ResNet-18 on 128 pixels, 50 rows of task embeddings."""
    made = build_network(
        "act_jepa",
        interface=Interface(
            state_dim=4,
            action_dim=4,
            chunk=30,
            tasks=tuple(f"task {i}" for i in range(50)),
            image_size=(128, 128),
        ),
        sizes=Sizes(),
    )
    assert isinstance(made, ACTJEPA)

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad)

    assert count(made.act.context) == 24_067_648
    assert count(made.predictor) == 1_191_552
    assert count(made.act.decoder) == 4_219_908
    assert count(made) == 29_479_108
    # The moving average leaves out the image network and the projection of its map.
    average = sum(p.numel() for p in made.targets.parameters())
    assert average == 24_067_648 - 11_176_512 - 262_656


def test_the_target_encoder_starts_as_the_context_encoder_without_gradient() -> None:
    made = policy("act_jepa", sizes=replace(TINY, dropout=0.5))
    context = network(made).act.context.transformer
    for (name, mine), (_, its) in zip(
        teacher(made).named_parameters(), context.named_parameters(), strict=True
    ):
        assert torch.equal(mine, its), name
        assert not mine.requires_grad
    sequence = sequence_of(normal(made))
    target = network(made).targets(normal(made), network(made).act.context, 0).value
    assert not target.requires_grad
    with torch.no_grad():
        assert torch.equal(target, context.eval()(sequence))
    made.training_step(batch(), 0).total.backward()
    assert all(p.grad is None for p in teacher(made).parameters())


def test_the_target_encoder_is_always_in_evaluation_mode() -> None:
    made = policy("act_jepa", sizes=replace(TINY, dropout=0.5)).train()
    assert not any(m.training for m in network(made).targets.modules())
    assert network(made).act.training
    image = network(policy("image").train()).targets
    assert isinstance(image, ImageTargets)
    assert not any(m.training for m in image.teacher.modules())
    assert image.norm.training


def test_the_moving_average_in_closed_form() -> None:
    made = policy("act_jepa", momentum=0.5)
    context = network(made).act.context.transformer
    start = teacher(made).state_embedding.weight.clone()
    with torch.no_grad():
        context.state_embedding.weight.add_(1.0)
    moved, steps = 1.0, 4
    for step in range(steps):
        values = made.after_step(step, steps)
        momentum = 0.5 + 0.5 * step / steps
        assert values["ema_momentum"] == pytest.approx(momentum)
        moved *= momentum
    torch.testing.assert_close(teacher(made).state_embedding.weight, start + 1 - moved)
    assert made.training_step(batch(), 0)
    torch.testing.assert_close(teacher(made).state_embedding.weight, start + 1 - moved)


def test_the_momentum_moves_as_far_in_runs_of_every_length() -> None:
    assert momentum_of_run(4000) == pytest.approx(0.996)
    assert momentum_of_run(800) == pytest.approx(0.98)
    assert momentum_of_run(10) == 0.0
    for steps in (500, 4000):
        start = momentum_of_run(steps)
        travelled = sum((1 - start) * (1 - k / steps) for k in range(steps))
        assert travelled == pytest.approx(8.0, rel=0.01)


def test_the_state_sequence_carries_positions_and_drops_the_task() -> None:
    made = policy("act_jepa").eval()
    transformer, data = network(made).act.context.transformer, normal(made)
    sequence = sequence_of(data)
    states = transformer.state_embedding(data.state) + sequence_positions(16, C)
    tokens = torch.cat([transformer.task_embedding(data.task)[:, None], states], 1)
    is_pad = torch.cat([torch.zeros(8, 1, dtype=torch.bool), data.state_is_pad], 1)
    expected = transformer.encoder(tokens, is_pad=is_pad)[:, 1:]
    assert torch.equal(transformer(sequence), expected)
    swapped = StateSequence(
        state=data.state.flip(1), task=data.task, is_pad=torch.zeros_like(data.state_is_pad)
    )
    plain = replace(sequence, is_pad=swapped.is_pad)
    assert not torch.allclose(transformer(swapped).flip(1), transformer(plain))


@pytest.mark.parametrize(("weight", "drop_first"), [(1.0, False), (0.25, True)])
def test_the_loss_against_its_formula(weight: float, drop_first: bool) -> None:
    made = policy("act_jepa", weight=weight, drop_first=drop_first)
    net, data = network(made), normal(made, size=24)
    loss = made.training_step(batch(size=24), 0)
    memory = net.act.context(data.observation)
    actions = net.act.decoder(memory, data.action_is_pad)
    action = (actions - data.action).abs()[~data.action_is_pad].mean()
    prediction = net.predictor(memory, data.state_is_pad)
    counts = ~data.state_is_pad
    if drop_first:
        counts[:, 0] = False
    observation = (prediction - teacher(made)(sequence_of(data))).abs()[counts].mean()
    torch.testing.assert_close(loss.parts["loss/action"], action.detach())
    torch.testing.assert_close(loss.parts["loss/observation"], observation.detach())
    torch.testing.assert_close(loss.total, action + weight * observation)


def test_the_memory_is_of_task_state_and_environment() -> None:
    made = policy("act_jepa").eval()
    net, observation = network(made), normal(made).observation
    assert net.act.context.environment_embedding is not None
    tokens = [
        net.act.context.transformer.task_embedding(observation.task),
        net.act.context.transformer.state_embedding(observation.state),
        net.act.context.environment_embedding(observation.environment),
    ]
    expected = net.act.context.transformer.encoder(torch.stack(tokens, 1))
    assert torch.equal(net.memory(observation), expected)


@pytest.mark.parametrize("arm", ["act_jepa", "raw_state", "shared", "image"])
def test_the_gradient_of_the_prediction_reaches_the_context_encoder(arm: str) -> None:
    made = policy(arm)
    for p in network(made).act.decoder.parameters():
        p.requires_grad_(False)
    data = batch(arm)
    data = replace(data, has_action=torch.zeros_like(data.has_action))
    made.training_step(data, 0).total.backward()
    reached = {
        name: p.grad is not None and bool((p.grad != 0).any())
        for name, p in network(made).act.context.named_parameters()
    }
    assert all(reached.values()), [name for name, there in reached.items() if not there]


def test_demonstrations_without_actions_count_in_the_prediction_alone() -> None:
    made, labelled, hidden = policy("act_jepa"), batches()[0], batches(action_free=range(8))[0]
    assert not hidden.action.any()
    loss = made.training_step(hidden, 0)
    assert float(loss.parts["loss/action"]) == 0
    torch.testing.assert_close(
        loss.parts["loss/observation"], made.training_step(labelled, 0).parts["loss/observation"]
    )
    # Half of each: the action error is that of the labelled half.
    mixed = replace(labelled, has_action=torch.arange(8) < 4, action=labelled.action.clone())
    mixed.action[4:] = 77.0
    first = made.network.loss(  # type: ignore[operator]
        made.statistics.normalise_batch(rows_of(labelled, slice(0, 4))),
        0,
    )
    torch.testing.assert_close(made.training_step(mixed, 0).parts["loss/action"], first.parts["loss/action"])


def test_causal_predictions_and_targets_do_not_look_ahead() -> None:
    made = policy("act_jepa_causal").eval()
    net, data = network(made), normal(made)
    data = replace(data, is_pad=torch.zeros_like(data.is_pad))
    changed = replace(data, state=data.state.clone())
    changed.state[:, 3:] += 5
    one, other = (net.targets(d, net.act.context, 0).value for d in (data, changed))
    torch.testing.assert_close(one[:, :3], other[:, :3])
    assert not torch.allclose(one[:, 3:], other[:, 3:])
    plain = network(policy("act_jepa")).eval()
    one, other = (plain.targets(d, plain.act.context, 0).value for d in (data, changed))
    assert not torch.allclose(one[:, :3], other[:, :3])


def test_shared_targets_are_normalised_over_valid_steps_and_pushed_apart() -> None:
    made = policy("shared", sigreg_weight=0.5)
    net, data = network(made), normal(made)
    target = net.targets(data, net.act.context, 7)
    rows = target.value[target.valid]
    assert rows.requires_grad
    torch.testing.assert_close(rows.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    assert not target.value[~target.valid].any()
    weight, statistic = target.terms["loss/sigreg"]
    assert weight == 0.5
    assert float(statistic.detach()) > 0
    total = made.training_step(batch(), 7)
    parts = total.parts
    expected = parts["loss/action"] + parts["loss/observation"] + 0.5 * parts["loss/sigreg"]
    torch.testing.assert_close(total.total, expected)
    assert made.after_step(0, 10) == {}


def test_image_targets_follow_the_image_network_or_stay() -> None:
    made = policy("image", momentum=0.0)
    net = network(made)
    assert net.act.context.vision is not None
    data = normal(made, arm="image")
    before = net.targets(data, net.act.context, 0).value
    valid = ~data.state_is_pad[:, ::2]
    torch.testing.assert_close(before[valid].mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(before[valid].std(0, correction=0), torch.ones(16), atol=1e-3, rtol=0)
    assert not before[~valid].any()
    assert not before.requires_grad
    with torch.no_grad():
        net.act.context.vision.project.weight.neg_()
    assert torch.equal(net.targets(data, net.act.context, 0).value, before)
    made.after_step(0, 10)
    assert not torch.allclose(net.targets(data, net.act.context, 0).value, before)
    kept = network(policy("image", momentum=None))
    assert kept.after_step(0, 10) == {}
    with pytest.raises(ObservationError, match="image_stride=2"):
        policy("image").training_step(replace(batch("image"), images=None), 0)


def test_monitors_tell_the_error_from_that_of_the_mean_and_the_spread_of_the_targets() -> None:
    made = policy("act_jepa").eval()
    values = made.monitors(batches())
    assert {"observation_l1", "target_std", "target_rankme", "target_spread"} <= values.keys()
    data = [made.statistics.normalise_batch(b) for b in batches()]
    target = torch.cat([teacher(made)(sequence_of(b)) for b in data])
    valid = torch.cat([~b.state_is_pad for b in data])
    mean = torch.stack([target[valid[:, k], k].mean(0) for k in range(C)])
    assert values["observation_l1_mean"] == pytest.approx(
        float((target - mean).abs()[valid].mean()), rel=1e-4
    )
    assert values["target_std"] == pytest.approx(float(target[valid].std(0).mean()), rel=1e-4)
    assert values["target_spread"] < values["target_std"]
    raw = policy("raw_state").eval().monitors(batches())
    assert "target_std" not in raw
    assert raw["observation_l1"] > 0


@pytest.mark.parametrize("horizon", [3, C + 4])
def test_the_horizon_of_the_prediction_is_not_that_of_the_actions(horizon: int) -> None:
    made, data = policy("act_jepa", horizon=horizon), batch(horizon=horizon)
    loss = made.training_step(data, 0)
    clean = made.statistics.normalise_batch(data)
    prediction = network(made).predictor(network(made).act.context(clean.observation), data.state_is_pad)
    error = (prediction - teacher(made)(sequence_of(clean))).abs()[~data.state_is_pad].mean()
    torch.testing.assert_close(loss.parts["loss/observation"], error.detach())
    assert made.eval().act(data.observation).shape == (8, C, 2)
    with pytest.raises(ChunkError, match=f"forecasts {horizon} steps, the batch has targets of {C}"):
        made.training_step(batch(), 0)


@pytest.mark.parametrize("arm", ["act_jepa", "shared", "image"])
def test_a_collapse_of_the_targets_is_an_error(arm: str) -> None:
    """Against what they were at the first step, which outlives a restart; an untrained policy is never refused."""
    made = policy(arm)
    source = network(made).act.context if arm == "shared" else network(made).targets
    for p in source.parameters():
        p.data.mul_(0.5)
    made.eval().monitors(batches(arm))
    made.train().training_step(batch(arm), 0)
    made.eval().monitors(batches(arm))
    again = policy(arm, seed=1).eval()
    again.load_state_dict(made.state_dict())
    again.monitors(batches(arm))
    for name, p in again.named_parameters():
        if ("embedding" in name or "project" in name) and p.ndim > 1:
            p.data.mul_(1e-4)
    with pytest.raises(RepresentationCollapse, match="targets collapsed"):
        again.monitors(batches(arm))


@pytest.mark.parametrize("sizes", [TINY, replace(TINY, vision="resnet18", vision_width=16)])
def test_untrained_pictures_are_targets_whose_error_means_something(sizes: Sizes) -> None:
    """However little they differ between pictures, it is the unit of errors, at every moment."""
    made = policy("image", sizes=sizes)
    net, data = network(made), normal(made, arm="image", size=24)
    target = net.targets(data, net.act.context, 0)
    torch.testing.assert_close(
        target.value[target.valid].std(0, correction=0), torch.ones(16), atol=0.01, rtol=0
    )
    for _ in range(2):
        assert 0.5 < made.eval().monitors(batches("image"))["observation_l1_mean"] < 1.2
        for p in made.parameters():  # what is common moves by more than the rest varies
            p.data.add_(0.1)
    last = [b for b in batches("image", batch_size=1) if int((~b.state_is_pad[:, ::2]).sum()) == 1]
    assert math.isfinite(float(made.train().training_step(last[0], 1).total.detach()))


def test_bad_settings() -> None:
    style = policy("act_cvae").network
    net = network(policy("act_jepa"))
    with pytest.raises(ValueError, match="no style"):
        ACTJEPA(act=style, predictor=net.predictor, targets=net.targets)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not negative"):
        ACTJEPA(act=net.act, predictor=net.predictor, targets=net.targets, weight=-1)
    with pytest.raises(ValueError, match="image targets need a policy"):
        build_network(
            "act_jepa",
            interface=Interface(state_dim=1, action_dim=1, chunk=1, tasks=TASKS),
            sizes=TINY,
            auxiliary=Auxiliary(target="image"),
        )


def test_padding_of_the_targets_is_masked_not_just_left_out() -> None:
    made = policy("act_jepa").eval()
    clean, dirty = (made.statistics.normalise_batch(b) for b in (batch(), with_garbage(batch())))
    one, other = (teacher(made)(sequence_of(b)) for b in (clean, dirty))
    valid = ~clean.state_is_pad
    assert torch.equal(one[valid], other[valid])
    assert not torch.equal(one, other)


def _loss(parameters: Sequence[torch.Tensor], arm_and_batch: tuple[str, ChunkBatch]) -> torch.Tensor:
    arm, data = arm_and_batch
    made = policy(arm).double()
    names = [name for name, _ in made.named_parameters()]
    made.forward = lambda b: made.training_step(b, 2).total
    return functional_call(made, dict(zip(names, parameters, strict=True)), (data,))


@pytest.mark.parametrize("arm", ["act_jepa", "shared", "act_cvae", "flow", "autoregressive"])
def test_two_processes_equal_one(two_processes: TwoProcesses, arm: str) -> None:
    whole = batch(arm, size=12)
    whole = replace(in_double(whole), has_action=torch.arange(12) % 4 != 1)
    shares = [(arm, rows_of(whole, part)) for part in (slice(0, 5), slice(5, 12))]
    parameters = [p.detach() for p in policy(arm).double().parameters()]
    assert_equals_one_process(
        two_processes, _loss, parameters=parameters, shares=shares, joined=(arm, whole), atol=1e-10
    )
