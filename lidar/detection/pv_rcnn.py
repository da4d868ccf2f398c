"""PV-RCNN: SECOND's boxes, refined from keypoints that gather features of every scale.

Shi et al.: PV-RCNN: Point-Voxel Feature Set Abstraction for 3D Object Detection (CVPR 2020), as OpenPCDet trains it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lidar.detection.batch import DetectionBatch, Detections
from lidar.detection.bev_backbone import BEVBackbone
from lidar.detection.nms import rotated_nms
from lidar.detection.point_head import PointHead
from lidar.detection.roi_frame import decode_from_frame
from lidar.detection.roi_head import RoIHead, RowNoise
from lidar.detection.roi_sampling import RoIs, sample_rois
from lidar.detection.second import AnchorHead, AnchorOutput
from lidar.detection.voxel_detector import Suppression, VoxelDetector, checked_truth, evaluation_mode
from lidar.detection.voxel_set_abstraction import Keypoints, VoxelSetAbstraction
from lidar.encoder import SparseEncoder
from lidar.pretraining import Voxelizer
from worldmodel.objectives import Loss
from worldmodel.planning.noise import generators


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """Which boxes of the first stage go on to the second, whatever their classes.

    Args:
        iou: greatest overlap seen from above of two boxes that both go on.
        before: look at so many of the best boxes only.
        after: let so many go on at most.
    """

    iou: float
    before: int
    after: int

    def __call__(self, boxes: torch.Tensor, logits: torch.Tensor) -> RoIs:
        """Proposals of boxes [B, A, 7] by their best class of logits [B, A, C], without gradient."""
        found = []
        for sample_boxes, sample_logits in zip(boxes.detach(), logits.detach(), strict=True):
            scores, labels = sample_logits.max(dim=1)
            kept = rotated_nms(sample_boxes, scores, threshold=self.iou, before=self.before, after=self.after)
            found.append((sample_boxes[kept], labels[kept]))
        counts = torch.tensor([len(labels) for _, labels in found], device=boxes.device)
        return RoIs(
            boxes=torch.cat([b for b, _ in found]),
            labels=torch.cat([labels for _, labels in found]),
            sample=torch.repeat_interleave(counts),
        )


@dataclass(frozen=True, kw_only=True)
class FirstStage:
    """What is known of a batch before regions of interest are looked into.

    Attributes:
        anchors: predictions of the anchor head.
        keypoints: with their features.
        logits: [K] whether a keypoint lies in an object.
    """

    anchors: AnchorOutput
    keypoints: Keypoints
    logits: torch.Tensor

    @property
    def weighted_features(self) -> torch.Tensor:
        """[K, C] fused features, scaled by the probability that the keypoint lies in an object."""
        return self.keypoints.features * self.logits.sigmoid().unsqueeze(1).to(self.keypoints.features.dtype)


class PVRCNN(VoxelDetector):
    """`lidar.detection.batch.Detector` and `worldmodel.protocols.Task`; the names of its state are OpenPCDet's.

    Args:
        classes: names; the place is the label.
        encoder: voxels to a BEV map; all its stages are read.
        bev_backbone: from there to the map the anchor head reads.
        anchor_head: SECOND's: proposals.
        keypoints: voxel set abstraction.
        point_head: which keypoints lie in objects.
        roi_head: scores and refines proposals.
        training_proposals, test_proposals: how many of them, and which.
        suppression: of duplicates among refined boxes.
        training_voxels, test_voxels: points to voxels; the caps differ.
    """

    dense_head: AnchorHead

    def __init__(
        self,
        *,
        classes: Sequence[str],
        encoder: SparseEncoder,
        bev_backbone: BEVBackbone,
        anchor_head: AnchorHead,
        keypoints: VoxelSetAbstraction,
        point_head: PointHead,
        roi_head: RoIHead,
        training_proposals: Proposals,
        test_proposals: Proposals,
        suppression: Suppression,
        training_voxels: Voxelizer,
        test_voxels: Voxelizer,
    ) -> None:
        super().__init__(
            classes=classes,
            encoder=encoder,
            bev_backbone=bev_backbone,
            head=anchor_head,
            training_voxels=training_voxels,
            test_voxels=test_voxels,
        )
        self.pfe = keypoints
        self.point_head = point_head
        self.roi_head = roi_head
        self.training_proposals, self.test_proposals = training_proposals, test_proposals
        self.suppression = suppression

    def forward(self, batch: DetectionBatch) -> FirstStage:
        """Everything up to the regions of interest."""
        *stages, out = self.backbone_3d.stage_outputs(self.voxels(batch.points))
        bev = out.bev()
        keypoints = self.pfe(batch.points, stages, bev)
        return FirstStage(
            anchors=self.dense_head(self.backbone_2d(bev)),
            keypoints=keypoints,
            logits=self.point_head(keypoints.gathered),
        )

    def training_step(self, batch: DetectionBatch, step: int) -> Loss:
        """Losses of both stages; the choice of RoIs and dropout are functions of the batch's seeds and the step."""
        truth = checked_truth(batch, self.classes)
        first = self(batch)
        first_loss = self.dense_head.loss(first.anchors, truth)
        keypoints = first.keypoints.points
        with torch.no_grad():
            proposals = self.training_proposals(self.dense_head.boxes(first.anchors), first.anchors.logits)
            sources = generators(batch.seeds, step, torch.device("cpu"))
            rois, targets = sample_rois(proposals, truth, sampling=self.roi_head.sampling, sources=sources)
        output = self.roi_head(
            rois, keypoints, first.weighted_features, RowNoise(sample=rois.sample, sources=sources)
        )
        terms = {
            "loss/proposals": first_loss.total,
            "loss/keypoints": self.point_head.loss(first.logits, keypoints, truth),
            **self.roi_head.losses(output, rois, targets),
        }
        return Loss.weighted({name: (1.0, value) for name, value in terms.items()}, also=first_loss.parts)

    @torch.no_grad()
    def detect(self, batch: DetectionBatch) -> tuple[Detections, ...]:
        """What is found in each sample, in evaluation mode, after suppression of duplicates."""
        with evaluation_mode(self):
            first = self(batch)
            rois = self.test_proposals(self.dense_head.boxes(first.anchors), first.anchors.logits)
            output = self.roi_head(rois, first.keypoints.points, first.weighted_features)
        boxes, scores = decode_from_frame(output.codes, rois.boxes), output.logits.sigmoid()
        return tuple(
            self.suppression(boxes[here], scores[here], rois.labels[here])
            for here in (rois.sample == sample for sample in range(batch.points.batch_size))
        )
