"""The JEPA dynamics model: each loss term against a formula, rollouts, collapse, two processes."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process
from worldmodel.batches import EpisodeBatch, LatentState
from worldmodel.conformance import check_world_model
from worldmodel.jepa_dynamics import (
    DynamicsModel,
    DynamicsWeights,
    GoalCode,
    JEPADynamics,
)
from worldmodel.nn.dynamics import RecurrentPredictor, ResidualPredictor
from worldmodel.nn.mlp import MLPEncoder
from worldmodel.nn.patch_map import ConvPredictor, PatchMap
from worldmodel.planning import GoalCost
from worldmodel.protocols import RepresentationCollapse, Task, WorldModel
from worldmodel.sigreg import SIGReg

D, A, C = 5, 2, 3


def task(*, predictor: str = "residual", code: bool = True, **weights: float) -> JEPADynamics:
    torch.manual_seed(0)
    makers = {"residual": ResidualPredictor, "recurrent": RecurrentPredictor}
    model = DynamicsModel(
        encoder=MLPEncoder(6, (16, D)),
        predictor=makers[predictor](D, A, hidden=8),
        action_scale=torch.tensor([2.0, 0.5]),
        goal_code=GoalCode(D, C) if code else None,
    )
    sigreg = SIGReg(num_slices=8) if weights.get("sigreg") else None
    return JEPADynamics(
        model=model,
        dim=D,
        action_dim=A,
        code_dim=C if code else None,
        weights=DynamicsWeights(**weights),
        sigreg=sigreg,
    ).double()


def episodes(count: int = 8, steps: int = 4, seed: int = 0) -> EpisodeBatch:
    draw = torch.Generator().manual_seed(seed)
    return EpisodeBatch(
        observations=torch.randn(count, steps, 6, generator=draw, dtype=torch.float64),
        actions=torch.randn(count, steps - 1, A, generator=draw, dtype=torch.float64),
        seeds=tuple(range(count)),
    )


@pytest.mark.parametrize("predictor", ["residual", "recurrent"])
def test_it_is_a_world_model(predictor: str) -> None:
    made = task(predictor=predictor).eval()
    assert isinstance(made, Task)
    assert isinstance(made.model, WorldModel)
    check_world_model(made.model, episodes(), tolerance=1e-9)


def test_goals_are_compared_in_the_goal_code() -> None:
    made = task().eval()
    goals = episodes().observations[:, 0]
    cost = GoalCost.from_observations(made.model, goals, reduce="last")
    latents = torch.randn(8, 4, 3, D).double()
    values = cost(latents, torch.zeros(8, 4, 3, A))
    codes = made.model.goal_code(latents[:, :, -1].flatten(0, 1)).unflatten(0, (8, 4))
    wanted = made.model.goal_code(made.model.encode(goals[:, None])[:, 0])
    torch.testing.assert_close(values, (codes - wanted[:, None]).square().mean(-1).to(values.dtype))


def test_actions_are_scaled_once() -> None:
    model = task().model.eval()
    z, action = torch.randn(3, D).double(), torch.randn(3, A).double()
    expected = model.predictor(z, action / torch.tensor([2.0, 0.5]).double())
    torch.testing.assert_close(model.step(z, action), expected)
    state = LatentState(latents=z.unsqueeze(1), actions=action[:, None][:, :0])
    torch.testing.assert_close(model.rollout(state, action.unsqueeze(1))[:, 0], expected)


@pytest.mark.parametrize("code", [True, False])
def test_every_term_of_the_loss_against_its_formula(code: bool) -> None:
    made = task(
        code=code,
        variance=3.0,
        covariance=2.0,
        code_covariance=0.5,
        smoothness=7.0,
        inverse=4.0,
        one_step=0.25,
        sigreg=0.1,
    )
    batch = episodes()
    loss = made.training_step(batch, 5)
    z = made.model.encode(batch.observations)
    first, guesses = z[:, 0], []
    for t in range(3):
        first = made.model.step(first, batch.actions[:, t])
        guesses.append(first)
    prediction = (torch.stack(guesses, 1) - z[:, 1:]).square().mean()
    forced = torch.stack([made.model.step(z[:, t], batch.actions[:, t]) for t in range(3)], 1)
    one_step = (forced - z[:, 1:]).square().mean()
    stds = torch.stack([(z[:, t].var(0) + 1e-4).sqrt() for t in range(4)])
    variance = torch.relu(1 - stds).mean()

    def off_diagonal(features: torch.Tensor) -> torch.Tensor:
        covariances = [torch.cov(features[:, t].T) for t in range(4)]
        return torch.stack([(c - c.diag().diag()).square().sum() / len(c) for c in covariances]).mean()

    covariance = off_diagonal(z)
    q = made.model.goal_code(z.flatten(0, 1)).unflatten(0, (8, 4)) if code else z
    code_covariance = off_diagonal(q)
    smoothness = q.diff(dim=1).square().mean()
    read = made.inverse(torch.cat([q[:, :-1], q[:, 1:]], -1))
    inverse = (read - batch.actions / torch.tensor([2.0, 0.5])).square().mean()
    sigreg = torch.stack([SIGReg(num_slices=8)(z.transpose(0, 1), step=5)]).mean()
    expected = (
        prediction
        + 0.25 * one_step
        + 3 * variance
        + 2 * covariance
        + 0.5 * code_covariance
        + 7 * smoothness
        + 4 * inverse
        + 0.1 * sigreg
    )
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.parts["loss/covariance"], covariance)


def test_terms_of_weight_zero_are_not_computed() -> None:
    loss = task(covariance=0, code_covariance=0, smoothness=0, inverse=0, one_step=0).training_step(
        episodes(), 0
    )
    assert loss.parts.keys() == {"loss/prediction", "loss/variance"}


def test_monitors_compare_with_copying_at_every_horizon() -> None:
    made = task().eval()
    values = made.monitors([episodes(16), episodes(16, seed=1)])
    assert {"copy_last_ratio_1", "copy_last_ratio_3", "rankme", "std"} <= values.keys()
    for parameter in made.model.predictor.change[-1].parameters():  # type: ignore[union-attr]
        nn.init.zeros_(parameter)
    assert made.monitors([episodes(16)])["copy_last_ratio_2"] == pytest.approx(1.0)


def test_monitors_also_tell_the_error_with_the_running_statistics() -> None:
    made, batch = task().train(), episodes(16)
    stored = {name: value.clone() for name, value in made.state_dict().items()}
    off = made.monitors([batch])  # nothing was trained: running statistics are still 0 and 1
    assert all(torch.equal(value, stored[name]) for name, value in made.state_dict().items())
    assert off["copy_last_ratio_raw_1"] != pytest.approx(off["copy_last_ratio_1"], rel=1e-3)
    norms = [m for m in made.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # plain averages, of this batch alone
    made.model.encode(batch.observations)
    fitting = made.monitors([batch])
    for h in (1, 2, 3):
        assert fitting[f"copy_last_ratio_{h}"] == pytest.approx(off[f"copy_last_ratio_{h}"])
        assert fitting[f"copy_last_ratio_raw_{h}"] == pytest.approx(fitting[f"copy_last_ratio_{h}"])


def test_a_collapse_is_an_error() -> None:
    made = task().eval()
    made.model.encoder.layers[-1] = nn.Identity()  # type: ignore[union-attr,operator]
    nn.init.zeros_(made.model.encoder.layers[-2].weight)  # type: ignore[union-attr,index]
    with pytest.raises(RepresentationCollapse, match="collapsed"):
        made.monitors([episodes(16)])


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="collapse to one"):
        task(variance=0.0)
    with pytest.raises(ValueError, match="needs the statistic"):
        JEPADynamics(model=task().model, dim=D, action_dim=A, weights=DynamicsWeights(sigreg=1.0))
    with pytest.raises(ValueError, match="scale must be positive"):
        DynamicsModel(encoder=nn.Identity(), predictor=nn.Identity(), action_scale=torch.zeros(2))


WEIGHTS = {"sigreg": 0.1}


def _loss(parameters: Sequence[torch.Tensor], batch: EpisodeBatch) -> torch.Tensor:
    made = task(**WEIGHTS)
    made.forward = lambda b: made.training_step(b, 0).total  # type: ignore[method-assign,assignment]
    names = [name for name, _ in made.named_parameters()]
    return functional_call(made, dict(zip(names, parameters, strict=True)), (batch,))


def test_two_processes_equal_one(two_processes: TwoProcesses) -> None:
    whole = episodes(12)
    shares: list[Any] = [
        EpisodeBatch(observations=whole.observations[s], actions=whole.actions[s], seeds=whole.seeds[s])
        for s in (slice(0, 5), slice(5, 12))
    ]
    parameters = [p.detach() for p in task(**WEIGHTS).parameters()]
    assert_equals_one_process(
        two_processes, _loss, parameters=parameters, shares=shares, joined=whole, atol=1e-11
    )


def test_predictions_count_for_nothing_at_first_where_they_ramp() -> None:
    batch = episodes()
    made = task(prediction=2.0, one_step=3.0, ramp=4)
    parts = made.training_step(batch, 0).parts
    predicted = float(2 * parts["loss/prediction"] + 3 * parts["loss/one_step"])
    totals = [float(made.training_step(batch, step).total.detach()) for step in (0, 1, 3, 9)]
    assert totals[1] - totals[0] == pytest.approx(predicted / 4)
    assert totals[2] - totals[0] == pytest.approx(predicted * 3 / 4)
    assert totals[3] == pytest.approx(totals[2])


@pytest.mark.parametrize("code", [True, False])
def test_maps_of_codes_train_with_and_without_a_goal_code(code: bool) -> None:
    torch.manual_seed(0)
    model = DynamicsModel(
        encoder=PatchMap(image_size=(10, 15), in_channels=1, embed_dim=4, hidden=8),
        predictor=ConvPredictor(4, A, hidden=6),
        action_scale=torch.ones(A),
        goal_code=GoalCode(24, C) if code else None,
    )
    made = JEPADynamics(model=model, dim=24, action_dim=A, code_dim=C if code else None)
    draw = torch.Generator().manual_seed(0)
    batch = EpisodeBatch(
        observations=torch.rand(6, 3, 1, 10, 15, generator=draw),
        actions=torch.randn(6, 2, A, generator=draw),
        seeds=tuple(range(6)),
    )
    loss = made.training_step(batch, 0)
    loss.total.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in made.parameters())
    assert made.eval().monitors([batch])["copy_last_ratio_2"] > 0
    check_world_model(made.model, EpisodeBatch(
        observations=torch.rand(3, 5, 1, 10, 15), actions=torch.randn(3, 4, A), seeds=(0, 1, 2)
    ))  # fmt: skip
    cost = GoalCost.from_observations(made.model, batch.observations[:, 0], reduce="min")
    assert cost(torch.rand(6, 2, 3, 4, 2, 3), torch.zeros(6, 2, 3, A)).shape == (6, 2)
