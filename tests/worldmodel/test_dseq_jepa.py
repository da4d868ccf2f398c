"""DSeq-JEPA's mechanism: what a prediction depends on, order in one pass, guards of the loss, training that falls.

The released code fails most of these: its predictor cannot see its context.
"""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from worldmodel.batches import EpisodeBatch
from worldmodel.dseq_jepa import DSeqJEPA, Predicted, RegionPredictor
from worldmodel.masking.multiblock import MultiBlock
from worldmodel.masking.saliency import SaliencyRegions
from worldmodel.masking.sequential import Curriculum, SequentialRegions
from worldmodel.masking.target_sequence import TargetSequence
from worldmodel.nn.transformer import block_causal
from worldmodel.nn.vit import ViT
from worldmodel.objectives import feature_distance
from worldmodel.protocols import RepresentationCollapse, Task
from worldmodel.targets import EMATarget

GRID = (4, 5)
SAMPLER = SequentialRegions(regions=SaliencyRegions(alpha=0.05))


def model(**changes: Any) -> DSeqJEPA:
    torch.manual_seed(0)
    encoder = ViT(image_size=(16, 20), patch_size=(4, 4), dim=32, depth=3, heads=2, pool="mean")
    options: dict[str, Any] = {
        "encoder": encoder,
        "target": EMATarget(encoder, momentum=0.9),
        "predictor": RegionPredictor(grid=GRID, embed_dim=32, dim=16, depth=2, heads=2),
        "sampler": SAMPLER,
    }
    task = DSeqJEPA(**(options | changes))
    with torch.no_grad():  # larger weights: what one token does to another is plain to see
        for part in (task.encoder, task.predictor):
            for weights in part.parameters():
                weights.mul_(3.0 if weights.ndim > 1 else 1.0)
    return task


def images(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 16, 20, generator=torch.Generator().manual_seed(seed))


def batch(count: int = 4, steps: int = 2, seed: int = 0) -> EpisodeBatch:
    return EpisodeBatch(
        observations=images(count * steps, seed).unflatten(0, (count, steps)),
        actions=torch.zeros(count, steps - 1, 1),
        seeds=tuple(range(count)),
    )


def sequence_of(rank_rows: list[list[list[int]]], count: int = 5) -> TargetSequence:
    """Regions from the number of each cell: 0 to count - 1, the last being the background."""
    number = torch.tensor(rank_rows)
    return TargetSequence.of_regions(number.unsqueeze(1) == torch.arange(count).view(1, -1, 1, 1))


ROWS = [  # 3, 2, 4, 2 and 9 cells; and 5, 0, 6, 0 and 9
    [[0, 0, 4, 1, 4], [0, 4, 4, 1, 4], [4, 2, 2, 4, 3], [4, 2, 2, 4, 3]],
    [[4, 4, 0, 0, 4], [4, 4, 0, 0, 0], [2, 2, 2, 4, 4], [4, 2, 2, 2, 4]],
]
TWO_REGIONS = [[[0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]]


def pixels(cells: torch.Tensor) -> torch.Tensor:
    """Cells [B, H, W] bool as pixels [B, 1, 4 H, 4 W]."""
    return cells.unsqueeze(1).repeat_interleave(4, 2).repeat_interleave(4, 3)


def by_step(predicted: Predicted, row: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    here = predicted.step[row] == step
    return predicted.patch[row][here], predicted.features[row][here]


def test_every_cell_of_every_target_is_asked_in_batch_and_position_order() -> None:
    sequence = sequence_of(ROWS)
    predicted = model().predict(images(), sequence)
    for row in range(2):
        asked = []
        for step in range(4):
            patches, _ = by_step(predicted, row, step)
            cells = sequence.targets[row, step].flatten().nonzero().flatten()
            assert patches.tolist() == cells.tolist()
            asked += cells.tolist()
        kept = predicted.step[row] >= 0
        assert predicted.patch[row][kept].tolist() == asked
        assert sorted(asked) == (torch.tensor(ROWS[row]) > 0).flatten().nonzero().flatten().tolist()


@torch.no_grad()
def test_predictions_change_with_every_region_of_their_context_and_with_nothing_else() -> None:
    task, sequence, x = model(), sequence_of(ROWS), images()
    before = task.predict(x, sequence)
    for changed in range(5):
        cells = torch.tensor(ROWS) == changed
        after = task.predict(torch.where(pixels(cells), images(seed=1), x), sequence)
        for row in range(2):
            for step in range(4):
                difference = by_step(after, row, step)[1] - by_step(before, row, step)[1]
                if not difference.numel():
                    continue
                moved = difference.abs().amax(1)
                if changed <= step and cells[row].any():
                    assert float(moved.min()) > 1e-4, (row, step, changed)
                else:  # the target's own pixels, later regions, and the background
                    assert float(moved.max()) == 0.0, (row, step, changed)


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[1:], TWO_REGIONS, ROWS])
@torch.no_grad()
def test_one_pass_equals_step_by_step_with_dropped_tokens(rows: list[list[list[int]]]) -> None:
    task, x = model().double(), images(len(rows)).double()
    sequence = sequence_of(rows, count=max(map(max, rows[0])) + 1)
    whole = task.predict(x, sequence)
    for step in range(sequence.valid.shape[1]):
        alone = torch.arange(sequence.valid.shape[1]) == step
        only = TargetSequence(
            rank=torch.where(sequence.context(step), sequence.rank, -1),
            targets=sequence.targets,
            valid=sequence.valid & alone,
        )
        part = task.predict(x, only)
        assert int((part.step >= 0).sum()) == int((whole.step == step).sum())
        for row in range(len(rows)):
            for a, b in zip(by_step(part, row, step), by_step(whole, row, step), strict=True):
                torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_block_causal_mask_by_hand() -> None:
    allowed = block_causal(torch.tensor([[0, 0, 1, -1]]), torch.tensor([[0, 1, 1, -1]]))[0].int().tolist()
    assert allowed == [
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 1, 1, 0],
        [1, 1, 1, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("average", ["region", "token"])
def test_one_salient_region_and_background_train_the_encoder(average: str) -> None:
    task = model(average=average)
    _, features = task.look(images(1))
    task.loss(task.predict(images(1), sequence_of(TWO_REGIONS, count=2)), features).total.backward()
    assert float(task.encoder.patch_embed["proj"].weight.grad.norm()) > 1e-4
    assert all(p.grad is None for p in task.target.parameters())


@pytest.mark.parametrize("average", ["region", "token"])
def test_nothing_to_predict_is_a_finite_loss(average: str) -> None:
    task, x = model(average=average), images()
    loss = task(x, seeds=[0, 1], step=0, occupied=torch.zeros(2, *GRID, dtype=torch.bool))
    assert loss.total.item() == 0.0
    loss.total.backward()
    assert all(p.grad is None or not p.grad.any() for p in task.parameters())


@pytest.mark.parametrize("average", ["region", "token"])
def test_steps_that_are_not_valid_have_no_weight(average: str) -> None:
    task, x = model(average=average), images()
    _, features = task.look(x)
    sequence = sequence_of(ROWS)
    muted = replace(sequence, valid=sequence.valid & torch.tensor([True, True, False, True]))
    predicted = task.predict(x, muted)
    assert not (predicted.step == 2).any()
    loss = task.loss(predicted, features).total
    elsewhere = features.clone()
    for row in range(2):
        elsewhere[row][sequence.targets[row, 2].flatten()] += 100.0
    assert task.loss(predicted, elsewhere).total.item() == loss.item()
    # The same as never having had the step: its targets do not exist, and its gradient is zero.
    without = replace(
        sequence, targets=sequence.targets & torch.tensor([True, True, False, True]).view(1, 4, 1, 1)
    )
    task.zero_grad()
    loss.backward()
    gradients = [p.grad.clone() for p in task.parameters() if p.grad is not None]
    task.zero_grad()
    task.loss(task.predict(x, replace(without, valid=muted.valid)), features).total.backward()
    for mine, reference in zip(
        gradients, [p.grad for p in task.parameters() if p.grad is not None], strict=True
    ):
        torch.testing.assert_close(mine, reference)


def test_loss_is_huber_on_layer_normalised_features_by_token_or_by_region() -> None:
    task, x, sequence = model(), images(), sequence_of(ROWS)
    _, features = task.look(x)
    raw = task.target.encoder.tokens(x).patches  # type: ignore[operator, union-attr]
    torch.testing.assert_close(features, F.layer_norm(raw, (32,)).detach())
    predicted = task.predict(x, sequence)
    per_step = []
    for row in range(2):
        for step in range(4):
            patches, values = by_step(predicted, row, step)
            if len(patches):
                per_step.append(
                    feature_distance(prediction=values, target=features[row, patches], kind="smooth_l1")
                )
    torch.testing.assert_close(task.loss(predicted, features).total, torch.cat(per_step).mean())
    task.average = "region"
    by_region = torch.stack([d.mean() for d in per_step]).mean()
    torch.testing.assert_close(task.loss(predicted, features).total, by_region)
    assert len(per_step) == 6  # row 2 lacks regions 2 and 4


def test_saliency_is_the_similarity_of_cls_and_patches_at_the_block() -> None:
    x = images()
    for block in (1, 3):
        task = model(saliency_block=block)
        hidden = task.target.encoder.tokens(x).hidden[block - 1]  # type: ignore[operator, union-attr]
        expected = torch.einsum("bd,bpd->bp", hidden[:, 0], hidden[:, 1:]).view(2, *GRID) / 32**0.5
        torch.testing.assert_close(task.look(x)[0], expected.detach())
    assert model().saliency_block == 2
    # From the image's own [CLS], not from the learned parameter: pixels elsewhere change a patch's saliency.
    changed = x.clone()
    changed[:, :, :4, :4] += 3.0
    assert not torch.allclose(task.look(changed)[0][:, 3, 4], task.look(x)[0][:, 3, 4], atol=1e-4)


def test_a_batch_without_regions_is_an_i_jepa_batch() -> None:
    task, x = model(), images()
    task.look = lambda _: (torch.zeros(2, *GRID), torch.zeros(2, 20, 32))  # type: ignore[method-assign]
    blocks = MultiBlock()(torch.ones(2, *GRID, dtype=torch.bool), seeds=[0, 1])
    expected = task.loss(task.predict(x, blocks), torch.zeros(2, 20, 32)).total
    assert expected.item() > 0
    torch.testing.assert_close(task(x, seeds=[0, 1], step=0).total, expected)


def test_birds_eye_view_maps() -> None:
    torch.manual_seed(0)
    encoder = ViT(image_size=(16, 20), patch_size=(4, 4), in_channels=6, dim=32, depth=2, heads=2)
    task = model(encoder=encoder, target=EMATarget(encoder, momentum=0.9))
    maps, occupied = torch.randn(3, 6, 16, 20), torch.rand(3, *GRID) < 0.6
    loss = task(maps, seeds=range(3), step=0, occupied=occupied)
    loss.total.backward()
    assert loss.total.item() > 0
    assert float(task.encoder.patch_embed["proj"].weight.grad.norm()) > 0


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_momentum_at_the_first_and_the_last_step(schedule: str) -> None:
    encoder = model().encoder
    task = model(target=EMATarget(encoder, momentum=0.996, schedule=schedule))  # type: ignore[arg-type]
    assert task.after_step(0, 1000)["ema_momentum"] == pytest.approx(0.996, abs=1e-12)
    last = task.after_step(999, 1000)["ema_momentum"]
    assert last == pytest.approx(1.0 - (0.004 / 1000 if schedule == "linear" else 0.0), abs=1e-8)


def test_the_teacher_follows() -> None:
    task = model()
    before = task.target.encoder.norm.weight.clone()  # type: ignore[union-attr, operator]
    with torch.no_grad():
        task.encoder.norm.weight += 1.0
    task.after_step(0, 10)
    expected = 0.9 * before + 0.1 * task.encoder.norm.weight
    torch.testing.assert_close(task.target.encoder.norm.weight, expected)  # type: ignore[union-attr]


def squares(count: int, seed: int) -> EpisodeBatch:
    """A bright square at a random place of a shaded image: what lies where can be learnt in seconds."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.linspace(0, 1, 20).expand(count, 1, 3, 16, 20).clone()
    for i in range(count):
        row, column = (int(torch.randint(n - 6, (), generator=generator)) for n in (16, 20))
        x[i, :, :, row : row + 6, column : column + 6] = 1 + torch.rand(3, 1, 1, generator=generator)
    return EpisodeBatch(observations=x, actions=torch.zeros(count, 0, 1), seeds=tuple(range(count)))


def test_training_lowers_the_loss_without_a_collapse() -> None:
    torch.manual_seed(0)
    encoder = ViT(image_size=(16, 20), patch_size=(4, 4), dim=32, depth=2, heads=2, pool="mean")
    task = DSeqJEPA(
        encoder=encoder,
        target=EMATarget(encoder, momentum=0.996),
        predictor=RegionPredictor(grid=GRID, embed_dim=32, dim=32, depth=2, heads=2),
        sampler=replace(SAMPLER, curriculum=Curriculum(steps=20)),
    )
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], 5e-4)
    held_out = squares(32, seed=10_000)
    losses = []
    for step in range(60):
        loss = task.training_step(squares(16, seed=step), step).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.after_step(step, 60)
        losses.append(float(loss.detach()))
    end = task.monitors([held_out])  # raises at a collapse
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert end["rankme_centered"] > 8


def test_monitors_leave_the_model_and_count_regions() -> None:
    task = model()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    values = task.monitors([batch(), batch(seed=1)])
    assert sum(values[f"images_with_{n}_regions"] for n in range(5)) == pytest.approx(1.0)
    assert all(torch.equal(before[name], value) for name, value in task.state_dict().items())
    assert isinstance(task, Task)


def test_collapse_is_an_error() -> None:
    task = model()
    torch.nn.init.zeros_(task.encoder.norm.weight)
    with pytest.raises(RepresentationCollapse, match="collapsed"):
        task.monitors([batch()])


def test_every_observation_of_a_stretch_is_an_image_of_its_own() -> None:
    task, stretches = model(sampler=replace(SAMPLER, curriculum=Curriculum(steps=10))), batch(3, 2)
    loss = task.training_step(stretches, 5)
    seeds = [s + t * 1_000_003 for s in range(3) for t in range(2)]
    again = task(stretches.observations.flatten(0, 1), seeds=seeds, step=5)
    assert loss.total.item() == again.total.item()


# Settings.

ALTERED: dict[type, dict[str, Any]] = {
    SaliencyRegions: {"n": 3, "alpha": 0.2, "connectivity": 4},
    MultiBlock: {
        "targets": 2,
        "target_scale": (0.3, 0.4),
        "target_aspect": (0.2, 0.3),
        "context_scale": (0.4, 0.5),
        "min_context": 40,
    },
    Curriculum: {"unit": "step", "steps": 6, "seed": 3},
    SequentialRegions: {
        "regions": SaliencyRegions(n=3, alpha=0.05),
        "blocks": MultiBlock(targets=1),
        "curriculum": Curriculum(steps=10**6),
    },
}


def test_every_setting_of_the_sampler_is_read() -> None:
    x = torch.rand(64, 9, 9, generator=torch.Generator().manual_seed(0))
    everywhere = torch.ones(64, 9, 9, dtype=torch.bool)
    bases: dict[type, Any] = {
        SaliencyRegions: SaliencyRegions(alpha=0.02),
        MultiBlock: MultiBlock(),
        Curriculum: Curriculum(unit="sample", steps=10),
        SequentialRegions: SequentialRegions(regions=SaliencyRegions(alpha=0.05)),
    }

    def outcome(part: Any) -> list[Any]:
        if isinstance(part, SaliencyRegions):
            return part(x).masks.nonzero().tolist()
        if isinstance(part, Curriculum):
            return [part.coins(s, seeds=range(4), count=3).tolist() for s in range(12)]
        sampler = part if isinstance(part, SequentialRegions) else SequentialRegions(blocks=part)
        flat = torch.cat([x[:32], torch.zeros_like(x[:32])])  # maps with regions and maps without
        sequence = sampler(everywhere, seeds=range(64), saliency=flat, step=5)
        return [sequence.rank.tolist(), sequence.targets.tolist(), sequence.valid.tolist()]

    for kind, altered in ALTERED.items():
        assert {f.name for f in fields(kind)} == altered.keys()
        for name, value in altered.items():
            base = bases[kind]
            if kind is Curriculum and name == "seed":
                base = replace(base, unit="step")
            assert outcome(replace(base, **{name: value})) != outcome(base), (kind.__name__, name)


def test_settings_of_the_model_are_read_and_unknown_ones_are_errors() -> None:
    assert model(average="region").average == "region"
    assert model(collapse_std=0.2).collapse_std == 0.2
    assert model(saliency_block=1).saliency_block == 1
    with pytest.raises(TypeError, match="target_depth"):
        model(target_depth=3)
    with pytest.raises(TypeError, match="emb_dim"):
        RegionPredictor(grid=GRID, emb_dim=32)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="model_name"):
        ViT(image_size=(8, 8), patch_size=(4, 4), model_name="vit_tiny")  # type: ignore[call-arg]
    predictor = RegionPredictor(grid=GRID, embed_dim=32, dim=20, depth=4, heads=5, mlp_ratio=2.0)
    assert len(predictor.blocks) == 4
    block = predictor.blocks[0]
    assert (block.attn.heads, block.mlp.fc1.weight.shape) == (5, (40, 20))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"average": "image"}, "region or token"),
        ({"saliency_block": 4}, "saliency_block must be 1 to 3"),
        ({"predictor": RegionPredictor(grid=(2, 2), embed_dim=32)}, "the encoder has"),
        ({"predictor": RegionPredictor(grid=GRID, embed_dim=16)}, "the encoder has"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**changes)
