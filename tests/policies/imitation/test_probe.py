"""Probes: known answers are found, scores follow their formulas, and what is measured is left alone."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from policies.imitation.batches import ChunkBatch, PolicyObservation
from policies.imitation.policy import ImitationPolicy
from policies.imitation.probe import ProbeConfig, ProbeResult, ProbeScore, probe, read_memories
from policies.imitation.transfer import transferred
from tests.policies.imitation.toys import ARMS, C, batch, batches, interface, policy, statistics

QUICK = ProbeConfig(budgets=(10, 80), dim=16, layers=1, heads=2, hidden=32, batch_size=32, lr=1e-2)


class Transparent(nn.Module):
    """A network whose memory is the observation itself, or nothing."""

    def __init__(self, *, blind: bool = False) -> None:
        super().__init__()
        self.blind = blind

    def memory(self, observation: PolicyObservation) -> torch.Tensor:
        assert observation.environment is not None
        seen = torch.cat([observation.state, observation.environment], 1).unsqueeze(1)
        return torch.zeros_like(seen) if self.blind else seen


def transparent(*, blind: bool = False) -> ImitationPolicy:
    return ImitationPolicy(network=Transparent(blind=blind), statistics=statistics(), interface=interface())


def foreseeable(data: Sequence[ChunkBatch]) -> list[ChunkBatch]:
    """States that go on as a linear function of the observation."""
    result = []
    for b in data:
        assert b.environment is not None
        ahead = torch.arange(C).view(1, -1, 1) / C
        states = b.state[:, :1] + ahead * (b.environment[:, None, :3] - b.state[:, :1])
        result.append(replace(b, state=states))
    return result


def test_a_probe_finds_what_the_memory_holds_and_nothing_in_an_empty_one() -> None:
    training, heldout = foreseeable(batches()), foreseeable(batches(first=2))
    found = probe(transparent(), training=training, heldout=heldout, config=QUICK)
    nothing = probe(transparent(blind=True), training=training, heldout=heldout, config=QUICK)
    assert found.scores[-1].rmse < 0.5 * found.mean.rmse
    assert found.scores[-1].rmse < found.scores[0].rmse
    assert nothing.scores[-1].rmse == pytest.approx(nothing.mean.rmse, rel=0.15)
    assert [s.steps for s in found.scores] == [10, 80]


def test_scores_follow_their_formulas() -> None:
    made = transparent()
    training, heldout = batches(), batches(first=50)
    result = probe(made, training=training, heldout=heldout, config=replace(QUICK, budgets=(1,)))
    z = [made.statistics.normalise_batch(b) for b in heldout]
    state = torch.cat([b.state for b in z])
    valid = ~torch.cat([b.is_pad for b in z])
    error = (state[:, :1] - state)[valid]
    raw = error * made.statistics.state_std
    still = result.persistence
    assert still is not None
    assert still.rmse == pytest.approx(float(error.square().mean().sqrt()), rel=1e-5)
    assert still.ate == pytest.approx(float(error.norm(dim=1).mean()), rel=1e-5)
    assert still.l1 == pytest.approx(float(error.abs().mean()), rel=1e-5)
    assert still.rmse_raw == pytest.approx(float(raw.square().mean().sqrt()), rel=1e-5)
    assert still.ate_raw == pytest.approx(float(raw.norm(dim=1).mean()), rel=1e-5)
    known = [made.statistics.normalise_batch(b) for b in training]
    states, there = torch.cat([b.state for b in known]), ~torch.cat([b.is_pad for b in known])
    mean = torch.stack([states[there[:, k], k].mean(0) for k in range(C)])
    assert result.mean.rmse == pytest.approx(float((mean - state)[valid].square().mean().sqrt()), rel=1e-4)
    spread = (mean - states)[there].square().mean().sqrt()
    assert result.mean.train_rmse == pytest.approx(float(spread), rel=1e-4)


@pytest.mark.parametrize("arm", ARMS)
def test_the_encoder_is_shown_the_current_step_alone(arm: str) -> None:
    made, now = policy(arm), batch(arm)
    later = replace(now, state=now.state.clone(), action=now.action + 1)
    later.state[:, 1:] += 1
    one, other = (read_memories(made, [b], what="state") for b in (now, later))
    assert torch.equal(one.memory, other.memory)
    assert not torch.equal(one.label, other.label)


@pytest.mark.parametrize("arm", ["act_jepa", "image", "shared"])
def test_a_probe_leaves_the_policy_bit_identical_and_in_its_mode(arm: str) -> None:
    made, state = policy(arm).train(), torch.get_rng_state()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    grads = [p.requires_grad for p in made.parameters()]
    probe(made, training=[batch(arm)], heldout=[batch(arm)], config=replace(QUICK, budgets=(2,)))
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())
    assert [p.requires_grad for p in made.parameters()] == grads
    assert made.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in made.parameters())


def test_a_probe_is_a_function_of_its_seed() -> None:
    made, data = policy("act"), [batch()]
    config = replace(QUICK, budgets=(5,))
    scores = [probe(made, training=data, heldout=data, config=config, seed=s).scores for s in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]


def test_padded_steps_are_not_learned() -> None:
    made, data = transparent(), batch()
    spoiled = replace(data, state=torch.where(data.is_pad.unsqueeze(-1), 1e6, data.state))
    config = replace(QUICK, budgets=(20,))
    one, other = (probe(made, training=[b], heldout=[b], config=config).scores for b in (data, spoiled))
    assert one == other


def test_actions_are_transferred_to_a_policy_that_acts() -> None:
    made = policy("act_jepa")
    training, heldout = batches(), batches(first=2)
    result = probe(made, training=training, heldout=heldout, what="action", config=QUICK)
    assert result.persistence is None
    assert result.scores[-1].l1 < result.mean.l1
    acting = transferred(made, result.decoder)
    seen = heldout[0].observation
    made.eval()
    memory = made.network.memory(made.statistics.normalise(seen))  # type: ignore[operator]
    expected = made.statistics.executable(result.decoder(memory))
    torch.testing.assert_close(acting.act(seen), expected)
    monitors = acting.monitors(heldout)
    assert monitors["action_l1"] == pytest.approx(result.scores[-1].l1, rel=1e-3)
    with pytest.raises(RuntimeError, match="not trained"):
        acting.training_step(heldout[0], 0)


def test_convergence_is_told_by_the_last_two_budgets() -> None:
    def scored(*errors: float) -> ProbeResult:
        scores = [
            ProbeScore(steps=i, rmse=e, ate=e, l1=e, rmse_raw=e, ate_raw=e, train_rmse=e)
            for i, e in enumerate(errors, start=1)
        ]
        decoder = probe(
            transparent(), training=[batch()], heldout=[batch()], config=replace(QUICK, budgets=(1,))
        ).decoder
        return ProbeResult(scores=tuple(scores), mean=scores[0], persistence=None, decoder=decoder)

    assert scored(0.5, 0.3, 0.297).converged()
    assert not scored(0.5, 0.3, 0.28).converged()
    assert not scored(0.3).converged()


def test_bad_settings() -> None:
    for budgets in ((), (0,), (5, 5), (5, 2)):
        with pytest.raises(ValueError, match="increasing"):
            ProbeConfig(budgets=budgets)
    with pytest.raises(ValueError, match="state or action"):
        read_memories(policy("act"), [batch()], what="reward")  # type: ignore[arg-type]


def test_only_the_columns_asked_for_are_read() -> None:
    made = transparent()
    whole, part = (read_memories(made, batches(), what="state", columns=c) for c in (None, 2))
    assert torch.equal(part.label, whole.label[..., :2])
    assert torch.equal(part.std, whole.std[:2])
    config = replace(QUICK, budgets=(1,), columns=2)
    assert (
        probe(made, training=batches(), heldout=batches(first=50), config=config).decoder.head.out_features
        == 2
    )


def test_scores_in_the_units_of_others() -> None:
    """Twice the standard deviation halves every z-score, whatever the policy itself normalises with."""
    made, other = transparent(), statistics()
    other.state_std.mul_(2)
    config = replace(QUICK, budgets=(1,))
    mine, theirs = (
        probe(made, training=batches(), heldout=batches(first=50), config=config, units=units).persistence
        for units in (None, other)
    )
    assert mine is not None
    assert theirs is not None
    assert theirs.rmse == pytest.approx(mine.rmse / 2, rel=1e-5)
    assert theirs.rmse_raw == pytest.approx(mine.rmse_raw, rel=1e-5)
