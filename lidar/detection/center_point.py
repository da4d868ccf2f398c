"""CenterPoint's head: every object is the peak of a heat map, with its box regressed at that cell.

Yin, Zhou, Kraehenbuehl: Center-based 3D Object Detection and Tracking (CVPR 2021), first stage, as OpenPCDet trains
it. Where that code departs from the authors' (weights of rotation and velocity, velocities that are not known), this
follows the authors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lidar.detection.batch import Detections, GroundTruth
from lidar.detection.bev_backbone import Norm, batch_norm_2d
from lidar.detection.gaussian import draw_peaks, gaussian_radius
from lidar.detection.losses import gaussian_focal, known_l1
from lidar.detection.voxel_detector import Suppression
from lidar.grid import Range, VoxelGrid
from worldmodel.distributed import at_least_fp32, mean_over_ranks
from worldmodel.objectives import Loss

HEAT_BIAS = -2.19  # an untrained map gives every cell a score of 0.1
# Branches of a task and their widths, in the order in which they make a code.
BRANCHES = {"center": 2, "center_z": 1, "dim": 3, "rot": 2}
VELOCITY = {"vel": 2}


@dataclass(frozen=True, kw_only=True)
class CenterTargets:
    """What the maps of one task are to show.

    Attributes:
        heat: [B, C, H, W] in 0..1, exactly 1 at the cell of an object of the class.
        sample: [K] int64 of each object.
        cell: [K] int64, row * W + column.
        codes: [K, 8 or 10], see `encode`.
    """

    heat: torch.Tensor
    sample: torch.Tensor
    cell: torch.Tensor
    codes: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class CenterOutput:
    """Predictions of one task.

    Attributes:
        heat: [B, C, H, W] logits.
        codes: [B, 8 or 10, H, W], see `encode`.
    """

    heat: torch.Tensor
    codes: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class BEVCells:
    """The cells of a map: where they lie.

    Attributes:
        shape: H, W.
        size: edge along x and y in metres.
        origin: x, y of the corner of the first cell in metres.
    """

    shape: tuple[int, int]
    size: tuple[float, float]
    origin: tuple[float, float]

    @classmethod
    def of(cls, grid: VoxelGrid, shape: tuple[int, int]) -> "BEVCells":
        """H x W equal cells over the range of a grid."""
        x0, y0, _, x1, y1, _ = grid.point_range
        return cls(shape=shape, size=((x1 - x0) / shape[1], (y1 - y0) / shape[0]), origin=(x0, y0))

    def locate(self, xy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Column and row [N, 2] int64 of points [N, 2], and their offsets [N, 2] from the cell's corner, in cells.

        Points outside are moved onto the map's edge.
        """
        place = (xy - xy.new_tensor(self.origin)) / xy.new_tensor(self.size)
        place = torch.minimum(place.clamp_min(0), xy.new_tensor(self.shape[::-1]) - 0.5)
        cell = place.floor()
        return cell.long(), place - cell

    def points(self, cell: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """The inverse of `locate`: x, y [N, 2] in metres."""
        return (cell + offset) * offset.new_tensor(self.size) + offset.new_tensor(self.origin)


def encode(boxes: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Codes [N, 8], or [N, 10] with velocities, of boxes [N, 7 or 9] with their offsets [N, 2] from `BEVCells.locate`.

    Offset x, y; z; logarithms of length, width and height; cos and sin of the heading; velocity.
    """
    heading = boxes[:, 6:7]
    return torch.cat(
        [offset, boxes[:, 2:3], boxes[:, 3:6].log(), heading.cos(), heading.sin(), boxes[:, 7:]], dim=1
    )


def decode(codes: torch.Tensor, cell: torch.Tensor, cells: BEVCells) -> torch.Tensor:
    """Boxes [N, 7 or 9] of codes [N, 8 or 10] at cells [N, 2] (column, row): the inverse of `encode`."""
    heading = torch.atan2(codes[:, 7:8], codes[:, 6:7])
    xy = cells.points(cell, codes[:, :2])
    return torch.cat([xy, codes[:, 2:3], codes[:, 3:6].exp(), heading, codes[:, 8:]], dim=1)


class CenterHead(nn.Module):
    """OpenPCDet's CenterHead: a shared convolution, then for every task (group of classes) a branch for each quantity.

    Args:
        in_channels: of the map.
        tasks: groups of classes by their labels; every label once. A class competes only within its group.
        cells: of the map.
        centre_limits: x0 y0 z0 x1 y1 z1; boxes with a centre outside are dropped.
        suppression: of duplicates, in each task by itself.
        regression_weight: of the box loss beside the heat map's.
        velocity: whether boxes have one.
        velocity_weight: of the two numbers of the velocity; the other numbers of a code have 1. 0.2 in the authors'
            settings; OpenPCDet has the same list in another order of the code, where 0.2 falls on the rotation.
        width: channels of the shared convolution and of every branch.
        overlap, least_radius: of the peaks, see `gaussian_radius`.
        most_objects: per sample and task, both in training and read out.
        norm: makes the normalisation of a layer from its width.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        tasks: Sequence[Sequence[int]],
        cells: BEVCells,
        centre_limits: Range,
        suppression: Suppression,
        regression_weight: float,
        velocity: bool = False,
        velocity_weight: float = 0.2,
        width: int = 64,
        overlap: float = 0.1,
        least_radius: int = 2,
        most_objects: int = 500,
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.tasks = tuple(tuple(task) for task in tasks)
        labels = [label for task in self.tasks for label in task]
        if sorted(labels) != list(range(len(labels))) or not all(self.tasks):
            raise ValueError(f"every label belongs to one task, and no task is empty: got {self.tasks}")
        self.cells, self.centre_limits, self.suppression = cells, centre_limits, suppression
        self.regression_weight, self.velocity = regression_weight, velocity
        self.overlap, self.least_radius, self.most_objects = overlap, least_radius, most_objects
        norm = norm or batch_norm_2d(synced=False, eps=1e-5, momentum=0.1)
        self.branches = BRANCHES | (VELOCITY if velocity else {})
        self.code_weights = (1.0,) * sum(BRANCHES.values()) + (velocity_weight,) * (2 if velocity else 0)
        self.shared_conv = _conv_norm_relu(in_channels, width, norm)
        self.heads_list = nn.ModuleList(
            nn.ModuleDict(
                {name: _branch(width, channels, norm) for name, channels in self.branches.items()}
                | {"hm": _branch(width, len(task), norm, bias=HEAT_BIAS)}
            )
            for task in self.tasks
        )

    def forward(self, features: torch.Tensor) -> tuple[CenterOutput, ...]:
        """Predictions of every task from a map [B, C, H, W]."""
        if tuple(features.shape[2:]) != self.cells.shape:
            raise ValueError(
                f"the map is {features.shape[2]} x {features.shape[3]} cells, the head is for "
                f"{self.cells.shape[0]} x {self.cells.shape[1]}: build it for the shape the BEV backbone makes"
            )
        shared = self.shared_conv(features)
        outputs = []
        for head in self.heads_list:
            maps = {name: at_least_fp32(branch(shared)) for name, branch in head.items()}  # type: ignore[operator]
            codes = torch.cat([maps[name] for name in self.branches], dim=1)
            outputs.append(CenterOutput(heat=maps["hm"], codes=codes))
        return tuple(outputs)

    @torch.no_grad()
    def targets(self, truth: GroundTruth) -> tuple[CenterTargets, ...]:
        """What the maps of every task are to show. Boxes of no size, and past `most_objects` of a task, are left out.

        Raises:
            ValueError: if the head predicts velocities and the boxes have none.
        """
        width = 9 if self.velocity else 7
        if truth.boxes.shape[-1] < width:
            raise ValueError(
                "this head predicts velocities: give boxes of 9 numbers, with NaN where the velocity is not known"
            )
        batch, (rows, columns) = len(truth.labels), self.cells.shape
        targets = []
        for task in self.tasks:
            labels = truth.labels.new_tensor(task)
            matches = truth.labels.unsqueeze(-1) == labels
            mine = matches.any(dim=-1)
            mine &= mine.cumsum(dim=1) <= self.most_objects
            mine &= (truth.boxes[..., 3:6] > 0).all(dim=-1)
            sample, place = mine.nonzero().unbind(1)
            boxes = truth.boxes[sample, place, :width]
            cell, offset = self.cells.locate(boxes[:, :2])
            extent = boxes[:, 3:5] / boxes.new_tensor(self.cells.size)
            radius = gaussian_radius(extent[:, 0], extent[:, 1], overlap=self.overlap).long()
            heat = draw_peaks(
                (batch, len(task), rows, columns),
                sample=sample,
                label=matches[sample, place].int().argmax(dim=-1),
                cell=cell.flip(1),
                radius=radius.clamp_min(self.least_radius),
            )
            flat = cell[:, 1] * columns + cell[:, 0]
            targets.append(CenterTargets(heat=heat, sample=sample, cell=flat, codes=encode(boxes, offset)))
        return tuple(targets)

    def loss(self, output: tuple[CenterOutput, ...], truth: GroundTruth) -> Loss:
        """Heat-map and box losses, summed over tasks.

        A task's heat-map loss is divided by its number of peaks, its box loss by its number of objects, both counted
        over the samples of all ranks (at least 1). Numbers that are not known (NaN velocities) cost nothing.
        """
        sums, counts = [], []
        for task, target in zip(output, self.targets(truth), strict=True):
            codes = task.codes.flatten(2)[target.sample, :, target.cell]
            error = known_l1(codes, target.codes) * codes.new_tensor(self.code_weights)
            sums += [gaussian_focal(task.heat, target.heat).sum(), error.sum()]
            counts += [(target.heat == 1).sum(), torch.tensor(len(codes), device=codes.device)]
        means = mean_over_ranks(torch.stack(sums), torch.stack(counts)).view(-1, 2).sum(dim=0)
        return Loss.weighted(
            {"loss/heat_map": (1.0, means[0]), "loss/box": (self.regression_weight, means[1])}
        )

    def detect(self, output: tuple[CenterOutput, ...]) -> tuple[Detections, ...]:
        """The boxes at the best cells of every task, best first over all tasks."""
        return tuple(
            _joined(
                [
                    self._found(one.heat[sample], one.codes[sample], task)
                    for one, task in zip(output, self.tasks, strict=True)
                ]
            )
            for sample in range(len(output[0].heat))
        )

    def _found(self, heat: torch.Tensor, codes: torch.Tensor, task: tuple[int, ...]) -> Detections:
        """Boxes of one sample and task from its maps [C, H, W] and [D, H, W]."""
        columns = self.cells.shape[1]
        scores, flat = heat.sigmoid().flatten().topk(min(self.most_objects, heat.numel()))
        label, place = flat // math.prod(self.cells.shape), flat % math.prod(self.cells.shape)
        cell = torch.stack([place % columns, place // columns], dim=1)
        boxes = decode(codes.flatten(1)[:, place].T, cell, self.cells)
        low, high = boxes.new_tensor(self.centre_limits).view(2, 3)
        within = ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all(dim=1)
        labels = label.new_tensor(task)[label]
        return self.suppression(boxes[within], scores[within], labels[within])


def _joined(parts: Sequence[Detections]) -> Detections:
    scores = torch.cat([p.scores for p in parts])
    order = scores.argsort(descending=True, stable=True)
    return Detections(
        boxes=torch.cat([p.boxes for p in parts])[order],
        scores=scores[order],
        labels=torch.cat([p.labels for p in parts])[order],
    )


def _conv_norm_relu(in_channels: int, width: int, norm: Norm) -> nn.Sequential:
    # With a bias before the normalisation, which undoes it: the checkpoints have one.
    return nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), norm(width), nn.ReLU(inplace=True))


def _branch(width: int, channels: int, norm: Norm, bias: float | None = None) -> nn.Sequential:
    """Two convolutions; a heat map's keep torch's weights and get `bias`, the others are Kaiming-normal without one."""
    branch = nn.Sequential(_conv_norm_relu(width, width, norm), nn.Conv2d(width, channels, 3, padding=1))
    if bias is not None:
        nn.init.constant_(branch[1].bias, bias)  # type: ignore[arg-type]
        return branch
    for layer in branch.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return branch
