"""ACT's style, the flow policy, the autoregressive transformer and image tokens, each against an oracle."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from policies.imitation.act import ACT
from policies.imitation.autoregressive import AutoregressiveTransformer
from policies.imitation.batches import ChunkBatch, History, ObservationError
from policies.imitation.execution import Memory
from policies.imitation.flow import FlowPolicy
from policies.imitation.policy import ImitationPolicy
from policies.imitation.vision import ImageTokens, SmallCNN
from tests.policies.imitation.toys import DA, C, batch, policy
from worldmodel.nn.convnet import ConvNet
from worldmodel.nn.decoder import map_positions
from worldmodel.nn.mlp import MLPEncoder
from worldmodel.nn.resnet import ResNet18


def normal(made: ImitationPolicy, **options: Any) -> ChunkBatch:
    return made.statistics.normalise_batch(batch(**options))


def test_the_style_diverges_from_its_prior_by_the_formula() -> None:
    made = policy("act_cvae")
    net = made.network
    assert isinstance(net, ACT)
    assert net.style is not None
    data = normal(made)
    loss = net.loss(data, 0)
    mean, log_variance = net.style(data)
    posterior = Normal(mean, (log_variance / 2).exp())
    expected = kl_divergence(posterior, Normal(torch.zeros(()), torch.ones(()))).sum(-1).mean()
    torch.testing.assert_close(loss.parts["loss/style_divergence"], expected.detach())
    torch.testing.assert_close(loss.total, loss.parts["loss/action"] + 10 * expected)
    assert not torch.equal(net.loss(data, 1).parts["loss/action"], loss.parts["loss/action"])
    hidden = replace(data, has_action=torch.zeros_like(data.has_action))
    assert float(net.loss(hidden, 0).total.detach()) == 0


def test_the_style_of_a_rollout_is_the_mean_of_its_prior() -> None:
    made = policy("act_cvae").eval()
    net = made.network
    assert isinstance(net, ACT)
    assert net.style is not None
    seen = normal(made).observation
    expected = net.decoder(net.context(seen, extra=net.style.token(torch.zeros(8, 32))))
    torch.testing.assert_close(net.sample(seen), expected)


class _Straight(FlowPolicy):
    """The exact velocity towards one chunk."""

    def towards(self, chunk: torch.Tensor) -> "_Straight":
        self.chunk = chunk
        return self

    def velocity(self, actions: torch.Tensor, time: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor:
        return (self.chunk - actions) / (1 - time.view(-1, 1, 1))


def test_the_exact_velocity_has_no_loss_and_leads_to_the_actions() -> None:
    made = policy("flow")
    data = normal(made)
    net = _Straight(context=made.network.context, action_dim=DA, chunk=C, heads=2, hidden=8, layers=1)  # type: ignore[arg-type]
    net.towards(data.action)
    assert float(net.loss(data, 0).total) == pytest.approx(0, abs=1e-8)
    sampled = net.sample(data.observation, torch.Generator().manual_seed(0))
    torch.testing.assert_close(sampled, data.action, atol=1e-5, rtol=1e-5)


def test_flow_samples_depend_on_their_own_generator_alone() -> None:
    made = policy("flow").eval()
    seen = batch().observation

    def sources() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(i) for i in range(8)]

    whole = made.act(seen, sources())
    torch.testing.assert_close(made.act(seen.select(torch.tensor([5])), sources()[5:6]), whole[5:6])
    assert not torch.allclose(made.act(seen, sources()[::-1]), whole)
    with pytest.raises(ObservationError, match="give act"):
        made.act(seen)
    with pytest.raises(ValueError, match="at least 1 step"):
        FlowPolicy(context=made.network.context, action_dim=1, chunk=1, steps=0)  # type: ignore[arg-type]


def test_a_flow_keeps_two_ways_apart_where_an_l1_policy_cannot() -> None:
    """Every stretch is there twice, with an action and with its opposite."""
    made = policy("flow")
    data = normal(made, size=16)
    label = torch.where(torch.arange(16) % 2 == 0, 1.0, -1.0).view(-1, 1, 1).expand(-1, C, DA)
    data = replace(
        data,
        state=torch.zeros_like(data.state),
        environment=torch.zeros_like(data.environment),  # type: ignore[arg-type]
        task=torch.zeros_like(data.task),
        action=label,
        is_pad=torch.zeros_like(data.is_pad),
    )
    optimizer = torch.optim.Adam(made.parameters(), lr=5e-3)
    for step in range(100):
        optimizer.zero_grad()
        made.network.loss(data, step).total.backward()  # type: ignore[operator]
        optimizer.step()
    made.eval()
    with torch.no_grad():
        sampled = made.network.sample(data.observation, torch.Generator().manual_seed(0))  # type: ignore[operator]
    first = sampled.mean((1, 2))
    assert 0.5 < float(first.abs().mean()) < 1.5
    assert 0.1 < float((first > 0).float().mean()) < 0.9


def _autoregressive() -> tuple[ImitationPolicy, AutoregressiveTransformer, ChunkBatch]:
    made = policy("autoregressive").eval()
    assert isinstance(made.network, AutoregressiveTransformer)
    data = batch(size=12)
    whole = ~data.is_pad.any(1)
    values = {
        name: getattr(data, name) for name in ("state", "environment", "action", "is_pad", "has_action")
    }
    assert data.environments is not None
    return (
        made,
        made.network,
        ChunkBatch(
            **{name: value[whole] for name, value in values.items()},
            image=None,
            task=data.task[whole],
            seeds=tuple(range(int(whole.sum()))),
            environments=data.environments[whole],
        ),
    )


def test_a_rollout_with_memory_equals_the_window_of_training() -> None:
    made, net, data = _autoregressive()
    assert data.environments is not None
    z = made.statistics.normalise_batch(data)
    label: list[torch.Tensor] = []
    net.head.register_forward_hook(lambda module, inputs, output: label.append(output))
    net.loss(z, 0)
    expected = made.statistics.executable(label[0])
    memory = Memory(len(data), steps=C - 1)
    for t in range(C):
        seen = replace(
            data.observation,
            state=data.state[:, t],
            environment=data.environments[:, t],
            history=memory.history(),
        )
        torch.testing.assert_close(made.act(seen)[:, 0], expected[:, t], atol=1e-5, rtol=1e-4)
        memory.remember(seen, data.action[:, t])


def test_actions_do_not_see_later_steps_nor_themselves() -> None:
    made, net, data = _autoregressive()
    z = made.statistics.normalise_batch(data)
    found: list[torch.Tensor] = []
    net.head.register_forward_hook(lambda module, inputs, output: found.append(output.detach()))
    net.loss(z, 0)
    later = replace(z, state=z.state.clone(), action=z.action.clone())
    later.state[:, 3:] += 1
    later.action[:, 2:] += 1
    net.loss(later, 0)
    torch.testing.assert_close(found[0][:, :3], found[1][:, :3])
    assert not torch.allclose(found[0][:, 3:], found[1][:, 3:])


def test_windows_that_do_not_fit_are_named() -> None:
    made, net, data = _autoregressive()
    z = made.statistics.normalise_batch(data)
    with pytest.raises(ObservationError, match="environment_sequence=True"):
        net.loss(replace(z, environments=None), 0)
    with pytest.raises(ObservationError, match=f"the window {C}: give horizon={C}"):
        net.loss(replace(z, state=z.state[:, :2]), 0)
    count = len(data)
    past = History(
        state=torch.zeros(count, C, 3),
        environment=torch.zeros(count, C, 4),
        image=None,
        action=torch.zeros(count, C, DA),
        count=torch.zeros(count, dtype=torch.int64),
    )
    with pytest.raises(ObservationError, match=f"at most {C - 1} earlier ones"):
        made.act(replace(data.observation, history=past))


@pytest.mark.parametrize(
    ("backbone", "channels", "cells"),
    [
        (SmallCNN(width=8), 32, 4),
        (ConvNet(image_size=(32, 32), width=4), 32, 64),
        (ResNet18(stem="imagenet", width=4), 32, 1),
    ],
)
def test_image_tokens_of_all_convolutional_networks(backbone: nn.Module, channels: int, cells: int) -> None:
    vision = ImageTokens(backbone=backbone, channels=channels, dim=16).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    tokens = vision(images)
    assert tokens.shape == (2, cells, 16)
    maps = vision.project(vision.feature_map(images))
    expected = maps.flatten(2).transpose(1, 2) + map_positions(16, *maps.shape[2:])
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(vision(images.float() / 255), tokens)


def test_frozen_image_networks_stay_as_they_are() -> None:
    backbone = ResNet18(width=4)
    vision = ImageTokens(backbone=backbone, channels=32, dim=16, frozen=True).train()
    before = [b.clone() for b in backbone.buffers()]
    vision(torch.rand(2, 3, 16, 16)).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, backbone.buffers(), strict=True))
    assert all(p.grad is None for p in backbone.parameters())
    assert vision.project.weight.grad is not None
    with pytest.raises(ValueError, match="neither feature_map nor stages"):
        ImageTokens(backbone=MLPEncoder(4, (4, 4)), channels=4, dim=4)
