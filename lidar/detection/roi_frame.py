"""Boxes in the frame of a region of interest: what PV-RCNN's second stage sees and predicts.

The frame stands in the RoI's centre and has its heading. A RoI may point backwards, so that a heading in its frame is
known up to half turns only: refinement never turns a box around.
"""

import math

import torch
import torch.nn.functional as F

from lidar.detection.anchors import decode, encode
from lidar.detection.boxes import corners, limit_period


def to_frame(boxes: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
    """Boxes [R, 7] in the frames of RoIs [R, 7], heading in [-pi/2, pi/2)."""
    heading = limit_period(boxes[:, 6:7] - rois[:, 6:7], offset=0.5, period=math.pi)
    return torch.cat([_turned(boxes[:, :3] - rois[:, :3], -rois[:, 6]), boxes[:, 3:6], heading], dim=1)


def encode_in_frame(boxes: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
    """Residual codes [R, 7] of boxes [R, 7] against RoIs [R, 7], in the RoIs' frames."""
    return encode(to_frame(boxes, rois), _at_origin(rois))


def decode_from_frame(codes: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
    """Boxes [R, 7] of residual codes [R, 7]: the inverse of `encode_in_frame`, up to half turns of the heading."""
    local = decode(codes, _at_origin(rois))
    centre = _turned(local[:, :3], rois[:, 6]) + rois[:, :3]
    return torch.cat([centre, local[:, 3:6], local[:, 6:7] + rois[:, 6:7]], dim=1)


def grid_points(rois: torch.Tensor, size: int) -> torch.Tensor:
    """Centres [R, size ** 3, 3] of the cells RoIs [R, 7] are cut into, x slowest and z fastest in the RoI's frame."""
    steps = (torch.arange(size, device=rois.device, dtype=rois.dtype) + 0.5) / size - 0.5
    share = torch.cartesian_prod(steps, steps, steps).view(-1, 3)
    local = share * rois[:, None, 3:6]
    return _turned(local, rois[:, 6:7]) + rois[:, None, :3]


def corner_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean smooth L1 of the distances of corners, [R], of boxes [R, 7] each.

    Every corner counts the smaller distance of the target and the target turned by pi, as front and back are not
    told apart here.
    """
    turned = torch.cat([target[:, :6], target[:, 6:7] + math.pi], dim=1)
    distance = torch.minimum(
        *(torch.linalg.vector_norm(corners(prediction) - corners(boxes), dim=2) for boxes in (target, turned))
    )
    return F.smooth_l1_loss(distance, torch.zeros_like(distance), reduction="none", beta=1.0).mean(1)


def _at_origin(rois: torch.Tensor) -> torch.Tensor:
    """The RoIs in their own frames."""
    nothing = torch.zeros_like(rois)
    return torch.cat([nothing[:, :3], rois[:, 3:6], nothing[:, 6:7]], dim=1)


def _turned(vectors: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Vectors [..., 3] turned about z by angles [...], counter-clockwise."""
    cos, sin = angle.cos(), angle.sin()
    x, y, z = vectors.unbind(-1)
    return torch.stack([x * cos - y * sin, x * sin + y * cos, z], dim=-1)
