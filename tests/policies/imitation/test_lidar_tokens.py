"""LiDAR sweeps as observations of a policy, read by the sparse encoder that AD-L-JEPA pretrains."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.demonstrations import Demonstration
from policies.imitation.batches import ChunkBatch, ObservationError
from policies.imitation.build import Auxiliary, Name, build_policy
from policies.imitation.chunks import ChunkDataset, chunk_batches
from policies.imitation.export import export_policy, latency, load_exported
from policies.imitation.interface import Interface
from policies.imitation.lidar_tokens import LidarBackbone, LidarTokens
from policies.imitation.policy import ImitationPolicy
from policies.imitation.statistics import Statistics
from policies.imitation.vision import Backbone
from tests.policies.imitation.toys import TINY
from worldmodel.nn.decoder import map_positions

ENCODER = {
    "name": "tiny",
    "point_range": [0, -3.2, -3, 6.4, 3.2, 1],
    "voxel_size": [0.2, 0.2, 0.2],
    "widths": [8, 8, 8, 8],
    "norm_momentum": 0.1,
    "max_points_per_voxel": None,
    "max_voxels": None,
    "mask_ratio": 0.5,
    "lambda_reg": 1.0,
}
SEEN = Interface(state_dim=2, action_dim=2, chunk=4, tasks=("driving",), points=True)


def drive(number: int, *, steps: int = 7) -> Demonstration:
    """Sweeps of different lengths; the speed follows the height of the points."""
    rng = np.random.default_rng(number)
    low, high = np.array([0, -3.2, -3, 0]), np.array([6.4, 3.2, 1, 1])
    sweeps = [rng.uniform(low, high, (int(rng.integers(150, 300)), 4)) for _ in range(steps)]
    motion = np.array([[sweep[:, 2].mean(), 0.1 * number] for sweep in sweeps], np.float32)
    return Demonstration(
        state=motion,
        environment=None,
        image=None,
        action=motion + 1,
        task="driving",
        seed=number,
        success=True,
        points=tuple(sweep.astype(np.float32) for sweep in sweeps),
    )


DRIVES = [drive(n) for n in range(4)]


def tokens(*, frozen: bool = True, pool: int = 4) -> LidarTokens:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LidarBackbone(encoder=ENCODER, pool=pool, frozen=frozen).tokens(16)


def policy(name: Name = "act_jepa", *, frozen: bool = True) -> ImitationPolicy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_policy(
            name,
            interface=SEEN,
            sizes=TINY,
            auxiliary=Auxiliary(horizon=4),
            statistics=Statistics.measured(DRIVES, action_low=-np.full(2, 9), action_high=np.full(2, 9)),
            backbone=LidarBackbone(encoder=ENCODER, pool=4, frozen=frozen),
        )


def batch() -> ChunkBatch:
    return chunk_batches(ChunkDataset(DRIVES, tasks=SEEN.tasks, chunk=4), batch_size=6)[0]


def test_tokens_are_cells_of_the_encoders_map() -> None:
    made, points = tokens().eval(), batch().points
    assert points is not None
    maps = made.backbone(points)
    assert maps.shape == (6, 16, 2, 2)
    found = made(points)
    for cell, (y, x) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        expected = made.project.weight[:, :, 0, 0] @ maps[2, :, y, x] + made.project.bias
        torch.testing.assert_close(found[2, cell], expected + map_positions(16, 2, 2)[cell])


def test_padding_and_order_of_points_do_not_matter() -> None:
    made, points = tokens().eval(), batch().points
    assert points is not None
    assert bool(points.isinf().any())  # sweeps differ in length
    more = torch.cat([torch.full((6, 50, 4), torch.inf), points.flip(1)], dim=1)
    torch.testing.assert_close(made(more), made(points), rtol=1e-5, atol=1e-6)


def test_samples_hold_the_sweep_of_their_first_step() -> None:
    dataset = ChunkDataset(DRIVES, tasks=SEEN.tasks, chunk=4)
    seen = dataset[(9, 0)].points  # the third step of the second drive
    assert DRIVES[1].points is not None
    assert seen is DRIVES[1].points[2]


@pytest.mark.parametrize("name", ["act_jepa", "act", "bc", "flow"])
def test_frozen_encoders_stay_and_others_learn(name: Name) -> None:
    for frozen in (True, False):
        made = policy(name, frozen=frozen).train()
        (sensor,) = [m for m in made.modules() if isinstance(m, LidarTokens)]
        before = {k: v.clone() for k, v in sensor.backbone.state_dict().items()}
        made.training_step(batch(), 0).total.backward()
        gradients = [p.grad for p in sensor.backbone.parameters()]
        if frozen:
            assert all(g is None for g in gradients)
            for key, value in sensor.backbone.state_dict().items():
                assert torch.equal(value, before[key]), key
        else:
            assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
            assert any(float(g.abs().max()) > 0 for g in gradients if g is not None)
        assert sensor.project.weight.grad is not None


def test_recalibrated_statistics_are_those_of_whole_sweeps() -> None:
    made = tokens()
    assert DRIVES[0].points is not None
    weights = {k: v.clone() for k, v in made.backbone.named_parameters()}
    made.recalibrate([torch.from_numpy(p) for p in DRIVES[0].points])
    means = [v for k, v in made.backbone.named_buffers() if k.endswith("running_mean")]
    assert means
    assert all(bool((mean != 0).any()) for mean in means)
    for key, value in made.backbone.named_parameters():
        assert torch.equal(value, weights[key]), key


def test_an_exported_policy_acts_alike(tmp_path: Path) -> None:
    made = policy().eval()
    backbone = LidarBackbone(encoder=ENCODER, pool=4)
    export_policy(made, tmp_path / "out", name="act_jepa", sizes=TINY, backbone=backbone)
    loaded = load_exported(tmp_path / "out").policy
    observation = batch().observation
    assert torch.equal(loaded.act(observation), made.act(observation))
    assert latency(loaded, repeats=2) > 0


def test_learns_what_only_the_sweep_tells() -> None:
    made = policy("act", frozen=False).train()
    shown = batch()
    blind = replace(shown, state=torch.zeros_like(shown.state))
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        loss = made.training_step(blind, step).total
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_what_does_not_fit_is_refused() -> None:
    made = policy().eval()
    observation = batch().observation
    with pytest.raises(ObservationError, match="sees points"):
        made.act(replace(observation, points=None))
    assert observation.points is not None
    with pytest.raises(ObservationError, match="points must have 3 axes"):
        replace(observation, points=observation.points[0])
    with pytest.raises(ObservationError, match="points must be"):
        made.act(replace(observation, points=observation.points[..., :3]))
    with pytest.raises(ObservationError, match="built without points"):
        replace(SEEN, points=False).check(observation)
    with pytest.raises(ValueError, match="not both"):
        replace(SEEN, image_size=(16, 16))
    with pytest.raises(ValueError, match=r"add backbone\.run=RUN, of pretrain_lidar"):
        build_policy("act", interface=SEEN, sizes=TINY)
    with pytest.raises(ValueError, match="sees no LiDAR sweeps"):
        build_policy("autoregressive", interface=SEEN, backbone=LidarBackbone(encoder=ENCODER, pool=4))
    with pytest.raises(ValueError, match="sees images"):
        build_policy(
            "act_jepa",
            interface=SEEN,
            auxiliary=Auxiliary(target="image"),
            backbone=LidarBackbone(encoder=ENCODER, pool=4),
        )
    with pytest.raises(ValueError, match="choose another pool"):
        LidarBackbone(encoder=ENCODER, pool=3).tokens(16)
    pictures = replace(SEEN, points=False, image_size=(16, 16))
    with pytest.raises(ValueError, match="reads LiDAR sweeps, and this policy sees images"):
        build_policy("act", interface=pictures, backbone=LidarBackbone(encoder=ENCODER))
    with pytest.raises(ValueError, match="LiDAR sweeps are read by a sparse encoder"):
        build_policy("act", interface=SEEN, backbone=Backbone(encoder="resnet18", embed_dim=8))


def test_damaged_sweeps_are_refused() -> None:
    values = {f: getattr(DRIVES[0], f) for f in asdict(DRIVES[0])}
    assert DRIVES[0].points is not None
    spoilt = DRIVES[0].points[3].copy()
    spoilt[5, 1] = np.nan
    for points, message in (
        (DRIVES[0].points[:-1], "need that many rows"),
        ((*DRIVES[0].points[:3], spoilt, *DRIVES[0].points[4:]), "first in step 3"),
        (tuple(p[:, :3] for p in DRIVES[0].points), r"points must be \[P, 4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            Demonstration(**{**values, "points": points})
