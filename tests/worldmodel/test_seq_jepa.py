"""seq-JEPA: what may see which action, permutations, rollouts, targets, two processes."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process
from worldmodel.batches import EpisodeBatch, LatentState
from worldmodel.lejepa import LeJEPA
from worldmodel.nn.mlp import MLPEncoder
from worldmodel.objectives import PredictionError
from worldmodel.protocols import RepresentationCollapse, Task, WorldModel
from worldmodel.regularizers import SIGReg
from worldmodel.seq_jepa import SeqJEPA, SeqWorldModel
from worldmodel.targets import EMATarget, SharedTarget

D, A, E = 8, 3, 4


def world_model(seed: int = 0, **options: Any) -> SeqWorldModel:
    """A small model in float64, without dropout."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"layers": 2, "heads": 2, "dropout": 0.0, "token_std": 0.02, "hidden": 16}
    return SeqWorldModel(
        encoder=MLPEncoder(6, (16, D)), embed_dim=D, action_dim=A, action_embed=E, **settings | options
    ).double()


def episodes(count: int = 8, steps: int = 5, seed: int = 0) -> EpisodeBatch:
    draw = torch.Generator().manual_seed(seed)
    return EpisodeBatch(
        observations=torch.randn(count, steps, 6, generator=draw, dtype=torch.float64),
        actions=torch.randn(count, steps - 1, A, generator=draw, dtype=torch.float64),
        seeds=tuple(range(count)),
    )


def teacher(model: SeqWorldModel, **options: Any) -> EMATarget:
    return EMATarget(model.encoder, momentum=0.9, schedule="cosine", **options)


def test_the_sizes_of_the_paper() -> None:
    """ResNet-18 width: aggregator 14.77 M and predictor 1.31 M parameters, 512 of the action embedding."""
    model = SeqWorldModel(encoder=nn.Identity(), embed_dim=512, action_dim=4)
    sizes = [
        sum(p.numel() for p in part.parameters())
        for part in (model.aggregator, model.predictor, model.action_embedding)
    ]
    assert sizes[0] == pytest.approx(14.77e6, abs=1e4)
    assert sizes[1] == pytest.approx(1.31e6, abs=1e4)
    assert sizes[2] == 512
    z, actions = torch.randn(2, 4, 512), torch.randn(2, 3, 4)
    aggregate = model.eval().aggregate(z, actions)
    assert aggregate.shape == (2, 640)
    assert model.predict(aggregate, torch.randn(2, 4)).shape == (2, 512)


def test_protocols() -> None:
    model = world_model()
    assert isinstance(model, WorldModel)
    assert isinstance(SeqJEPA(model=model, target=teacher(model)), Task)


@pytest.mark.parametrize("positions", ["none", "learned"])
def test_views_may_be_permuted_with_their_actions_only_without_positions(positions: str) -> None:
    model = world_model(positions=positions).eval()
    z, actions = torch.randn(2, 4, D).double(), torch.randn(2, 3, A).double()
    before = model.aggregate(z, actions)
    order = torch.tensor([2, 0, 1])
    permuted = model.aggregate(torch.cat([z[:, order], z[:, 3:]], 1), actions[:, order])
    assert torch.allclose(before, permuted, atol=1e-9) == (positions == "none")
    # The last view is told from the others: its action slot is empty.
    swapped = model.aggregate(z[:, [3, 1, 2, 0]], actions)
    assert not torch.allclose(before, swapped, atol=1e-3)


def test_the_next_action_reaches_the_predictor_and_never_the_aggregate() -> None:
    model = world_model()
    batch = episodes()
    batch.actions.requires_grad_()
    z = model.encode(batch.observations[:, :-1])
    aggregate = model.aggregate(z, batch.actions[:, :-1])
    (seen,) = torch.autograd.grad(aggregate.sum(), batch.actions, retain_graph=True)
    assert float(seen[:, -1].abs().max()) == 0.0
    assert float(seen[:, :-1].abs().min(dim=-1).values.max()) > 0
    prediction = model.predict(aggregate, batch.actions[:, -1])
    (used,) = torch.autograd.grad(prediction.square().sum(), batch.actions)
    assert float(used[:, -1].abs().max()) > 1e-6


@pytest.mark.parametrize(
    ("condition", "past", "next_one"),
    [
        ("both", True, True),
        ("aggregator", True, False),
        ("predictor", False, True),
        ("none", False, False),
    ],
)
def test_where_actions_enter(condition: str, past: bool, next_one: bool) -> None:
    model = world_model(condition=condition).eval()
    z, actions = torch.randn(2, 3, D).double(), torch.randn(2, 2, A).double()
    aggregate = model.aggregate(z, actions)
    assert torch.equal(aggregate, model.aggregate(z, actions + 1)) is not past
    assert (
        torch.equal(model.predict(aggregate, actions[:, 0]), model.predict(aggregate, actions[:, 1]))
        is not next_one
    )


def test_an_action_has_one_embedding_observed_or_upcoming() -> None:
    """No batch statistics in between: neither other samples nor other steps change it."""
    model = world_model().train()
    batch = episodes()
    before = model.action_embedding(batch.actions)
    torch.testing.assert_close(before[2:3, 1], model.action_embedding(batch.actions[2:3, 1]))
    assert [type(m) for m in model.action_embedding.modules()] == [nn.Linear]


def test_callers_tensors_are_left_alone() -> None:
    batch = episodes()
    before = copy.deepcopy(batch)
    for condition in ("both", "none"):
        model = world_model(condition=condition)
        SeqJEPA(model=model, target=teacher(model), views=4).training_step(batch, 0)
    assert torch.equal(batch.observations, before.observations)
    assert torch.equal(batch.actions, before.actions)


@pytest.mark.parametrize("window", [None, 2])
def test_rollout_of_many_steps_equals_many_rollouts_of_one(window: int | None) -> None:
    model = world_model(window=window).eval()
    z, actions, future = (torch.randn(2, n, d).double() for n, d in ((3, D), (2, A), (4, A)))
    state = LatentState(latents=z, actions=actions)
    whole = model.rollout(state, future)
    for h in range(4):
        (one,) = model.rollout(state, future[:, h : h + 1]).unbind(1)
        torch.testing.assert_close(whole[:, h], one)
        state = state.append(one, future[:, h], window=window)


def test_one_imagined_step_is_the_prediction_with_the_norm_of_the_latents() -> None:
    model = world_model().eval()
    z, actions, future = (torch.randn(5, n, d).double() for n, d in ((3, D), (2, A), (1, A)))
    z = 3.0 * nn.functional.normalize(z, dim=-1)
    (imagined,) = model.rollout(LatentState(latents=z, actions=actions), future).unbind(1)
    guess = model.predict(model.aggregate(z, actions), future[:, 0])
    torch.testing.assert_close(nn.functional.cosine_similarity(imagined, guess), torch.ones(5).double())
    torch.testing.assert_close(imagined.norm(dim=-1), torch.full((5,), 3.0).double())


def test_the_loss_is_one_minus_the_cosine_to_the_teacher() -> None:
    model = world_model()
    task = SeqJEPA(model=model, target=teacher(model), views=4)
    batch = episodes()
    loss = task.training_step(batch, 0).total
    aggregate = model.aggregate(model.encode(batch.observations[:, :4]), batch.actions[:, :3])
    guess = model.predict(aggregate, batch.actions[:, 3])
    goal = task.target.encoder(batch.observations[:, 4])  # type: ignore[operator,union-attr]
    torch.testing.assert_close(loss, 1 - nn.functional.cosine_similarity(guess, goal).mean())
    loss.backward()
    assert all(p.grad is None for p in task.target.parameters())
    assert all(p.grad is not None for p in model.parameters())


def test_views_are_drawn_per_step_and_alike_everywhere() -> None:
    model = world_model()
    task = SeqJEPA(model=model, target=teacher(model), views=(1, 4))
    seen: list[int] = []
    task.model.aggregate = lambda z, actions: (seen.append(z.shape[1]), torch.zeros(len(z), D + E).double())[
        1
    ]  # type: ignore[method-assign,assignment]
    for step in range(60):
        task.training_step(episodes(), step)
    again = list(seen)
    seen.clear()
    for step in range(60):
        task.training_step(episodes(seed=1), step)
    assert seen == again
    assert set(seen) == {1, 2, 3, 4}


def test_the_teacher_follows_with_the_context_encoders_buffers() -> None:
    model = world_model()
    task = SeqJEPA(model=model, target=teacher(model, copy_buffers=True), views=4)
    task.training_step(episodes(), 0)
    assert task.after_step(0, 10) == {"ema_momentum": pytest.approx(0.9)}
    for mine, its in zip(task.target.buffers(), model.encoder.buffers(), strict=True):
        assert torch.equal(mine, its)


def test_sigreg_takes_the_place_of_the_teacher() -> None:
    model = world_model()
    task = SeqJEPA(
        model=model,
        target=SharedTarget(),
        lejepa=LeJEPA(sigreg=SIGReg(num_slices=8), weight=0.5),
        error=PredictionError(kind="mse"),
        views=4,
    )
    loss = task.training_step(episodes(), 0)
    assert {"loss/prediction", "loss/sigreg_over_floor"} <= loss.parts.keys()
    assert task.after_step(0, 10) == {}
    with pytest.raises(ValueError, match="collapses"):
        SeqJEPA(model=model, target=SharedTarget())


def test_monitors_leave_the_model_bit_identical_and_name_the_chance_levels() -> None:
    model = world_model()
    task = SeqJEPA(model=model, target=teacher(model), views=4).eval()
    before = copy.deepcopy(task.state_dict())
    values = task.monitors([episodes(16), episodes(16, seed=1)])
    assert {"error", "error_shuffled", "error_copy", "copy_last_ratio", "z_std", "rankme"} <= values.keys()
    for name, value in task.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_collapse_is_an_error() -> None:
    model = world_model()
    task = SeqJEPA(model=model, target=teacher(model), views=4).eval()
    nn.init.zeros_(model.encoder.layers[-2].weight)
    model.encoder.layers[-1] = nn.Identity()
    with pytest.raises(RepresentationCollapse, match="collapsed"):
        task.monitors([episodes(16)])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"heads": 5}, "not a multiple of 5 heads"),
        ({"condition": "all"}, "condition is both"),
        ({"positions": "rope"}, "positions is none or learned"),
    ],
)
def test_bad_settings(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        world_model(**bad)


def test_bad_inputs() -> None:
    model = world_model(positions="learned", max_views=3).eval()
    with pytest.raises(ValueError, match="3 views have 2 actions"):
        model.aggregate(torch.randn(2, 3, D).double(), torch.randn(2, 3, A).double())
    with pytest.raises(ValueError, match="raise max_views"):
        model.aggregate(torch.randn(2, 4, D).double(), torch.randn(2, 3, A).double())
    task = SeqJEPA(model=model, target=teacher(model), views=3)
    with pytest.raises(ValueError, match="stretches of 4 observations, got 3"):
        task.training_step(episodes(steps=3), 0)
    with pytest.raises(ValueError, match="views must be"):
        SeqJEPA(model=model, target=teacher(model), views=(3, 2))


def _loss(parameters: Sequence[torch.Tensor], batch: EpisodeBatch) -> torch.Tensor:
    model = world_model()
    task = SeqJEPA(model=model, target=teacher(model), views=4)
    names = [name for name, p in task.named_parameters() if p.requires_grad]
    return functional_call(task, dict(zip(names, parameters, strict=True)), (batch, 0)).total


def _sigreg_loss(parameters: Sequence[torch.Tensor], batch: EpisodeBatch) -> torch.Tensor:
    task = SeqJEPA(
        model=world_model(), target=SharedTarget(), lejepa=LeJEPA(sigreg=SIGReg(num_slices=8)), views=4
    )
    names = [name for name, _ in task.named_parameters()]
    return functional_call(task, dict(zip(names, parameters, strict=True)), (batch, 0)).total


@pytest.mark.parametrize("loss", [_loss, _sigreg_loss])
def test_two_processes_equal_one(two_processes: TwoProcesses, loss: Any) -> None:
    whole = episodes(12)
    shares = [
        EpisodeBatch(observations=whole.observations[s], actions=whole.actions[s], seeds=whole.seeds[s])
        for s in (slice(0, 5), slice(5, 12))
    ]
    parameters = [p.detach() for p in world_model().parameters()]
    assert_equals_one_process(
        two_processes, loss, parameters=parameters, shares=shares, joined=whole, atol=1e-12
    )
