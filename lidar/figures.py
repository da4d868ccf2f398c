"""Bird's-eye-view pictures of what AD-L-JEPA sees, predicts and has learned."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lidar.batch import PointCloudBatch, VoxelBatch
from lidar.encoder import SparseEncoder
from lidar.grid import VoxelGrid
from lidar.pretraining import ADLJEPAPretraining, occupied_features
from worldmodel.nn.batch_norm import recalibrated
from worldmodel.objectives import unit

_SETS = ("visible empty (C0)", "masked empty (M0)", "visible occupied (C1)", "masked occupied (M1)")
_SET_COLOURS = np.array([[0.93, 0.95, 0.97], [0.76, 0.80, 0.86], [0.16, 0.45, 0.70], [0.88, 0.48, 0.12]])


@dataclass(frozen=True, kw_only=True)
class BEVViews:
    """Maps of one frame, each [H, W] or [H, W, 3], row 0 at the lowest y.

    Attributes:
        sets: 0..3, index into the four cell sets.
        features: RGB of the first three principal components of the features; white where no voxel lies.
        cosine: cosine of prediction and target at masked cells, NaN elsewhere.
        occupancy: 1 - cosine of the prediction and the empty token at masked cells, NaN elsewhere.
        masked_iou: intersection over union, at masked cells, of the truth and of cosine to the empty token below
            0.5, the threshold of the release.
    """

    sets: np.ndarray
    features: np.ndarray
    cosine: np.ndarray
    occupancy: np.ndarray
    masked_iou: float


def principal_colours(features: torch.Tensor) -> np.ndarray:
    """First three principal components of [n, C] as colours [n, 3] in 0..1, each stretched between percentiles."""
    centred = features.double() - features.double().mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    scores = (centred @ directions[:3].T).numpy()
    if scores.shape[1] < 3:
        scores = np.pad(scores, ((0, 0), (0, 3 - scores.shape[1])))
    low, high = np.percentile(scores, 2, axis=0), np.percentile(scores, 98, axis=0)
    return np.clip((scores - low) / np.maximum(high - low, 1e-9), 0, 1)


@torch.no_grad()
def bev_views(
    task: ADLJEPAPretraining, frames: Sequence[PointCloudBatch], calibration: Sequence[PointCloudBatch]
) -> list[BEVViews]:
    """Compute the maps of one-frame batches; BatchNorm is recalibrated on `calibration` first."""
    device = task.model.mask_token.device
    whole = task.voxelizer.every_voxel
    clouds = [b.to(device) for b in calibration]
    frozen = recalibrated(task, clouds, lambda module, b: module.embed(b))  # type: ignore[operator]
    encoder = recalibrated(task.model.encoder, [whole(b) for b in clouds], lambda module, v: module(v))
    return [_views(frozen, encoder, batch.to(device), whole(batch.to(device))) for batch in frames]  # type: ignore[arg-type]


def _views(
    task: ADLJEPAPretraining, encoder: SparseEncoder, batch: PointCloudBatch, whole: VoxelBatch
) -> BEVViews:
    if batch.batch_size != 1:
        raise ValueError(f"pictures are made of one frame at a time, got a batch of {batch.batch_size}")
    e = task.embed(batch)
    features, occupied = occupied_features(encoder, whole)
    sets = e.masks.occupied[0].int() * 2 + (~e.masks.visible[0]).int()
    picture = np.ones((*sets.shape, 3))
    picture[occupied[0].cpu().numpy()] = principal_colours(unit(features).cpu())
    hidden = ~e.masks.visible[0]
    nan = torch.tensor(float("nan"), device=hidden.device)
    cosine = torch.where(hidden, (e.prediction * e.target).sum(1)[0], nan)
    score = 1 - (e.prediction * unit(task.model.empty_token)).sum(1)[0]
    guess, truth = (score > 0.5)[hidden], e.masks.occupied[0][hidden]
    iou = float((guess & truth).sum() / (guess | truth).sum().clamp_min(1))
    return BEVViews(
        sets=sets.cpu().numpy(),
        features=picture,
        cosine=cosine.cpu().numpy(),
        occupancy=torch.where(hidden, score, nan).cpu().numpy(),
        masked_iou=iou,
    )


def draw_frame(views: BEVViews, points: np.ndarray, grid: VoxelGrid, *, title: str) -> Figure:
    """Five panels: points by height, cell sets, features as colours, prediction against target, occupancy."""
    x0, y0, z0, x1, y1, z1 = grid.point_range
    extent = (x0, x1, y0, y1)
    figure, axes = plt.subplots(1, 5, figsize=(22, 4.6 * max(1.0, (y1 - y0) / (x1 - x0)) * 0.95))
    scatter = axes[0].scatter(
        points[:, 0], points[:, 1], c=points[:, 2], s=0.4, cmap="viridis", vmin=z0, vmax=min(z1, z0 + 4)
    )
    _finish(axes[0], f"input: {len(points):,} points, colour is z (m)", extent)
    figure.colorbar(scatter, ax=axes[0], fraction=0.046)
    axes[1].imshow(_SET_COLOURS[views.sets], origin="lower", extent=extent, interpolation="nearest")
    handles = [plt.Rectangle((0, 0), 1, 1, color=tuple(c)) for c in _SET_COLOURS]
    axes[1].legend(handles, _SETS, fontsize=7, loc="upper right")
    _finish(axes[1], "mask", extent)
    axes[2].imshow(views.features, origin="lower", extent=extent, interpolation="nearest")
    _finish(axes[2], "features of the full scan, 3 principal components", extent)
    panels = (
        (axes[3], views.cosine, "cosine of prediction and target (masked cells)", (0, 1)),
        (
            axes[4],
            views.occupancy,
            f"occupancy from the empty token, IoU {views.masked_iou:.2f}",
            (None, None),
        ),
    )
    for axis, values, label, (low, high) in panels:
        axis.set_facecolor("#f2f4f7")
        image = axis.imshow(
            values, origin="lower", extent=extent, interpolation="nearest", vmin=low, vmax=high
        )
        figure.colorbar(image, ax=axis, fraction=0.046)
        _finish(axis, label, extent)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    return figure


def _finish(axis: Axes, title: str, extent: tuple[float, float, float, float]) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_xlim(extent[:2])
    axis.set_ylim(extent[2:])
    axis.set_aspect("equal")
    axis.set_xlabel("x (m)", fontsize=8)
    axis.set_ylabel("y (m)", fontsize=8)
