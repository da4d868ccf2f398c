"""Typed batches: shapes are checked, states remember what they should."""

import pytest
import torch

from worldmodel.batches import EpisodeBatch, LatentState


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="go with actions"):
        EpisodeBatch(observations=torch.zeros(2, 3, 4), actions=torch.zeros(2, 3, 1), seeds=(0, 1))
    with pytest.raises(ValueError, match="go with actions"):
        EpisodeBatch(observations=torch.zeros(2, 3, 4), actions=torch.zeros(2, 2, 1), seeds=(0,))
    with pytest.raises(ValueError, match=r"must be \[B, T"):
        EpisodeBatch(observations=torch.zeros(2), actions=torch.zeros(2, 2, 1), seeds=(0, 1))
    with pytest.raises(ValueError, match=r"actions \[B, M - 1, A\]"):
        LatentState(latents=torch.zeros(2, 3, 4), actions=torch.zeros(2, 3, 1))


def test_first_steps_of_a_batch() -> None:
    batch = EpisodeBatch(observations=torch.rand(2, 5, 4), actions=torch.rand(2, 4, 1), seeds=(0, 1))
    short = batch.first(3).to("cpu")
    assert torch.equal(short.observations, batch.observations[:, :3])
    assert torch.equal(short.actions, batch.actions[:, :2])


def test_a_state_repeats_rows_and_keeps_its_window() -> None:
    state = LatentState(latents=torch.rand(2, 2, 3), actions=torch.rand(2, 1, 1))
    many = state.repeat(3)
    assert len(many) == 6
    assert torch.equal(many.latents[:3], state.latents[:1].expand(3, -1, -1))
    longer = state.append(torch.ones(2, 3), torch.ones(2, 1))
    assert longer.latents.shape[1] == 3
    kept = state.append(torch.ones(2, 3), torch.ones(2, 1), window=2)
    assert torch.equal(kept.latents[:, 0], state.latents[:, 1])
    assert torch.equal(kept.actions, torch.ones(2, 1, 1))
    alone = state.append(torch.ones(2, 3), torch.ones(2, 1), window=1)
    assert alone.latents.shape[1] == 1
    assert alone.actions.shape[1] == 0
