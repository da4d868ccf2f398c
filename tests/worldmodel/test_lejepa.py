"""LeJEPA's total loss: the pure terms at both ends of lambda, plain loops, and two processes."""

from collections.abc import Sequence

import pytest
import torch

from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process
from worldmodel.lejepa import LeJEPA, additive_weight, convex_weight, multi_view_prediction
from worldmodel.objectives import Loss
from worldmodel.regularizers import SIGReg


def some_views(seed: int = 0) -> torch.Tensor:
    """[4 views, 12 samples, 6 features]."""
    return torch.randn(4, 12, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_lambda_zero_is_the_prediction_and_lambda_one_is_sigreg() -> None:
    views, sigreg = some_views(), SIGReg(num_slices=16)
    prediction = multi_view_prediction(views, global_views=2).total
    none, all_of_it = (
        LeJEPA(sigreg=sigreg, weight=w).multi_view(views, global_views=2, step=3) for w in (0.0, 1.0)
    )
    torch.testing.assert_close(none.total, prediction)
    torch.testing.assert_close(all_of_it.total, sigreg(views, step=3))
    some = LeJEPA(sigreg=sigreg, weight=0.3).multi_view(views, global_views=2, step=3)
    torch.testing.assert_close(some.total, 0.7 * prediction + 0.3 * sigreg(views, step=3))
    torch.testing.assert_close(some.parts["loss/prediction"], prediction)
    torch.testing.assert_close(
        some.parts["loss/sigreg_over_floor"], sigreg(views, step=3) / sigreg.floor, atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("global_views", [1, 2, 4])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_prediction_against_a_loop(global_views: int, reduction: str) -> None:
    views = some_views()
    total = 0.0
    for n in range(12):
        centre = sum(views[v, n] for v in range(global_views)) / global_views
        for v in range(4):
            square = (views[v, n] - centre).square()
            total += float(square.mean() if reduction == "mean" else square.sum())
    value = multi_view_prediction(views, global_views=global_views, reduction=reduction).total  # type: ignore[arg-type]
    assert float(value) == pytest.approx(total / 48, rel=1e-12)


def test_bf16_views_are_upcast() -> None:
    views = some_views().bfloat16()
    torch.testing.assert_close(
        multi_view_prediction(views, global_views=2).total,
        multi_view_prediction(views.float(), global_views=2).total,
        atol=0,
        rtol=1e-6,
    )


def test_the_reduction_over_features_is_passed_on() -> None:
    views, loss = some_views(), LeJEPA(sigreg=SIGReg(num_slices=4), weight=0.0)
    mean, total = (
        loss.multi_view(views, global_views=2, step=0, reduction=r).total
        for r in ("mean", "sum")  # type: ignore[arg-type]
    )
    torch.testing.assert_close(total, 6 * mean)


def test_equation_5_is_not_equation_6() -> None:
    """mean_v |z_v - z'|^2 exceeds |mu - z'|^2 by the spread of the global views: pairs are not the centre."""
    views = some_views()
    mu = views.mean(0)
    pairs = torch.stack([(views[v] - views).square().sum(-1).mean() for v in range(4)]).mean()
    centre = multi_view_prediction(views, global_views=4, reduction="sum").total
    torch.testing.assert_close(pairs, centre + (views - mu).square().sum(-1).mean())


def test_every_embedding_has_directions_of_its_own() -> None:
    z, sigreg = some_views()[0], SIGReg(num_slices=4)
    loss = LeJEPA(sigreg=sigreg, weight=1.0)(prediction=Loss(z.sum()), embeddings=[z, z], step=5)
    torch.testing.assert_close(loss.total, (sigreg(z, step=10) + sigreg(z, step=11)) / 2)


def test_what_is_logged_does_not_depend_on_the_scaling() -> None:
    views = some_views()
    scaled, plain = (
        LeJEPA(sigreg=SIGReg(num_slices=8, scale_by_n=flag)).multi_view(views, global_views=4, step=0)
        for flag in (True, False)
    )
    name = "loss/sigreg_over_floor"
    torch.testing.assert_close(scaled.parts[name], plain.parts[name])
    assert float(scaled.total) > float(plain.total)


@pytest.mark.parametrize(
    ("convex", "additive"), [(0.01, 0.0101), (0.02, 0.0204), (0.05, 0.0526), (0.1, 0.1111)]
)
def test_conversion_of_lambda(convex: float, additive: float) -> None:
    assert additive_weight(convex) == pytest.approx(additive, abs=5e-5)
    assert convex_weight(additive_weight(convex)) == pytest.approx(convex)


def test_converted_lambdas_have_proportional_gradients() -> None:
    z, sigreg = some_views().requires_grad_(), SIGReg(num_slices=8)
    weight = 0.2
    (one,) = torch.autograd.grad(
        LeJEPA(sigreg=sigreg, weight=weight).multi_view(z, global_views=4, step=0).total, z
    )
    other = multi_view_prediction(z, global_views=4).total + additive_weight(weight) * sigreg(z, step=0)
    torch.testing.assert_close(one, (1 - weight) * torch.autograd.grad(other, z)[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LeJEPA(sigreg=SIGReg(), weight=1.5), "lambda"),
        (lambda: LeJEPA(sigreg=SIGReg(reduction="none")), "needs a scalar"),
        (lambda: LeJEPA(sigreg=SIGReg(sample_axis=0)), "has sample_axis 0"),
        (
            lambda: LeJEPA(sigreg=SIGReg())(prediction=Loss(torch.zeros(())), embeddings=[], step=0),
            "embeddings",
        ),
        (lambda: multi_view_prediction(torch.zeros(3, 4), global_views=1), r"views \[V, B, K\]"),
        (lambda: multi_view_prediction(torch.zeros(3, 4, 2), global_views=4), "1 to V global"),
        (lambda: multi_view_prediction(torch.zeros(3, 4, 2), global_views=0), "1 to V global"),
        (
            lambda: multi_view_prediction(torch.zeros(3, 4, 2), global_views=1, reduction="max"),  # type: ignore[arg-type]
            "mean or sum",
        ),
    ],
)
def test_errors(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def _multi_view(parameters: Sequence[torch.Tensor], views: torch.Tensor) -> torch.Tensor:
    loss = LeJEPA(sigreg=SIGReg(num_slices=16), weight=0.5)
    return loss.multi_view(views @ parameters[0], global_views=2, step=4).total


@pytest.mark.parametrize("sizes", [(6, 6), (1, 11), (0, 12)])
def test_over_two_processes(two_processes: TwoProcesses, sizes: tuple[int, int]) -> None:
    views = some_views()
    assert_equals_one_process(
        two_processes,
        _multi_view,
        parameters=[some_views(1)[0, :6]],
        shares=list(views.split(list(sizes), dim=1)),
        joined=views,
        atol=1e-13,
    )
