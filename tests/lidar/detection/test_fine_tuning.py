"""Modes of fine-tuning: what moves, how fast, and which statistics a frozen encoder has."""

import pytest
import torch

from lidar.batch import PointCloudBatch
from lidar.detection.batch import DetectionBatch, GroundTruth
from lidar.detection.fine_tuning import MODES, fine_tune, recalibrate_encoder
from lidar.detection.models import second_small
from lidar.detection.voxel_detector import VoxelDetector


def detector() -> VoxelDetector:
    return second_small().train()


def batch() -> DetectionBatch:
    generator = torch.Generator().manual_seed(0)
    low, span = torch.tensor([2.0, -8.0, -2.0, 0.0]), torch.tensor([20.0, 16.0, 2.0, 1.0])
    points = torch.rand(4000, 4, generator=generator) * span + low
    boxes = torch.tensor([[10.0, 0.0, -1.0, 3.9, 1.6, 1.5, 0.3]])
    return DetectionBatch(
        points=PointCloudBatch(
            points=points,
            batch_index=torch.arange(4000) // 2000,
            batch_size=2,
            frame_ids=("a", "b"),
            seeds=(1, 2),
        ),
        truth=GroundTruth.padded([boxes, boxes], [torch.zeros(1, dtype=torch.int64)] * 2),
    )


def test_a_frozen_encoder_has_no_gradient_and_keeps_its_statistics() -> None:
    made = detector()
    fine_tune(made, "frozen")
    made.train()
    before = {name: value.clone() for name, value in made.backbone_3d.state_dict().items()}
    made.training_step(batch(), 0).total.backward()
    assert all(p.grad is None for p in made.backbone_3d.parameters())
    assert all(p.grad is not None for p in made.dense_head.parameters())  # type: ignore[attr-defined]
    assert all(torch.equal(before[name], v) for name, v in made.backbone_3d.state_dict().items())


def test_rates_fall_from_the_last_layer_of_the_encoder_to_the_first() -> None:
    made = detector()
    fine_tune(made, "layerwise", decay=0.5)
    rates = [
        made.learning_rate_scale(f"backbone_3d.{n}.0.weight") for n, _ in made.backbone_3d.named_children()
    ]
    assert rates == [0.5**place for place in range(len(rates), 0, -1)]
    assert made.learning_rate_scale("backbone_2d.blocks.0.1.weight") == 1.0
    fine_tune(made, "finetune")
    assert {made.learning_rate_scale(name) for name, _ in made.named_parameters()} == {1.0}


def test_recalibration_measures_whole_clouds() -> None:
    made = detector()
    weights = {name: p.clone() for name, p in made.backbone_3d.named_parameters()}
    recalibrate_encoder(made, [batch().points])
    made.eval()
    layer = made.backbone_3d.conv_input
    seen: list[torch.Tensor] = []
    layer[1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    made(batch())
    torch.testing.assert_close(layer[1].running_mean, seen[0].mean(0), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(weights[name], p) for name, p in made.backbone_3d.named_parameters())


@pytest.mark.parametrize(("mode", "decay"), [("half", 0.5), (MODES[2], 0.0), (MODES[2], 1.5)])
def test_unknown_modes_and_decays_are_errors(mode: str, decay: float) -> None:
    with pytest.raises(ValueError, match="a mode is one of finetune, frozen, layerwise"):
        fine_tune(detector(), mode, decay=decay)  # type: ignore[arg-type]
