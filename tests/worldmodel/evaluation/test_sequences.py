"""Frozen features: nothing of the model moves, every length is read from one encoding."""

import pytest
import torch
from torch import nn

from tests.worldmodel.evaluation.toy import Turned
from worldmodel.evaluation.rotations import relative
from worldmodel.evaluation.sequences import (
    SequenceFeatures,
    aggregated,
    draw_sequences,
    encode_sequences,
    frozen,
    mean_pooled,
)
from worldmodel.nn.batch_norm import SyncedBatchNorm1d
from worldmodel.seq_jepa import SeqWorldModel


def world_model() -> SeqWorldModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(5, 8), SyncedBatchNorm1d(8), nn.Dropout(0.5))
        return SeqWorldModel(
            encoder=encoder,
            embed_dim=8,
            action_dim=4,
            action_embed=4,
            hidden=8,
            layers=1,
            heads=2,
            dropout=0.5,
        )


def features(count: int = 20, steps: int = 4) -> SequenceFeatures:
    sequences = draw_sequences(Turned(), steps=steps, count=count, seed=0)
    return encode_sequences(world_model().encoder, sequences, batch_size=7)


def test_drawing_is_a_function_of_the_seed_and_labels_belong_to_their_views() -> None:
    a, b = (draw_sequences(Turned(), steps=4, count=70, seed=3) for _ in range(2))
    assert torch.equal(a.observations, b.observations)
    assert not torch.equal(a.observations, draw_sequences(Turned(), steps=4, count=70, seed=4).observations)
    poses = a.labels["rotation"]
    torch.testing.assert_close(relative(poses[:, 1], poses[:, 2]), a.actions[:, 1], atol=1e-6, rtol=0)
    assert len(a.labels["class"].bincount()) == 3


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_bit_identical_in_its_own_mode(training: bool) -> None:
    model = world_model().train(training)
    model.encoder.eval()  # modes of parts are kept too
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sequences = draw_sequences(Turned(), steps=4, count=20, seed=0)
    f = encode_sequences(model.encoder, sequences)
    aggregated(model, f.z, f.actions)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training is training
    assert not model.encoder.training


def test_features_are_those_of_eval_mode_whatever_the_batch() -> None:
    model = world_model().train()
    sequences = draw_sequences(Turned(), steps=3, count=20, seed=0)
    a, b = (encode_sequences(model.encoder, sequences, batch_size=n) for n in (7, 60))
    torch.testing.assert_close(a.z, b.z)
    direct = model.eval().encode(sequences.observations)
    torch.testing.assert_close(a.z, direct)
    one, two = (aggregated(model, a.z, a.actions, batch_size=n) for n in (3, 20))
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(one, model.aggregate(direct, a.actions), atol=1e-5, rtol=1e-5)
    assert not a.z.requires_grad


def test_a_probe_that_moves_statistics_is_an_error() -> None:
    norm = nn.BatchNorm1d(3)

    def trains_while_measured() -> None:
        with frozen(norm):
            norm.train()(torch.randn(4, 3))

    with pytest.raises(RuntimeError, match="BatchNorm"):
        trains_while_measured()


def test_modes_come_back_after_an_error() -> None:
    model = world_model().train()

    def fails() -> None:
        with frozen(model):
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert model.training


def test_mean_pooling_and_first() -> None:
    f = features()
    torch.testing.assert_close(mean_pooled(f.z, 2), (f.z[:, 0] + f.z[:, 1]) / 2)
    assert torch.equal(mean_pooled(f.z, 1), f.z[:, 0])
    few = f.first(5)
    assert (len(few.z), len(few.actions), len(few.labels["class"])) == (5, 5, 5)
    with pytest.raises(ValueError, match="longer sequences"):
        mean_pooled(f.z, 5)
