"""LiDAR sweeps as observations of a policy, read by the sparse encoder that AD-L-JEPA pretrains."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call

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
from tests.policies.imitation.toys import TINY, in_double, rows_of
from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process
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


def test_in_double_precision() -> None:
    made = policy().double().train()
    assert made.training_step(in_double(batch()), 0).total.dtype == torch.float64


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
    for row, point in ((2, [1.0, 0.0, 0.0, torch.nan]), (3, [1.0, torch.inf, 0.0, 0.0])):
        spoilt = observation.points.clone()
        spoilt[row, 7] = torch.tensor(point)
        with pytest.raises(ObservationError, match=f"the sweep of row {row} holds NaN or infinite"):
            made.act(replace(observation, points=spoilt))
    empty = observation.points.clone()
    empty[1] = torch.inf
    with pytest.raises(ObservationError, match="the sweep of row 1 holds no point at all"):
        made.act(replace(observation, points=empty))
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


def _loss(parameters: Sequence[torch.Tensor], data: ChunkBatch) -> torch.Tensor:
    made = policy(frozen=False).double().train()
    names = [name for name, _ in made.named_parameters()]
    made.forward = lambda b: made.training_step(b, 0).total
    return functional_call(made, dict(zip(names, parameters, strict=True)), (data,))


def test_two_processes_equal_one(two_processes: TwoProcesses) -> None:
    """The encoder's BatchNorm sees the sweeps of both."""
    whole = in_double(batch())
    shares = [rows_of(whole, part) for part in (slice(0, 2), slice(2, 6))]
    parameters = [p.detach() for p in policy(frozen=False).double().parameters()]
    assert_equals_one_process(
        two_processes, _loss, parameters=parameters, shares=shares, joined=whole, atol=1e-10
    )


def _recalibrated(_rank: int) -> dict[str, torch.Tensor]:
    made = tokens()
    made.recalibrate([torch.from_numpy(d.points[0]) for d in DRIVES if d.points is not None])
    return dict(made.backbone.named_buffers())


def test_recalibration_does_not_depend_on_the_number_of_processes(two_processes: TwoProcesses) -> None:
    alone = _recalibrated(0)
    for found in two_processes.run(_recalibrated):
        for name, value in found.items():
            assert torch.equal(value, alone[name]), name
