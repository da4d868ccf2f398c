"""check_world_model accepts models that keep the contract and names what others break."""

import pytest
import torch
from torch import nn

from tests.worldmodel.planning.test_agents import seq_world_model
from tests.worldmodel.planning.toys import Linear
from worldmodel.batches import EpisodeBatch, LatentState
from worldmodel.conformance import check_world_model
from worldmodel.nn.dynamics import Workspace

A = torch.tensor([[0.9, 0.1], [-0.1, 0.8]])


def batch(dim: int, action_dim: int, *, steps: int = 5) -> EpisodeBatch:
    g = torch.Generator().manual_seed(0)
    return EpisodeBatch(
        observations=torch.randn(3, steps, dim, generator=g),
        actions=torch.randn(3, steps - 1, action_dim, generator=g),
        seeds=(0, 1, 2),
    )


class Broken(Linear):
    """Linear dynamics with one thing wrong."""

    def __init__(self, fault: str = "") -> None:
        super().__init__(A, torch.eye(2))
        self.fault, self.calls = fault, 0

    def encode(self, observations: torch.Tensor) -> torch.Tensor:
        if self.fault == "shape":
            return observations[:, 1:]
        if self.fault == "time":
            return observations - observations.mean(1, keepdim=True)
        if self.fault == "stretches":
            return observations - observations.mean(0, keepdim=True)
        if self.fault == "nan":
            return observations * torch.nan
        return observations

    def rollout(self, state: LatentState, future: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        imagined = super().rollout(state, future + future.mean(0) if self.fault == "other rows" else future)
        if self.fault == "short":
            return imagined[:, :-1]
        if self.fault == "changed":
            state.latents.zero_()
        if self.fault == "random":
            return imagined + self.calls
        if self.fault == "one after another":
            return imagined * torch.arange(1, 1 + future.shape[1]).view(1, -1, 1)
        if self.fault == "later actions":
            return imagined + future[:, 1:].sum((1, 2))[:, None, None]
        if self.fault == "no gradient":
            return imagined.detach()
        if self.fault == "gradient":
            return imagined + torch.where(imagined > 1e9, imagined, torch.sqrt(imagined * 0))
        return imagined


class Together(Broken):
    """Candidates of an environment imagined together."""

    def rollout_candidates(
        self, state: LatentState, candidates: torch.Tensor, workspace: Workspace | None = None
    ) -> torch.Tensor:
        batch, count = candidates.shape[:2]
        imagined = self.rollout(state.repeat(count), candidates.flatten(0, 1)).unflatten(0, (batch, count))
        return imagined.flip(1) if self.fault == "mixed up" else imagined


def test_models_that_keep_the_contract_pass() -> None:
    check_world_model(Broken(), batch(2, 2))
    check_world_model(seq_world_model(), batch(6, 4))
    check_world_model(Together(), batch(2, 2))


def test_candidates_imagined_together_are_those_imagined_alone() -> None:
    with pytest.raises(ValueError, match="rollout_candidates: differs"):
        check_world_model(Together("mixed up"), batch(2, 2))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("shape", "must become float latents"),
        ("nan", "not finite"),
        ("time", "time steps"),
        ("stretches", "stretches"),
        ("short", "expected finite latents"),
        ("changed", "was changed"),
        ("random", "second call"),
        ("one after another", "one after another"),
        ("later actions", "one after another|later actions"),
        ("other rows", "other rows"),
        ("no gradient", "no gradient"),
        ("gradient", "missing or not finite"),
    ],
)
def test_what_breaks_the_contract_is_named(fault: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_world_model(Broken(fault), batch(2, 2))


def test_the_check_itself_asks_for_enough() -> None:
    with pytest.raises(ValueError, match="2 stretches of 4"):
        check_world_model(Broken(), batch(2, 2, steps=3))

    class Module(nn.Module):
        encode = Linear.encode
        rollout = Linear.rollout

    with pytest.raises(ValueError, match="eval"):
        check_world_model(Module(), batch(2, 2))


def test_a_wrong_window_is_noticed() -> None:
    with pytest.raises(ValueError, match="window"):
        check_world_model(seq_world_model(), batch(6, 4, steps=8), window=2)
