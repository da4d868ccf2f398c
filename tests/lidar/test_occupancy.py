"""Masked occupancy prediction: the loss in closed form, no leak, any chunking, two processes, learning."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from lidar.ad_l_jepa import split_voxels
from lidar.interop import load_encoder
from lidar.occupancy import (
    CellVoxels,
    OccupancyMAE,
    OccupancyPretraining,
    grouped_average_precision,
    weighted_cross_entropy,
)
from lidar.recipe import OccupancyConfig
from tests.worldmodel.conftest import two_processes
from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process
from worldmodel.masking.bev import RandomCells
from worldmodel.probes import average_precision
from worldmodel.protocols import Task
from worldmodel.training.checkpoints import save_checkpoint

from .scenes import KITTI, OFFICIAL, TINY, batch_of, cloud, tiny_task, voxels_at

__all__ = ["two_processes"]

OCCUPANCY = OccupancyConfig(positive_weight=1.0, cells="all")
WEIGHTED = OccupancyConfig(positive_weight=4.0, cells="masked")


def occupancy_task(objective: OccupancyConfig = OCCUPANCY, **options) -> OccupancyPretraining:
    return tiny_task(objective, **options)


def dense_occupancy(voxels, encoder) -> torch.Tensor:
    """[B, Z, H s, W s] float, by the definition."""
    levels, height, width = encoder.input_shape[0] - 1, *encoder.bev_shape
    dense = torch.zeros(voxels.batch_size, levels, height * encoder.stride, width * encoder.stride)
    dense[tuple(voxels.coordinates.unbind(1))] = 1.0
    return dense


def dense_logits(model, voxels, masks) -> torch.Tensor:
    """Logits of every voxel, [B, Z, H s, W s]."""
    (height, width), s = model.encoder.bev_shape, model.encoder.stride
    logits = model.head(model.decode(voxels, masks))
    split = logits.view(voxels.batch_size, height, width, model.levels, s, s)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(voxels.batch_size, -1, height * s, width * s)


def of_cells(cells: torch.Tensor, stride: int) -> torch.Tensor:
    """BEV cells [B, H, W] as a mask that broadcasts over [B, Z, H s, W s]."""
    return cells.repeat_interleave(stride, 1).repeat_interleave(stride, 2).unsqueeze(1)


def test_it_is_a_task_without_a_teacher():
    task = occupancy_task()
    assert isinstance(task, Task)
    assert task.after_step(0, 10) == {}
    assert not any("target" in name for name, _ in task.named_parameters())


@pytest.mark.parametrize("weight", [1.0, 0.5, 7.0])
def test_cross_entropy_is_torchs_on_dense_targets(weight: float):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 12, generator=generator, dtype=torch.float64) * 8
    truth = torch.rand(5, 12, generator=generator) < 0.3
    truth[2] = False
    rows, places = truth.nonzero().unbind(1)
    ours = weighted_cross_entropy(logits, CellVoxels(cell=rows, place=places), positive_weight=weight)
    reference = F.binary_cross_entropy_with_logits(
        logits, truth.double(), pos_weight=torch.tensor(weight), reduction="none"
    )
    torch.testing.assert_close(ours, reference.mean(1), rtol=1e-12, atol=1e-12)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    occupied = CellVoxels(cell=torch.tensor([0]), place=torch.tensor([0]))
    error = weighted_cross_entropy(logits, occupied, positive_weight=2.0)
    error.sum().backward()
    torch.testing.assert_close(error, torch.tensor([1.5e4]))  # (2 x 1e4 + 1e4) / 2 voxels
    torch.testing.assert_close(logits.grad, torch.tensor([[-1.0, 0.5]]))


@pytest.mark.parametrize("objective", [OCCUPANCY, WEIGHTED], ids=["all", "masked"])
def test_loss_is_the_mean_over_the_voxels_of_the_dense_grid(objective: OccupancyConfig):
    task = occupancy_task(objective).double()
    model, batch = task.model, batch_of([cloud(0), cloud(1)])
    voxels = task.voxels(batch)
    masks = model.draw_masks(voxels, batch.seeds)
    loss = model(voxels, batch.seeds, 0)
    values = F.binary_cross_entropy_with_logits(
        dense_logits(model, voxels, masks),
        dense_occupancy(voxels, model.encoder).double(),
        pos_weight=torch.tensor(objective.positive_weight),
        reduction="none",
    )

    def mean_at(cells: torch.Tensor) -> torch.Tensor:
        return values[of_cells(cells, model.encoder.stride).expand_as(values)].mean()

    expected = values.mean() if objective.cells == "all" else mean_at(~masks.visible)
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.parts["loss/occupancy_m1"], mean_at(masks.masked_occupied))
    torch.testing.assert_close(loss.parts["loss/occupancy_m0"], mean_at(masks.masked_empty))
    torch.testing.assert_close(loss.parts["loss/occupancy_visible"], mean_at(masks.visible))


def test_cell_voxels_name_each_voxel_once():
    task = occupancy_task()
    voxels, encoder = task.voxels(batch_of([cloud(0), cloud(1)])), task.model.encoder
    (height, width), s = encoder.bev_shape, encoder.stride
    found = CellVoxels.of(voxels, stride=s, bev_shape=encoder.bev_shape)
    assert bool((found.cell.diff() >= 0).all())
    sample, row, column = found.cell // (height * width), found.cell // width % height, found.cell % width
    z, y, x = found.place // s**2, found.place // s % s, found.place % s
    again = torch.stack([sample, z, row * s + y, column * s + x], dim=1)
    assert {*map(tuple, again.tolist())} == {*map(tuple, voxels.coordinates.tolist())}
    assert len(again) == len(voxels.coordinates)


def test_chunks_change_neither_loss_nor_gradient():
    whole = occupancy_task().double()
    model = whole.model
    pieces = OccupancyMAE(encoder=copy.deepcopy(model.encoder), masks=RandomCells(), chunk=7 * 16 * 20)
    pieces.load_state_dict(model.state_dict())
    pieces.double()
    batch = batch_of([cloud(0), cloud(1)])
    voxels = whole.voxels(batch)
    assert len([*model.chunks(voxels)]) == 1
    assert len([*pieces.chunks(voxels)]) > 20
    losses = [m(voxels, batch.seeds, 0).total for m in (model, pieces)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    for loss in losses:
        loss.backward()
    for (name, a), b in zip(model.named_parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_masks_are_those_of_ad_l_jepa():
    batch = batch_of([cloud(0), cloud(1)], seeds=[5, 6])
    tasks = occupancy_task(), tiny_task()
    mine, its = (task.model.draw_masks(task.voxels(batch), batch.seeds) for task in tasks)
    assert torch.equal(mine.visible, its.visible)
    assert torch.equal(mine.occupied, its.occupied)


def test_masked_points_are_targets_and_nothing_else():
    """Other points in the same masked cells: the prediction is the same bit for bit, the loss is not."""
    task = occupancy_task()
    model, batch = task.model, batch_of([cloud(0), cloud(1)])
    voxels = task.voxels(batch)
    masks = model.draw_masks(voxels, batch.seeds)
    _, masked = split_voxels(voxels, masks, stride=model.encoder.stride)
    moved = {*map(tuple, masked.coordinates.tolist())}
    coordinates = voxels.coordinates.clone()
    hidden = torch.tensor([tuple(c) in moved for c in coordinates.tolist()])
    coordinates[hidden, 1] = 19 - coordinates[hidden, 1]  # upside down, in the same column
    keys = ((coordinates[:, 0] * 20 + coordinates[:, 1]) * 64 + coordinates[:, 2]) * 64 + coordinates[:, 3]
    order = keys.argsort()
    features = torch.where(hidden[:, None], voxels.features + 1, voxels.features)
    other = dataclasses.replace(voxels, coordinates=coordinates[order], features=features[order])
    assert torch.equal(model.draw_masks(other, batch.seeds).visible, masks.visible)
    assert torch.equal(model.decode(voxels, masks), model.decode(other, masks))
    before, after = (model(v, batch.seeds, 0) for v in (voxels, other))
    assert torch.equal(before.parts["loss/occupancy_visible"], after.parts["loss/occupancy_visible"])
    assert before.parts["loss/occupancy_m1"] != after.parts["loss/occupancy_m1"]


def test_gradient_is_that_of_finite_differences():
    task = occupancy_task(WEIGHTED).double()
    batch = batch_of([cloud(0, points=150), cloud(1, points=150)])
    voxels = task.voxels(batch)
    task.model(voxels, batch.seeds, 0).total.backward()
    generator = torch.Generator().manual_seed(0)
    for name in ("head.weight", "head.bias", "body.0.weight", "encoder.conv_input.0.weight"):
        parameter = task.model.get_parameter(name)
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        slope = float((parameter.grad * direction).sum())
        values = []
        with torch.no_grad():
            for step in (1e-6, -2e-6, 1e-6):
                parameter += step * direction
                values.append(float(task.model(voxels, batch.seeds, 0).total))
        assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-9), name


def test_gradient_reaches_everything():
    task = occupancy_task()
    task.training_step(batch_of([cloud(0), cloud(1)]), 0).total.backward()
    assert [n for n, p in task.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    "coordinates", [[(0, 6, 3, 5)], [(0, 6, 3, 5), (1, 6, 40, 5), (1, 2, 41, 50)]], ids=["one", "few"]
)
@pytest.mark.parametrize("objective", [OCCUPANCY, WEIGHTED], ids=["all", "masked"])
def test_degenerate_scenes_give_a_finite_loss_and_gradient(coordinates, objective: OccupancyConfig):
    task = occupancy_task(objective)
    voxels = voxels_at(coordinates, batch_size=3)  # the last sample is empty
    loss = task.model(voxels, (0, 1, 2), 0)
    assert torch.isfinite(loss.total)
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in task.parameters() if p.grad is not None)


def test_bf16_step_stays_close_to_fp32():
    task = occupancy_task()
    batch = batch_of([cloud(0), cloud(1)])
    exact = task.training_step(batch, 0).total
    with torch.autocast("cpu", torch.bfloat16):
        rounded = task.training_step(batch, 0).total
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


def test_untrained_decoder_predicts_the_prior():
    task = occupancy_task()
    batch = batch_of([cloud(0)])
    voxels = task.voxels(batch)
    masks = task.model.draw_masks(voxels, batch.seeds)
    probability = task.model.head(task.model.decode(voxels, masks)).sigmoid()
    assert 0.005 < probability.mean().item() < 0.02


def _two_process_loss(parameters, shares):
    """Loss of a tiny model with these parameters on the clouds `shares`, as (points, seed) pairs."""
    task = occupancy_task(WEIGHTED).double()
    clouds, seeds = zip(*shares, strict=True)
    batch = batch_of([*clouds], seeds=[*seeds])
    names = [name for name, _ in task.model.named_parameters()]
    values = dict(zip(names, parameters, strict=True))
    return torch.func.functional_call(task.model, values, (task.voxels(batch), batch.seeds, 0)).total


def test_two_processes_have_loss_and_gradient_of_one(two_processes: TwoProcesses):
    parameters = [p.detach() for p in occupancy_task(WEIGHTED).double().model.parameters()]
    clouds = [(cloud(seed, points=200 + 50 * seed), seed) for seed in range(3)]
    assert_equals_one_process(
        two_processes,
        _two_process_loss,
        parameters=parameters,
        shares=[clouds[:1], clouds[1:]],
        joined=clouds,
        atol=1e-11,
    )


def test_average_precision_from_counts_is_that_of_the_scores():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 20, (3000,), generator=generator)
    positives = torch.rand(3000, generator=generator) < scores / 40
    hits, counts = torch.zeros(21), torch.zeros(21)  # the score 20 does not occur
    hits.index_add_(0, scores, positives.float())
    counts.index_add_(0, scores, torch.ones(3000))
    ours = grouped_average_precision(hits.flip(0), counts.flip(0))
    assert ours == pytest.approx(average_precision(scores.float(), positives), rel=1e-12)
    assert math.isnan(grouped_average_precision(torch.zeros(3), torch.ones(3)))


def test_held_out_precision_is_that_of_dense_scores():
    task = occupancy_task()
    batch = batch_of([cloud(0), cloud(1)])
    values = task.heldout_precision([batch])
    model, voxels = task.model, task.voxels(batch)
    masks = model.draw_masks(voxels, batch.seeds)
    truth = dense_occupancy(voxels, model.encoder).bool()
    masked = of_cells(~masks.visible, model.encoder.stride).expand_as(truth)
    scores = dense_logits(model, voxels, masks).detach()
    assert values["occupancy_ap"] == pytest.approx(average_precision(scores[masked], truth[masked]), rel=0.02)
    rates = torch.stack([truth[:, z][masked[:, z]].float().mean() for z in range(truth.shape[1])])
    by_height = rates.view(1, -1, 1, 1).expand_as(scores)[masked]
    expected = average_precision(by_height, truth[masked])
    assert values["occupancy_ap_trivial"] == pytest.approx(expected, rel=1e-6)


def test_monitors_compare_with_ad_l_jepa_and_leave_the_model_bit_identical():
    heldout = [batch_of([cloud(7), cloud(8)])]
    task = occupancy_task()
    task.training_step(heldout[0], 0)
    before = copy.deepcopy(task.state_dict())
    values = task.monitors(heldout)
    assert all(torch.equal(before[name], value) for name, value in task.state_dict().items())
    its = {name for name in tiny_task().monitors(heldout) if not name.startswith("loss/")}
    assert its | {"loss/total", "loss/occupancy", "occupancy_ap", "occupancy_ap_trivial"} <= values.keys()


def half_floor(seed: int) -> torch.Tensor:
    """A point in every voxel of a floor that ends at some y: its voxels are predictable from their neighbours."""
    edge = int(torch.randint(24, 40, (), generator=torch.Generator().manual_seed(seed)))
    x, y = torch.meshgrid(torch.arange(64) * 0.2 + 0.1, torch.arange(edge) * 0.2 - 6.3, indexing="ij")
    return torch.stack([x, y, torch.full_like(x, -1.7), torch.ones_like(x)], dim=-1).reshape(-1, 4)


def test_it_learns_a_toy_and_beats_the_trivial_predictor():
    task = occupancy_task()
    heldout = [batch_of([half_floor(30), half_floor(31)])]
    first = task.heldout_precision(heldout) | task.heldout_loss(heldout)
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-3)
    for step in range(30):
        seeds = [2 * step, 2 * step + 1]
        task.training_step(batch_of([half_floor(s % 20) for s in seeds], seeds=seeds), step).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    last = task.heldout_precision(heldout) | task.heldout_loss(heldout)
    assert last["loss/occupancy_m1"] < 0.5 * first["loss/occupancy_m1"]
    # Half the floor is there: the base rate by height is right in one of two voxels of its level.
    assert 0.4 < last["occupancy_ap_trivial"] < 0.6
    assert last["occupancy_ap"] > 0.9 > first["occupancy_ap"]


def test_a_checkpoint_holds_an_encoder_that_loads(tmp_path):
    task = occupancy_task()
    optimizer = torch.optim.AdamW(task.parameters())
    save_checkpoint(tmp_path, step=1, model=task, optimizer=optimizer, state={}, keep=1)
    fresh = TINY.encoder()
    weights = next(tmp_path.glob("step_*/model.safetensors"))
    load_encoder(fresh, weights, prefix="model.encoder.")
    for name, value in task.model.encoder.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name


def test_the_untrained_encoder_is_that_of_ad_l_jepa_with_this_seed():
    mine, its = (task.untrained_encoder.state_dict() for task in (occupancy_task(), tiny_task()))
    assert all(torch.equal(value, its[name]) for name, value in mine.items())


def test_full_size_decoder_has_the_documented_size():
    model = occupancy_task(encoder=KITTI).model
    assert model.head.out_features == 40 * 8 * 8
    decoder = sum(p.numel() for p in (*model.body.parameters(), *model.head.parameters()))
    assert decoder == 2_429_696


def test_official_switch_normalises_per_process():
    assert type(occupancy_task(compat=OFFICIAL).model.body[1]) is torch.nn.BatchNorm2d


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_a_wrong_weight_is_refused(weight: float):
    with pytest.raises(ValueError, match="positive_weight must be positive and finite"):
        occupancy_task(dataclasses.replace(OCCUPANCY, positive_weight=weight))


def test_unknown_cells_are_refused():
    with pytest.raises(ValueError, match="cells is all or masked, got 'visible'"):
        occupancy_task(OccupancyConfig(positive_weight=1.0, cells="visible"))  # type: ignore[arg-type]
