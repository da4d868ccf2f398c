"""Masked means and cosine distances against plain loops; the mean over two processes."""

from collections.abc import Sequence

import pytest
import torch

from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process
from worldmodel.objectives import Distance, Loss, PredictionError, cosine_distance, masked_mean, unit


def case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(6, 5, generator=generator) < torch.linspace(0.1, 0.9, 6).unsqueeze(1)
    return values, mask


def test_masked_mean_is_pooled_over_the_batch() -> None:
    values, mask = case()
    picked = [float(v) for v, m in zip(values.flatten(), mask.flatten(), strict=True) if m]
    assert float(masked_mean(values, mask)) == pytest.approx(sum(picked) / len(picked), abs=1e-14)


def test_masked_mean_ignores_nan_outside_the_mask() -> None:
    values, mask = case()
    spoilt = torch.where(mask, values, torch.nan).requires_grad_()
    mean = masked_mean(spoilt, mask)
    mean.backward()
    torch.testing.assert_close(mean.detach(), masked_mean(values, mask))
    torch.testing.assert_close(spoilt.grad, mask / mask.sum(dtype=torch.float64))


def test_masked_mean_of_nothing_is_zero() -> None:
    values, mask = case()
    assert float(masked_mean(values, torch.zeros_like(mask))) == 0.0


def test_masked_mean_of_bf16_is_computed_in_fp32() -> None:
    values = torch.full((4096,), 1.0, dtype=torch.bfloat16)
    mean = masked_mean(values, torch.arange(4096) < 4095)  # bf16 can count to 256 only
    assert mean.dtype == torch.float32
    assert float(mean) == 1.0


def test_cosine_distance() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(2, 7, 3, 4, generator=generator) for _ in range(2))
    expected = 1 - torch.cosine_similarity(a.double(), b.double(), dim=1)
    value = cosine_distance(prediction=unit(a), target=unit(b))
    torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(cosine_distance(prediction=unit(a), target=unit(a)), torch.zeros(2, 3, 4))
    assert cosine_distance(prediction=unit(a.bfloat16()), target=unit(b.bfloat16())).dtype == torch.float32


def test_unit_of_a_zero_vector_is_zero_with_a_finite_gradient() -> None:
    z = torch.zeros(1, 4, requires_grad=True)
    unit(z).sum().backward()
    assert not unit(z).any()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())


def test_weighted_loss_names_its_parts() -> None:
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0)
    loss = Loss.weighted({"a": (0.5, a), "b": (2.0, b)}, also={"c": torch.tensor(7.0)})
    assert float(loss.total.detach()) == 7.0
    assert {name: float(value) for name, value in loss.parts.items()} == {"a": 2.0, "b": 3.0, "c": 7.0}
    loss.total.backward()
    assert float(a.grad) == 0.5  # type: ignore[arg-type]
    assert not loss.parts["a"].requires_grad
    with pytest.raises(ValueError, match="each name once"):
        Loss.weighted({"a": (1.0, a)}, also={"a": b})
    with pytest.raises(ValueError, match="needs terms"):
        Loss.weighted({})


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["cosine", "mse", "l1", "smooth_l1"])
@pytest.mark.parametrize("dim", [-1, 1])
def test_prediction_error_against_a_loop(kind: Distance, dim: int) -> None:
    prediction, target = pair(4, 6, 5)
    mask = torch.rand(4, 5 if dim == 1 else 6, generator=torch.Generator().manual_seed(3)) < 0.6
    picked = []
    for p, t, m in zip(
        prediction.movedim(dim, -1).flatten(0, 1),
        target.movedim(dim, -1).flatten(0, 1),
        mask.flatten(),
        strict=True,
    ):
        if m:
            difference = p - t
            huber = torch.where(
                difference.abs() < 0.5, difference.square() / (2 * 0.5), difference.abs() - 0.25
            )
            picked.append(
                {
                    "cosine": 1 - float(p @ t / (p.norm() * t.norm())),
                    "mse": float(difference.square().mean()),
                    "l1": float(difference.abs().mean()),
                    "smooth_l1": float(huber.mean()),
                }[kind]
            )
    error = PredictionError(kind=kind, dim=dim, beta=0.5, name="loss/own")
    loss = error(prediction=prediction, target=target, mask=mask)
    assert float(loss.total) == pytest.approx(sum(picked) / len(picked), rel=1e-9)
    torch.testing.assert_close(loss.parts["loss/own"], loss.total)
    everywhere = error(prediction=prediction, target=target, mask=torch.ones_like(mask))
    torch.testing.assert_close(error(prediction=prediction, target=target).total, everywhere.total)


def test_prediction_error_of_normalised_targets() -> None:
    prediction, target = pair(3, 8, 2)
    expected = (target - target.mean(1, keepdim=True)) / (
        target.var(1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    error = PredictionError(kind="mse", dim=1, normalize_target=True)
    value = error(prediction=prediction, target=target).total
    torch.testing.assert_close(value, (prediction - expected).square().mean())


def test_the_target_keeps_its_gradient() -> None:
    """Stop-gradient belongs to the target provider: LeJEPA trains through both sides."""
    prediction, target = pair(3, 4)
    PredictionError(kind="mse")(prediction=prediction, target=target.requires_grad_()).total.backward()
    assert target.grad is not None


def test_prediction_errors_are_errors_for_wrong_input() -> None:
    prediction, target = pair(3, 4)
    with pytest.raises(ValueError, match="same shape"):
        PredictionError()(prediction=prediction, target=target[:1])
    with pytest.raises(ValueError, match="unknown distance 'huber'"):
        PredictionError(kind="huber")(prediction=prediction, target=target)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mask"):
        PredictionError()(prediction=prediction, target=target, mask=torch.ones(4, dtype=torch.bool))


def test_prediction_error_is_computed_in_fp32() -> None:
    prediction, target = (t.bfloat16() for t in pair(64, 32))
    for kind in ("cosine", "mse", "l1", "smooth_l1"):
        for normalize in (False, True):
            error = PredictionError(kind=kind, normalize_target=normalize)  # type: ignore[arg-type]
            expected = error(prediction=prediction.float(), target=target.float()).total
            with torch.autocast("cpu", torch.bfloat16):
                value = error(prediction=prediction, target=target).total
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, expected, atol=0, rtol=1e-6)


def _masked_loss(
    parameters: Sequence[torch.Tensor], batch: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    values, mask = batch
    return masked_mean((values @ parameters[0]).square(), mask)


@pytest.mark.parametrize("sizes", [(3, 3), (1, 5), (0, 6)])
def test_masked_mean_over_two_processes(two_processes: TwoProcesses, sizes: tuple[int, int]) -> None:
    values, mask = case()
    assert_equals_one_process(
        two_processes,
        _masked_loss,
        parameters=[torch.eye(5, dtype=torch.float64) + 0.1],
        shares=list(zip(values.split(list(sizes)), mask.split(list(sizes)), strict=True)),
        joined=(values, mask),
        atol=1e-12,
    )
