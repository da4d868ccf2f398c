import copy
import dataclasses

import pytest
import torch

from lidar.ad_l_jepa import Predictor, split_voxels
from lidar.objectives import EMAVariance, prediction_error
from worldmodel.objectives import unit
from worldmodel.regularizers import variance_hinge

from .scenes import EMA, KITTI, OFFICIAL, PAPER, SIGREG, TINY, batch_of, cloud, tiny_task, voxels_at


def embedded(task, clouds=3):
    batch = batch_of([cloud(i) for i in range(clouds)])
    voxels = task.voxelizer(batch)
    masks = task.model.draw_masks(voxels, batch.seeds)
    return voxels, masks, task.model.embed(voxels, masks)


def test_predictor_has_the_papers_size():
    assert sum(p.numel() for p in Predictor(256).parameters()) == 1_771_776


def test_cell_sets_partition_the_grid_and_the_voxels():
    task = tiny_task()
    voxels, masks, _ = embedded(task)
    sets = [masks.visible_occupied, masks.visible_empty, masks.masked_occupied, masks.masked_empty]
    assert torch.equal(sum(s.int() for s in sets), torch.ones_like(sets[0], dtype=torch.int32))
    visible, masked = split_voxels(voxels, masks, stride=task.model.encoder.stride)
    rows = {tuple(c) for c in visible.coordinates.tolist()} | {tuple(c) for c in masked.coordinates.tolist()}
    assert len(visible.coordinates) + len(masked.coordinates) == len(voxels.coordinates) == len(rows)
    assert int(masks.visible_occupied.sum()) == int(masks.occupied.sum() * 0.5)


def test_tokens_are_written_in_the_papers_order_and_everything_is_normalised():
    task = tiny_task()
    _, masks, e = embedded(task)
    mask_token, empty_token = (
        unit(task.model.mask_token)[0, :, 0, 0],
        unit(task.model.empty_token)[0, :, 0, 0],
    )
    context = e.context.permute(0, 2, 3, 1)
    torch.testing.assert_close(context[~masks.visible], mask_token.expand_as(context[~masks.visible]))
    torch.testing.assert_close(
        context[masks.visible_empty], empty_token.expand_as(context[masks.visible_empty])
    )
    target = e.target.permute(0, 2, 3, 1)
    torch.testing.assert_close(target[masks.masked_empty], empty_token.expand_as(target[masks.masked_empty]))
    for embedding, cells in ((context, masks.visible_occupied), (target, masks.masked_occupied)):
        torch.testing.assert_close(embedding[cells].norm(dim=1), torch.ones(int(cells.sum())))


def test_the_target_sees_masked_voxels_only():
    task = tiny_task()
    batch = batch_of([cloud(0)])
    voxels = task.voxelizer(batch)
    masks = task.model.draw_masks(voxels, batch.seeds)
    _, masked = split_voxels(voxels, masks, stride=task.model.encoder.stride)
    alone = unit(task.model.target.encoder(masked))
    e = task.model.embed(voxels, masks)
    cells = masks.masked_occupied[0]
    torch.testing.assert_close(e.target[0][:, cells], alone[0][:, cells])


def test_loss_is_the_sum_of_its_parts_computed_cell_by_cell():
    task = tiny_task()
    _, masks, e = embedded(task)
    loss = task.model.objective(e, step=0)
    distance = 1 - (e.prediction * e.target).sum(1)
    m1, m0 = distance[masks.masked_occupied].mean(), distance[masks.masked_empty].mean()
    gamma = e.context.shape[1] ** -0.5
    hinges = []
    for embedding, cells in ((e.context, masks.visible_occupied), (e.prediction, masks.masked_occupied)):
        per_sample = [
            torch.relu(gamma - (z[:, c].var(dim=1) + 1e-4).sqrt()).mean()
            for z, c in zip(embedding, cells, strict=True)
        ]
        hinges.append(torch.stack(per_sample).mean())
    expected = 0.75 * m1 + 0.25 * m0 + EMA.lambda_reg * sum(hinges)
    torch.testing.assert_close(loss.total, expected)


def test_total_collapse_costs_gamma_minus_a_hundredth():
    z = torch.full((2, 256, 8, 8), 1 / 16)
    everywhere = torch.ones(2, 8, 8, dtype=torch.bool)
    assert variance_hinge(z, everywhere, gamma=1 / 16).item() == pytest.approx(0.0525, abs=1e-6)


@pytest.mark.parametrize("objective", [EMA, SIGREG])
def test_gradient_reaches_everything_that_learns_and_no_teacher(objective):
    task = tiny_task(objective)
    batch = batch_of([cloud(i) for i in range(3)])
    task.training_step(batch, 0).total.backward()
    missing = [n for n, p in task.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(p.grad is None for n, p in task.named_parameters() if "target" in n)
    assert task.model.empty_token.grad.abs().sum() > 0


def test_the_empty_token_gets_no_gradient_through_the_target():
    task = tiny_task()
    _, masks, e = embedded(task)
    m0 = prediction_error(e)[1]
    (gradient,) = torch.autograd.grad(m0, task.model.empty_token, retain_graph=True)
    # The same loss with a target cut off by hand: equal, so the target carried nothing.
    cut = (1 - (e.prediction * e.target.detach()).sum(1))[masks.masked_empty].mean()
    (expected,) = torch.autograd.grad(cut, task.model.empty_token)
    torch.testing.assert_close(gradient, expected)
    assert not e.target.requires_grad


def trained_tokens(compat):
    task = tiny_task(compat=compat)
    before = copy.deepcopy(task.model.mask_token.data), copy.deepcopy(task.model.empty_token.data)
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        task.training_step(batch_of([cloud(step), cloud(9 + step)]), step).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = task.model.mask_token.data, task.model.empty_token.data
    return [float((a - b).abs().max()) for a, b in zip(after, before, strict=True)]


def test_tokens_change_if_and_only_if_they_are_learned():
    assert min(trained_tokens(PAPER)) > 0
    assert max(trained_tokens(OFFICIAL)) == 0


def test_official_switch_takes_the_release_settings():
    task = tiny_task(compat=OFFICIAL)
    assert type(task.model.encoder.conv_input[1]) is torch.nn.BatchNorm1d
    assert 0.5 < float(task.model.empty_token.std()) < 2


def test_ema_follows_parameters_only_from_the_first_step_on():
    task = tiny_task()
    task.training_step(batch_of([cloud(0), cloud(1)]), 0)
    encoder, teacher = task.model.encoder, task.model.target.encoder
    buffers = {n: b.clone() for n, b in teacher.named_buffers()}
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(1.0)
    before = [p.clone() for p in teacher.parameters()]
    assert task.after_step(0, 100)["ema_momentum"] == pytest.approx(0.996)
    for old, new, live in zip(before, teacher.parameters(), encoder.parameters(), strict=True):
        torch.testing.assert_close(new, 0.996 * old + 0.004 * live)
    assert all(torch.equal(b, buffers[n]) for n, b in teacher.named_buffers())
    assert task.after_step(99, 100)["ema_momentum"] == pytest.approx(1 - 0.004 / 100)


@pytest.mark.parametrize(
    "coordinates",
    [
        [(0, 6, 3, 5)],
        [(0, z, y, x) for z in (0, 1, 7) for y in (0, 9) for x in (0, 30)],
        [(0, 6, 3, 5), (1, 6, 3, 5), (1, 6, 40, 5), (1, 2, 41, 50)],
    ],
    ids=["one voxel", "lowest levels only", "a sample with a single cell"],
)
@pytest.mark.parametrize("objective", [EMA, SIGREG])
def test_degenerate_scenes_give_a_finite_loss_and_gradient(coordinates, objective):
    task = tiny_task(objective)
    samples = max(c[0] for c in coordinates) + 1
    for extra_empty_sample in (0, 1):
        voxels = voxels_at(coordinates, batch_size=samples + extra_empty_sample)
        loss = task.model(voxels, tuple(range(voxels.batch_size)), 0)
        assert torch.isfinite(loss.total)
        loss.total.backward()
        assert all(torch.isfinite(p.grad).all() for p in task.parameters() if p.grad is not None)


def test_a_step_does_not_touch_global_randomness_and_repeats_itself():
    task = tiny_task()
    batch = batch_of([cloud(0), cloud(1)], seeds=[11, 12])
    state = torch.get_rng_state()
    first = task.training_step(batch, 3).total
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, task.training_step(batch, 3).total)
    other = task.training_step(batch_of([cloud(0), cloud(1)], seeds=[13, 12]), 3).total
    assert not torch.equal(first, other)


def test_bf16_step_stays_close_to_fp32():
    task = tiny_task()
    batch = batch_of([cloud(i) for i in range(3)])
    exact = task.training_step(batch, 0).total
    with torch.autocast("cpu", torch.bfloat16):
        rounded = task.training_step(batch, 0).total
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.05)


def test_lambda_reg_is_the_sensors_unless_given():
    sensors = dataclasses.replace(EMA, lambda_reg=None)
    assert tiny_task(sensors).model.objective.lambda_reg == TINY.lambda_reg
    assert tiny_task(EMA).model.objective.lambda_reg == EMA.lambda_reg


def test_full_size_recipe_has_the_papers_shapes():
    task = tiny_task(encoder=KITTI)
    model = task.model
    assert sum(p.numel() for p in model.encoder.parameters()) == 711_872
    assert sum(p.numel() for p in model.predictor.parameters()) == 1_771_776
    assert (model.encoder.bev_channels, model.encoder.bev_shape) == (256, (200, 176))


def test_wrong_loss_weights_are_refused():
    with pytest.raises(ValueError, match="occupied_weight"):
        EMAVariance(occupied_weight=1.5)
