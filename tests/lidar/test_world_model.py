"""The bird's-eye world model: warps against exact shifts, the protocol, and both forms of training."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from lidar.drive_features import (
    BEVGrid,
    LidarBEVEncoder,
    PCAProjection,
    encode_sweeps,
    obstacle_map,
)
from lidar.encoder import SparseEncoder
from lidar.grid import VoxelGrid
from lidar.pretraining import Voxelizer
from lidar.world_model import BEVWorldModel, BEVWorldModelTask, compose, ego_motion, moved
from worldmodel.batches import EpisodeBatch, LatentState
from worldmodel.protocols import RepresentationCollapse, Task, WorldModel
from worldmodel.seq_jepa import SeqWorldModel
from worldmodel.targets import EMATarget, SharedTarget

GRID = BEVGrid(rows=8, columns=12, cell=1.0, origin=(0.0, -4.0))
VOXELS = VoxelGrid(point_range=(0, -3.2, -3, 6.4, 3.2, 1), voxel_size=(0.2, 0.2, 0.4))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def world_model(condition: str = "motion", *, trained: bool = True, **options: object) -> BEVWorldModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BEVWorldModel(
            encoder=nn.Identity(),
            channels=3,
            grid=GRID,
            action_dim=4,
            condition=condition,
            width=8,
            **options,
        )  # type: ignore[arg-type]
        if trained:
            nn.init.normal_(model.residual.weight)
    return model.eval()


def lidar_encoder() -> LidarBEVEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = SparseEncoder(in_channels=4, grid=VOXELS, widths=(4, 4, 4), momentum=0.1, backend="torch")
    voxelizer = Voxelizer(grid=VOXELS, max_points_per_voxel=None, max_voxels=None)
    return LidarBEVEncoder(encoder=encoder, voxelizer=voxelizer)


def clouds(*shape: int, seed: int = 0) -> torch.Tensor:
    low, high = torch.tensor([0, -3.2, -2, 0.0]), torch.tensor([6.4, 3.2, 1, 1.0])
    return low + (high - low) * torch.rand(*shape, 4, generator=generator(seed))


def test_ego_motion_is_exact_on_arcs_and_composes():
    radius, quarter = 4.0, math.pi / 2
    block = torch.tensor([radius * quarter / 0.5, quarter / 0.5]).repeat(5)
    assert ego_motion(block) == pytest.approx([radius, radius, quarter], abs=1e-5)
    actions = torch.rand(6, 8, generator=generator()) * torch.tensor([10.0, 0.8]).repeat(4)
    halves = compose(ego_motion(actions[:, :4]), ego_motion(actions[:, 4:]))
    assert torch.allclose(ego_motion(actions), halves, atol=1e-5)


def test_moving_by_whole_cells_shifts_the_map():
    maps = random(2, 3, 8, 12)
    shown, seen = moved(maps, torch.tensor([[2.0, 0, 0], [0, -1.0, 0]]), GRID)
    assert torch.allclose(shown[0, :, :, :10], maps[0, :, :, 2:], atol=1e-5)
    assert torch.allclose(shown[1, :, 1:], maps[1, :, :-1], atol=1e-5)
    assert shown[0, :, :, 10:].abs().max() == 0
    assert torch.allclose(seen[0, 0].sum(), torch.tensor(80.0), atol=1e-3)


def test_a_half_turn_flips_the_map():
    centred = BEVGrid(rows=8, columns=12, cell=1.0, origin=(-6.0, -4.0))
    maps = random(1, 3, 8, 12)
    shown, _ = moved(maps, torch.tensor([[0, 0, math.pi]]), centred)
    assert torch.allclose(shown, maps.flip(2, 3), atol=1e-4)


def test_maps_move_as_points_do():
    # A wall ahead, seen before and after driving 2 m towards it and turning by 0.2 rad.
    wall = np.stack([np.full(400, 8.3), np.linspace(-3, 3, 400), np.zeros(400)], axis=1).astype(np.float32)
    motion = np.array([2.0, 0.0, 0.2])
    c, s = np.cos(motion[2]), np.sin(motion[2])
    after = wall - [2.0, 0, 0]
    after = np.stack([c * after[:, 0] + s * after[:, 1], c * after[:, 1] - s * after[:, 0], after[:, 2]], 1)
    maps = torch.from_numpy(obstacle_map(wall, GRID)).float()[None, None]
    shown = moved(maps, torch.from_numpy(motion).float()[None], GRID)[0][0, 0].numpy()
    true = obstacle_map(after, GRID)
    assert shown[true].mean() > 0.3 > 5 * shown[~true].mean()


def test_an_untrained_model_copies_or_moves():
    z, actions = random(2, 3, 3, 8, 12), torch.tensor([10.0, 0.0]).repeat(2, 3, 2)
    state = LatentState(latents=z, actions=actions[:, :2])
    assert torch.equal(world_model("none", trained=False).rollout(state, actions)[:, 2], z[:, -1])
    expected, _ = moved(z[:, -1], torch.tensor([[2.0, 0, 0]]).repeat(2, 1), GRID)
    assert torch.allclose(
        world_model("motion", trained=False).rollout(state, actions)[:, 0], expected, atol=1e-6
    )


def test_only_deviations_from_the_prior_are_moved():
    prior = random(3, 8, 12, seed=5)
    model = world_model("motion", trained=False, prior=prior)
    actions = torch.tensor([10.0, 0.0]).repeat(1, 3, 2)
    still = LatentState(latents=prior.expand(1, 3, 3, 8, 12), actions=actions[:, :2])
    assert torch.allclose(model.rollout(still, actions), prior.expand(1, 3, 3, 8, 12), atol=1e-6)


@pytest.mark.parametrize("condition", ["motion", "action", "none"])
def test_a_rollout_is_step_by_step_and_differentiable_in_the_actions(condition):
    model = world_model(condition)
    assert isinstance(model, WorldModel)
    state = LatentState(latents=random(2, 2, 3, 8, 12), actions=random(2, 1, 4, seed=1))
    future = random(2, 4, 4, seed=2).requires_grad_()
    imagined = model.rollout(state, future)
    assert imagined.shape == (2, 4, 3, 8, 12)
    steps, now = [], state
    for action in future.unbind(1):
        steps.append(model.rollout(now, action[:, None])[:, 0])
        now = now.append(steps[-1], action)
    assert torch.allclose(imagined, torch.stack(steps, 1), atol=1e-5)
    if condition != "none":
        (slope,) = torch.autograd.grad(imagined.square().sum(), future)
        assert slope.abs().amin(dim=(0, 1)).min() > 0


def test_without_actions_they_do_not_matter_and_all_conditions_have_the_same_size():
    model, state = (
        world_model("none"),
        LatentState(latents=random(1, 3, 3, 8, 12), actions=random(1, 2, 4)),
    )
    assert torch.equal(model.rollout(state, random(1, 2, 4)), model.rollout(state, random(1, 2, 4, seed=9)))
    sizes = {sum(p.numel() for p in world_model(c).parameters()) for c in ("motion", "action", "none")}
    assert len(sizes) == 1


def moving_maps(batch: int, steps: int, seed: int) -> EpisodeBatch:
    """Random scenes that shift by the ego motion: what moving the map predicts."""
    maps = [random(batch, 3, 8, 12, seed=seed)]
    actions = torch.rand(batch, steps - 1, 4, generator=generator(seed + 1)) * torch.tensor([10.0, 0.0] * 2)
    for action in actions.unbind(1):
        maps.append(moved(maps[-1], ego_motion(action), GRID)[0])
    return EpisodeBatch(observations=torch.stack(maps, 1), actions=actions, seeds=tuple(range(batch)))


def test_training_on_fixed_latents_lowers_the_loss_and_monitors_leave_the_model_alone():
    task = BEVWorldModelTask(
        model=world_model("action", trained=False), target=SharedTarget(), context=2, horizon=2
    )
    assert isinstance(task, Task)
    batch = moving_maps(8, 4, 0)
    optimizer = torch.optim.Adam(task.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        loss = task.training_step(batch, step).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    before = copy.deepcopy(task.state_dict())
    values = task.eval().monitors([batch])
    assert values["copy_last_ratio_first"] < 1
    assert all(torch.equal(v, before[k]) for k, v in task.state_dict().items())


def test_a_true_motion_model_needs_no_training_where_nothing_else_moves():
    task = BEVWorldModelTask(
        model=world_model("motion", trained=False), target=SharedTarget(), context=2, horizon=2
    )
    assert task.eval().monitors([moving_maps(8, 4, 0)])["copy_last_ratio_last"] < 0.01


def test_end_to_end_with_a_lidar_encoder_and_an_ema_target():
    encoder = lidar_encoder()
    model = BEVWorldModel(
        encoder=encoder, channels=encoder.encoder.bev_channels, grid=encoder.grid, action_dim=2, width=8
    )
    task = BEVWorldModelTask(model=model, target=EMATarget(encoder, momentum=0.9), context=2, horizon=1)
    batch = EpisodeBatch(
        observations=clouds(2, 3, 200),
        actions=torch.tensor([3.0, 0.1]).repeat(2, 2, 1),
        seeds=(0, 1),
    )
    nn.init.normal_(model.residual.weight)
    task.training_step(batch, 0).total.backward()
    slopes = [p.grad for p in encoder.parameters()]
    assert all(g is not None and g.isfinite().all() for g in slopes)
    assert any(g.abs().max() > 0 for g in slopes if g is not None)
    with torch.no_grad():
        encoder.encoder.conv_input[0].weight.mul_(1.1)
    assert task.after_step(0, 10)["ema_momentum"] == pytest.approx(0.9)
    assert "copy_last_ratio_last" in task.eval().monitors([batch])


def test_a_learning_encoder_needs_a_teacher():
    with pytest.raises(ValueError, match="EMATarget"):
        BEVWorldModelTask(
            model=BEVWorldModel(encoder=lidar_encoder(), channels=4, grid=GRID, action_dim=2, width=8),
            target=SharedTarget(),
        )


def test_collapse_is_reported():
    task = BEVWorldModelTask(model=world_model(), target=SharedTarget(), context=2, horizon=1)
    same = EpisodeBatch(observations=torch.ones(2, 3, 3, 8, 12), actions=torch.zeros(2, 2, 4), seeds=(0, 1))
    with pytest.raises(RepresentationCollapse, match="collapsed"):
        task.eval().monitors([same])


def test_rows_of_infinity_are_no_points():
    encoder = lidar_encoder().eval()
    points = clouds(2, 50)
    padded = torch.cat([points, torch.full((2, 30, 4), torch.inf)], dim=1)
    assert torch.equal(encoder(points), encoder(padded))
    sweeps = [points[0].numpy(), points[1, :20].numpy()]
    maps = encode_sweeps(encoder, sweeps)
    assert maps.shape == (2, encoder.encoder.bev_channels, encoder.grid.rows, encoder.grid.columns)
    assert np.abs(maps[0] - encoder(points[:1])[0].detach().numpy()).max() < 1e-3


def test_the_projection_whitens_and_orders():
    cells = random(4000, 5) @ torch.diag(torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5])) + 7
    projection = PCAProjection.fitted(cells, components=3)
    z = projection(cells.T.reshape(5, 40, 100)).flatten(1)
    assert torch.allclose(torch.cov(z), torch.eye(3), atol=1e-2)
    assert float(projection.explained) == pytest.approx(38 / 39.25, abs=0.01)
    assert abs(float(torch.corrcoef(torch.stack([z[0], cells[:, 0]]))[0, 1])) > 0.99


def test_obstacles_are_what_stands_above_the_road():
    points = np.array([[2.5, -3.5, 0.0], [3.5, 3.5, -1.7], [5.5, 0.5, 3.0], [90, 0, 0]], np.float32)
    occupied = obstacle_map(points, GRID)
    assert np.argwhere(occupied).tolist() == [[0, 2]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: world_model("speed"), "condition is"),
        (lambda: BEVWorldModel(encoder=nn.Identity(), channels=3, grid=GRID, action_dim=3), "pairs"),
        (lambda: world_model(prior=torch.zeros(3, 8, 8)), "prior must be"),
        (lambda: BEVGrid.of(VOXELS, stride=5), "square cells"),
        (lambda: lidar_encoder()(torch.zeros(3, 4)), r"\[N, P, 4\]"),
        (lambda: PCAProjection(4, 5), r"1\.\.4"),
        (lambda: PCAProjection.fitted(torch.ones(9, 4), components=2), "fewer than 2"),
        (lambda: BEVWorldModelTask(model=world_model(), target=SharedTarget(), horizon=0), "at least 1"),
        (
            lambda: BEVWorldModelTask(model=world_model(), target=SharedTarget()).training_step(
                moving_maps(1, 4, 0), 0
            ),
            "stretches of 7",
        ),
        (
            lambda: world_model().rollout(
                LatentState(latents=random(1, 2, 3, 4, 4), actions=random(1, 1, 4)), random(1, 1, 4)
            ),
            "latents must be",
        ),
    ],
)
def test_errors_name_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_lidar_maps_pooled_to_vectors_are_an_encoder_of_seq_jepa() -> None:
    maps = lidar_encoder()
    encoder = nn.Sequential(maps, nn.AdaptiveAvgPool2d(2), nn.Flatten())
    sweeps = clouds(2, 3, 200)
    width = encoder(sweeps[:, 0]).shape[1]
    model = SeqWorldModel(
        encoder=encoder, embed_dim=width, action_dim=2, action_embed=16, layers=1, heads=2, dropout=0.0
    ).eval()
    z = model.encode(sweeps)
    assert z.shape == (2, 3, width)
    imagined = model.rollout(
        LatentState(latents=z[:, :2], actions=torch.zeros(2, 1, 2)), torch.zeros(2, 4, 2)
    )
    assert imagined.shape == (2, 4, width)
