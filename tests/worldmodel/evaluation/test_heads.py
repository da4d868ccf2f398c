"""Probe heads: closed forms, seeds, widths of every kind of feature."""

import pytest
import torch

from worldmodel.evaluation.heads import HeadConfig, Kind, fit_classifier, fit_regressor


def linear_data(count: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=generator) * torch.tensor([1.0, 10.0, 0.1, 1.0, 1.0]) + 3.0
    weight = torch.randn(5, 2, generator=generator)
    y = x @ weight + torch.randn(count, 2, generator=generator)
    return x, (y - y.mean(0)) / y.std(0)


def test_linear_regression_reaches_least_squares() -> None:
    x, y = linear_data()
    head = fit_regressor(x, y, config=HeadConfig(epochs=200, lr=0.03, batch_size=400), seed=0)
    design = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    best = design @ torch.linalg.lstsq(design, y.double()).solution
    error, least = ((p.double() - y).square().mean() for p in (head(x), best))
    assert float(error) == pytest.approx(float(least), rel=0.01)


def test_an_mlp_learns_what_no_line_can() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(600, 2, generator=generator) * 2 - 1
    labels = (x[:, 0] * x[:, 1] > 0).long()
    scores = {}
    kinds: tuple[Kind, ...] = ("linear", "mlp")
    for kind in kinds:
        config = HeadConfig(kind=kind, hidden=32, epochs=40, lr=1e-2, batch_size=64)
        scores[kind] = fit_classifier(x[:400], labels[:400], classes=2, config=config, seed=0).accuracy(
            x[400:], labels[400:]
        )
    assert scores["linear"] < 0.65
    assert scores["mlp"] > 0.9


def test_an_attentive_head_finds_the_token_that_matters() -> None:
    """One of six tokens carries the class and a mark; the mean over tokens drowns it in the others' noise."""
    generator = torch.Generator().manual_seed(0)
    tokens = 3 * torch.randn(500, 6, 8, generator=generator)
    tokens[..., 0] = 0
    labels = torch.randint(2, (500,), generator=generator)
    place = torch.randint(6, (500,), generator=generator)
    tokens[torch.arange(500), place, 0] = 5.0
    tokens[torch.arange(500), place, 1] = 4.0 * (2.0 * labels - 1)
    config = HeadConfig(kind="attentive", heads=2, epochs=25, lr=1e-2, batch_size=64)
    head = fit_classifier(tokens[:400], labels[:400], classes=2, config=config, seed=0)
    mean = fit_classifier(
        tokens[:400].mean(1), labels[:400], classes=2, config=HeadConfig(epochs=40, batch_size=64), seed=0
    )
    assert head.accuracy(tokens[400:], labels[400:]) > 0.9
    assert mean.accuracy(tokens[400:].mean(1), labels[400:]) < 0.85


@pytest.mark.parametrize("kind", ["linear", "mlp", "attentive"])
@pytest.mark.parametrize("width", [8, 20])
def test_the_width_is_that_of_the_features(kind: Kind, width: int) -> None:
    shape = (12, 3, width) if kind == "attentive" else (12, width)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    config = HeadConfig(kind=kind, epochs=1, hidden=4)
    assert fit_regressor(x, torch.randn(12, 3), config=config, seed=0)(x).shape == (12, 3)
    head = fit_classifier(x, torch.arange(12) % 4, classes=4, config=config, seed=0)
    assert head(x).shape == (12, 4)
    with pytest.raises(ValueError, match=f"width {width}"):
        head(x[..., 1:])


def test_the_seed_decides_everything_and_nothing_else_is_touched() -> None:
    x, y = linear_data(60)
    config = HeadConfig(kind="mlp", hidden=8, epochs=2, batch_size=16)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = fit_regressor(x, y, config=config, seed=5)(x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(a, fit_regressor(x, y, config=config, seed=5)(x))
    assert not torch.equal(a, fit_regressor(x, y, config=config, seed=6)(x))


def test_scale_and_offset_of_the_features_do_not_matter() -> None:
    x, y = linear_data(60)
    config = HeadConfig(kind="mlp", hidden=8, epochs=2, batch_size=16)
    a = fit_regressor(x, y, config=config, seed=0)(x)
    b = fit_regressor(1000 * x - 7, y, config=config, seed=0)(1000 * x - 7)
    torch.testing.assert_close(a, b, atol=1e-3, rtol=0)


def test_a_constant_feature_is_harmless() -> None:
    x, y = linear_data(60)
    x[:, 0] = 0.1
    head = fit_regressor(x, y, config=HeadConfig(epochs=2), seed=0)
    assert bool(head(x).isfinite().all())
    assert float(head.std[0]) == 1.0


def test_works_where_gradients_are_off_and_leaves_the_features() -> None:
    x, y = linear_data(60)
    before = x.clone()
    with torch.no_grad():
        head = fit_regressor(x, y, config=HeadConfig(epochs=1), seed=0)
    assert torch.equal(x, before)
    assert not any(p.requires_grad for p in head.module.parameters())


def test_errors() -> None:
    x, y = linear_data(20)
    config = HeadConfig(epochs=1)
    with pytest.raises(ValueError, match=r"features \[N, D\]"):
        fit_regressor(x[None], y[None, 0], config=config, seed=0)
    with pytest.raises(ValueError, match=r"features \[N, T, D\]"):
        fit_regressor(x, y, config=HeadConfig(kind="attentive"), seed=0)
    with pytest.raises(ValueError, match="NaN"):
        fit_regressor(x * torch.nan, y, config=config, seed=0)
    with pytest.raises(ValueError, match="finite"):
        fit_regressor(x, y * torch.nan, config=config, seed=0)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        fit_classifier(x, torch.arange(20), classes=2, config=config, seed=0)
    with pytest.raises(ValueError, match="attention heads"):
        fit_regressor(x[:, None], y, config=HeadConfig(kind="attentive", heads=3), seed=0)
    with pytest.raises(ValueError, match="linear, mlp or attentive"):
        HeadConfig(kind="conv")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        HeadConfig(epochs=0)
