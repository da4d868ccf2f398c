"""Frozen probe: how much of the scene can a linear classifier read off the BEV features? Labels are used only here.

Each non-empty BEV cell is background, car, pedestrian or cyclist; a softmax on standardised cell features is fitted
on a few labelled scenes and scored by the mean of the three one-against-rest average precisions on other scenes. The
pretrained and the random encoder see the same draws of labelled scenes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lidar.batch import PointCloudBatch
from lidar.datasets.kitti_labels import ObjectLabels
from lidar.encoder import SparseEncoder
from lidar.pretraining import Voxelizer, occupied_features
from worldmodel.nn.batch_norm import recalibrated
from worldmodel.probes import fit_linear_probe, mean_average_precision

CLASSES = ("background", "car", "pedestrian", "cyclist")
NOT_ANNOTATED = -1
_CLASS_OF = {"Car": 1, "Van": 1, "Pedestrian": 2, "Person_sitting": 2, "Cyclist": 3}


@dataclass(frozen=True, kw_only=True)
class LabelledScene:
    """One full scan with its boxes: points [N, 4] inside the range, boxes in the sensor frame.

    `annotated` [M, 4] are the points that annotators saw, None if they saw all: cells without one are left out.
    """

    frame_id: str
    points: torch.Tensor
    labels: ObjectLabels
    annotated: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class SceneFeatures:
    """Cells of one scene: features [n, C] and classes [n] (index into CLASSES)."""

    features: torch.Tensor
    classes: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """Scores of one label budget: mean average precision per draw, same draws in the same order."""

    budget: int
    pretrained: tuple[float, ...]
    random: tuple[float, ...]

    @property
    def gain(self) -> float:
        """Mean paired difference."""
        return float(np.mean(np.subtract(self.pretrained, self.random)))

    @property
    def gain_interval(self) -> tuple[float, float] | None:
        """Mean +- two standard errors of the paired difference; over label draws, not over pretraining seeds. None for
        a single draw."""
        difference = np.subtract(self.pretrained, self.random)
        if len(difference) < 2:
            return None
        error = float(difference.std(ddof=1) / len(difference) ** 0.5)
        return self.gain - 2 * error, self.gain + 2 * error


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Probe table, the trivial score (share of positives, any constant classifier), and what it was measured on."""

    rows: tuple[ProbeRow, ...]
    trivial: float
    scenes: int
    cells: int


def point_classes(points: np.ndarray, labels: ObjectLabels) -> np.ndarray:
    """Class of each point [N]: that of a box that contains it, else 0. Boxes are x y z l w h yaw, z the centre."""
    classes = np.zeros(len(points), np.int64)
    for box, name in zip(labels.boxes, labels.names, strict=True):
        x, y, z, length, width, height, yaw = (float(v) for v in box)
        dx, dy, dz = points[:, 0] - x, points[:, 1] - y, points[:, 2] - z
        along = dx * np.cos(yaw) + dy * np.sin(yaw)
        across = dy * np.cos(yaw) - dx * np.sin(yaw)
        inside = (np.abs(along) <= length / 2) & (np.abs(across) <= width / 2) & (np.abs(dz) <= height / 2)
        classes[inside] = _CLASS_OF.get(name, 0)
    return classes


def cell_classes(scene: LabelledScene, *, voxelizer: Voxelizer, encoder: SparseEncoder) -> torch.Tensor:
    """Class of every BEV cell [H, W]: the object class with most points in it, background if there is none,
    NOT_ANNOTATED where nobody looked."""
    height, width = encoder.bev_shape
    grid = voxelizer.grid
    step = [v * encoder.stride for v in grid.voxel_size[:2]]

    def cells(points: np.ndarray) -> np.ndarray:
        column = np.floor((points[:, 0] - grid.point_range[0]) / step[0]).astype(np.int64).clip(0, width - 1)
        row = np.floor((points[:, 1] - grid.point_range[1]) / step[1]).astype(np.int64).clip(0, height - 1)
        return row * width + column

    points = scene.points.numpy()
    counts = np.zeros((height * width, len(CLASSES)), np.int64)
    np.add.at(counts, (cells(points), point_classes(points, scene.labels)), 1)
    objects = counts[:, 1:]
    best = np.where(objects.max(1) > 0, objects.argmax(1) + 1, 0)
    if scene.annotated is not None:
        seen = scene.annotated.numpy()
        unseen = np.ones(height * width, bool)
        unseen[cells(seen[grid.inside(seen)])] = False
        best[unseen] = NOT_ANNOTATED
    return torch.from_numpy(best.reshape(height, width))


def scene_features(
    encoder: SparseEncoder, scenes: Sequence[LabelledScene], *, voxelizer: Voxelizer, device: torch.device
) -> list[SceneFeatures]:
    """Frozen features and classes of the non-empty cells of each scene."""
    result = []
    for scene in scenes:
        voxels = voxelizer(single(scene).to(device))
        features, occupied = occupied_features(encoder, voxels)
        classes = cell_classes(scene, voxelizer=voxelizer, encoder=encoder)[occupied[0].cpu()]
        looked_at = classes != NOT_ANNOTATED
        result.append(SceneFeatures(features=features.cpu()[looked_at], classes=classes[looked_at]))
    return result


def single(scene: LabelledScene) -> PointCloudBatch:
    """A batch of one scene."""
    return PointCloudBatch(
        points=scene.points,
        batch_index=torch.zeros(len(scene.points), dtype=torch.int64),
        batch_size=1,
        frame_ids=(scene.frame_id,),
        seeds=(0,),
    )


def run_probe(
    *,
    pretrained: SparseEncoder,
    random: SparseEncoder,
    pool: Sequence[LabelledScene],
    validation: Sequence[LabelledScene],
    voxelizer: Voxelizer,
    budgets: Sequence[int],
    draws: int,
    calibration_frames: int,
    seed: int,
    device: torch.device,
) -> ProbeResult:
    """Probe both encoders with paired label draws. BatchNorm of both is recalibrated on full clouds of the pool.

    Budgets larger than the pool are left out. Draw d of a budget is a function of (seed, budget, d).
    """
    table: dict[str, tuple[list[SceneFeatures], list[SceneFeatures]]] = {}
    for name, encoder in (("pretrained", pretrained), ("random", random)):
        clouds = [voxelizer(single(s).to(device)) for s in pool[:calibration_frames]]
        frozen = recalibrated(encoder.to(device), clouds, lambda module, voxels: module(voxels))
        table[name] = tuple(  # type: ignore[assignment]
            scene_features(frozen, scenes, voxelizer=voxelizer, device=device)  # type: ignore[arg-type]
            for scenes in (pool, validation)
        )
    scores: dict[str, dict[int, list[float]]] = {name: {} for name in table}
    for budget in (b for b in budgets if b <= len(pool)):
        # All scenes of the pool are one draw only.
        for draw in range(draws if budget < len(pool) else 1):
            chosen = np.random.default_rng((seed, budget, draw)).permutation(len(pool))[:budget]
            for name, (pool_features, validation_features) in table.items():
                value = _score([pool_features[i] for i in chosen], validation_features)
                scores[name].setdefault(budget, []).append(value)
    rows = tuple(
        ProbeRow(budget=b, pretrained=tuple(scores["pretrained"][b]), random=tuple(scores["random"][b]))
        for b in scores["random"]
    )
    classes = torch.cat([s.classes for s in table["random"][1]])
    shares = [
        float((classes == c).double().mean()) for c in range(1, len(CLASSES)) if bool((classes == c).any())
    ]
    trivial = sum(shares) / len(shares) if shares else float("nan")
    return ProbeResult(rows=rows, trivial=trivial, scenes=len(validation), cells=len(classes))


def _score(train: Sequence[SceneFeatures], validation: Sequence[SceneFeatures]) -> float:
    probe = fit_linear_probe(
        torch.cat([s.features for s in train]),
        torch.cat([s.classes for s in train]),
        num_classes=len(CLASSES),
    )
    labels = torch.cat([s.classes for s in validation])
    scores = probe.scores(torch.cat([s.features for s in validation]))
    return mean_average_precision(scores, labels, classes=(1, 2, 3))
