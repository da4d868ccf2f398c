import copy
import math

import pytest
import torch

from lidar.pretraining import (
    cell_discriminant,
    cell_groups,
    encoder_health,
    occupied_features,
    recalibrated_encoder,
)
from worldmodel.monitors import lda_rank
from worldmodel.protocols import RepresentationCollapse, Task

from .scenes import SIGREG, batch_of, cloud, tiny_task


def heldout():
    return [batch_of([cloud(20 + 2 * i), cloud(21 + 2 * i)]) for i in range(3)]


def test_it_is_a_task():
    assert isinstance(tiny_task(), Task)


def test_monitors_leave_the_model_bit_identical():
    task = tiny_task()
    task.training_step(heldout()[0], 0)
    before = copy.deepcopy(task.state_dict())
    first = task.monitors(heldout())
    assert all(torch.equal(before[name], value) for name, value in task.state_dict().items())
    assert first == task.monitors(heldout())


def test_monitors_of_an_untrained_model_are_those_of_the_random_encoder():
    values = tiny_task().monitors(heldout())
    assert values["rankme_over_random"] == pytest.approx(1.0)
    assert values["std_over_gamma"] == pytest.approx(values["std_over_gamma_random"])
    assert 1 <= values["rankme"] <= 16
    assert 0 <= values["dead_dimensions"] <= 1


def test_the_random_encoder_stays_what_it_was_while_the_model_learns():
    task = tiny_task()
    reference = copy.deepcopy(task.untrained_encoder.state_dict())
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1)
    task.training_step(heldout()[0], 0).total.backward()
    optimizer.step()
    assert all(torch.equal(v, task.untrained_encoder.state_dict()[k]) for k, v in reference.items())
    assert not any("_untrained" in name for name in task.state_dict())


def test_a_collapsed_encoder_stops_the_run():
    task = tiny_task()
    with torch.no_grad():
        norm = task.model.encoder.conv_out[1]
        norm.weight.zero_()
        norm.bias.fill_(1.0)
    with pytest.raises(RepresentationCollapse, match=r"std/gamma"):
        task.monitors(heldout())


def test_occupied_features_are_those_of_cells_with_voxels():
    task = tiny_task()
    voxels = task.voxelizer(heldout()[0])
    encoder = task.model.encoder.eval()
    features, occupied = occupied_features(encoder, voxels)
    dense = encoder(voxels)
    b, h, w = occupied.nonzero()[5]
    torch.testing.assert_close(features[5], dense[b, :, h, w])
    assert len(features) == int(occupied.sum())


def test_health_does_not_depend_on_how_frames_are_batched():
    task = tiny_task(SIGREG)
    frozen = task.model.encoder
    batches = [task.voxelizer(b) for b in heldout()]
    health = encoder_health(frozen, batches)
    assert health.count == sum(int(occupied_features(frozen, v)[1].sum()) for v in batches)


def test_labels_do_not_occur_in_a_training_batch():
    assert not any("label" in name or "box" in name for name in vars(heldout()[0]))


def frozen_encoder(task):
    return recalibrated_encoder(task.model.encoder, [task.voxelizer(b) for b in heldout()])


def test_monitors_hold_the_always_on_set():
    values = tiny_task().monitors(heldout())
    spectrum = {"rankme_over_ceiling", "participation_ratio", "stable_rank", "alpha_req"}
    spread = {"std", "std_min", "std_median", "correlation", "sigreg_standardised"}
    assert spectrum | spread | {"lda_rank", "lda_signal"} <= values.keys()
    assert all(math.isfinite(v) for v in values.values())
    assert 1 <= values["lda_rank"] <= 16
    assert values["lda_signal"] > 0
    assert values["std_min"] <= values["std_median"]
    assert values["std"] * 4 == pytest.approx(values["std_over_gamma"])


def test_cell_groups_are_one_cell_under_other_noise():
    task = tiny_task()
    frozen, frame = frozen_encoder(task), heldout()[0]
    groups = cell_groups(frozen, frame, voxelizer=task.voxelizer, views=5)
    cells = int(occupied_features(frozen, task.voxelizer(frame))[1].sum())
    assert groups.shape[1:] == (5, 16)
    assert 0.3 * cells < len(groups) <= cells
    norms = groups.norm(dim=2)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)
    within = (groups - groups.mean(1, keepdim=True)).square().mean()
    assert 0 < within < 0.5 * (groups - groups.mean((0, 1))).square().mean()


def test_the_discriminant_pools_the_cells_of_all_frames():
    task = tiny_task()
    frozen, frames = frozen_encoder(task), heldout()[:2]
    count = sum(batch.batch_size for batch in frames)
    summary = cell_discriminant(frozen, frames, voxelizer=task.voxelizer, frames=count, views=4)
    groups = [cell_groups(frozen, f, voxelizer=task.voxelizer, views=4) for f in frames]
    assert summary.count == sum(map(len, groups))
    assert summary.rank == pytest.approx(lda_rank(torch.cat(groups)), rel=1e-9)


def test_without_common_cells_the_discriminant_is_nan():
    """As with a handful of points: no reason to stop a training run."""
    task = tiny_task()
    empty = batch_of([torch.zeros(0, 4)])
    summary = cell_discriminant(frozen_encoder(task), [empty], voxelizer=task.voxelizer, views=3)
    assert summary.count == 0
    assert math.isnan(summary.rank)
    assert math.isnan(summary.signal)
