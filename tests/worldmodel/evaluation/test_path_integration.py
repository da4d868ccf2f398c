"""Path integration on translations, where the answer is the sum of the actions and every control has a closed form."""

import pytest
import torch
from torch import nn

from worldmodel.evaluation.heads import HeadConfig
from worldmodel.evaluation.path_integration import path_integration, path_integration_inputs
from worldmodel.evaluation.sequences import SequenceFeatures

CONFIG = HeadConfig(kind="linear", epochs=12, lr=0.05, batch_size=100)


class Summing(nn.Module):
    """Aggregates views and actions by their sums; an ideal path integrator."""

    def aggregate(self, z: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return torch.cat([z.sum(1), actions.sum(1)], dim=1)


class Blind(Summing):
    def aggregate(self, z: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(z), 3)


def walks(count: int, seed: int, steps: int = 5) -> tuple[SequenceFeatures, torch.Tensor]:
    """Independent steps in the plane, and z that sees nothing of them."""
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randn(count, steps - 1, 2, generator=generator)
    z = torch.randn(count, steps, 3, generator=generator)
    return SequenceFeatures(z=z, actions=actions, labels={}), actions


@pytest.mark.parametrize("views", [1, 2, 4])
def test_controls_have_their_closed_forms(views: int) -> None:
    (train, a), (test, b) = walks(800, 0), walks(800, 1)
    targets = (a[:, :views].sum(1), b[:, :views].sum(1))
    found = path_integration(
        Summing(),
        train=train,
        test=test,
        targets=targets,
        views=views,
        config=CONFIG,
        seed=0,
        untrained=Blind(),
    )
    assert found.full == pytest.approx(1, abs=0.02)
    assert found.vision_zeroed == pytest.approx(1, abs=0.02)
    assert found.actions_zeroed == pytest.approx(0, abs=0.1)
    # The last of `views` independent steps explains its share of the variance.
    assert found.last_action == pytest.approx(1 / views, abs=0.1)
    assert found.random_aggregator == pytest.approx(1 / views, abs=0.1)


def test_a_model_without_actions_gets_none_and_a_missing_control_is_none() -> None:
    (train, a), (test, b) = walks(400, 0), walks(400, 1)
    targets = (a[:, :2].sum(1), b[:, :2].sum(1))
    found = path_integration(
        Summing(), train=train, test=test, targets=targets, views=2, config=CONFIG, seed=0, actions=False
    )
    alone = path_integration(
        Summing(),
        train=train,
        test=test,
        targets=targets,
        views=2,
        config=CONFIG,
        seed=0,
        actions=False,
        controls=False,
    )
    assert (alone.full, alone.last_action) == (found.full, None)
    assert found.full == found.actions_zeroed == pytest.approx(0, abs=0.1)
    assert found.random_aggregator is None


def test_the_last_action_is_given_to_the_head_and_kept_from_the_aggregator() -> None:
    features, actions = walks(3, 0)
    inputs = path_integration_inputs(Summing(), features, views=3)
    torch.testing.assert_close(inputs[:, 3:5], actions[:, :2].sum(1))
    assert torch.equal(inputs[:, 5:], actions[:, 2])
    blind = path_integration_inputs(Summing(), features, views=3, vision=False)
    assert not bool(blind[:, :3].any())
    still = path_integration_inputs(Summing(), features, views=3, actions=False)
    assert not bool(still[:, 3:].any())
    assert torch.equal(features.actions, actions)


def test_errors() -> None:
    features, _ = walks(3, 0)
    with pytest.raises(ValueError, match="episodes of 6"):
        path_integration_inputs(Summing(), features, views=5)
