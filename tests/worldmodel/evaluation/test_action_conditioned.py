"""The whole protocol on turned discs: all numbers are there, and the ones known beforehand are right."""

import torch
from torch import nn

from tests.worldmodel.evaluation.toy import Turned
from worldmodel.evaluation.action_conditioned import (
    ProbeProtocol,
    aggregate_scores,
    encoder_scores,
    retrieval_scores,
)
from worldmodel.evaluation.heads import HeadConfig
from worldmodel.evaluation.sequences import draw_sequences, encode_sequences
from worldmodel.seq_jepa import SeqWorldModel

PROTOCOL = ProbeProtocol(
    classifier=HeadConfig(kind="linear", lr=1e-2, epochs=10, batch_size=64),
    regressor=HeadConfig(kind="mlp", hidden=32, lr=1e-2, epochs=12, batch_size=32),
    classified=(200, 100),
    regressed=(500, 100),
    lengths=(1, 2, 4),
    paths=(1, 2),
    pose_views=2,
)


def world_model(seed: int) -> SeqWorldModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SeqWorldModel(
            encoder=nn.Identity(), embed_dim=5, action_dim=4, action_embed=3, hidden=8, layers=1, heads=2
        )


def test_the_numbers_of_a_perfect_encoder() -> None:
    model, untrained = world_model(0), world_model(1)
    train, test = (
        encode_sequences(model.encoder, draw_sequences(Turned(), steps=PROTOCOL.steps, count=n, seed=s))
        for s, n in enumerate(PROTOCOL.regressed)
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = encoder_scores(train=train, test=test, classes=3, protocol=PROTOCOL, seed=0)
    assert scores["acc_mean/4"] > scores["acc_mean/1"] + 0.1  # noise of views averages out
    assert scores["r2_relative"] > 0.8
    assert scores["r2_absolute"] > 0.8
    assert scores["r2_absolute_vector"] > 0.8
    assert scores["degrees_absolute"] < 10 < scores["degrees_absolute_constant"]
    scores = aggregate_scores(
        model, untrained=untrained, train=train, test=test, classes=3, protocol=PROTOCOL, seed=0
    )
    assert scores["path/1/full"] > 0.9  # the target is the action the head is given
    assert scores["path/1/last_action"] > 0.9
    assert scores["path/2/last_action"] < 0.6
    assert {f"acc_aggregate/{m}" for m in (1, 2, 4)} <= scores.keys()
    whole = encode_sequences(model.encoder, draw_sequences(Turned(), steps=8, count=50, seed=2))
    found = retrieval_scores(model, whole, views=3)
    assert found["retrieval/candidates"] == 5
    assert found["retrieval/hit5"] == 1.0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_sequences_are_long_enough_for_all_that_is_measured() -> None:
    assert PROTOCOL.steps == 4
    assert ProbeProtocol().steps == 8
    assert ProbeProtocol(lengths=(1,), paths=(9,)).steps == 10
