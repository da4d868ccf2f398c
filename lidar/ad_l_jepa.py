"""AD-L-JEPA: self-supervised pretraining of a LiDAR BEV encoder (arXiv 2501.04969, AAAI-26).

A sweep's BEV cells are split at random into visible and masked ones, cells with points and cells without alike. The
context encoder sees the visible voxels only; the target encoder sees the masked voxels only. A small convolutional
predictor guesses the target's BEV map from the context's. Nothing is reconstructed and no label exists anywhere.
Steps are those of docs/ad_l_jepa.md, which also tells where the release differs from the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import nn

from lidar.batch import VoxelBatch
from lidar.encoder import SparseEncoder
from worldmodel.masking.bev import BEVMasks, RandomCells
from worldmodel.nn.batch_norm import SyncedBatchNorm2d
from worldmodel.objectives import Loss, unit
from worldmodel.targets import EMATarget, SharedTarget


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """L2-normalised BEV embeddings of a batch, each [B, C, H, W], and the cell sets they were made with."""

    context: torch.Tensor
    prediction: torch.Tensor
    target: torch.Tensor
    masks: BEVMasks


class Objective(Protocol):
    """Embeddings to a loss."""

    def __call__(self, embeddings: Embeddings, *, step: int) -> Loss: ...


class Predictor(nn.Sequential):
    """Three times Conv2d 3x3 with bias, BatchNorm, ReLU over the dense BEV map; 1,771,776 parameters at 256 channels.

    The last ReLU stays, as in the release: dropping it would orphan its checkpoints; docs/ad_l_jepa.md
    tells what it costs.
    """

    def __init__(self, channels: int, *, synced: bool = True) -> None:
        norm = SyncedBatchNorm2d if synced else nn.BatchNorm2d
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), norm(channels), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class ADLJEPA(nn.Module):
    """Context encoder, target, predictor, objective.

    Args:
        encoder: sparse encoder, voxels to a BEV map [B, C, H, W].
        target: where targets come from; EMATarget in the paper, SharedTarget with SIGReg.
        masks: draws the visible cells.
        objective: the loss on the embeddings.
        token_std: standard deviation the mask token and the empty token are drawn with.
        learn_tokens: whether they are parameters. The release meant them to be and never trained them.
        nonnegative_tokens: draw them without negative entries. The predictor ends in ReLU and cannot point at
            negative ones: its cosine to a Gaussian empty token stays below about 0.7.
        synced: BatchNorm of the predictor over all ranks.
    """

    def __init__(
        self,
        *,
        encoder: SparseEncoder,
        target: EMATarget | SharedTarget,
        masks: RandomCells,
        objective: Objective,
        token_std: float = 0.02,
        learn_tokens: bool = True,
        nonnegative_tokens: bool = False,
        synced: bool = True,
    ) -> None:
        super().__init__()
        channels = encoder.bev_channels
        self.encoder = encoder
        self.target = target
        self.predictor = Predictor(channels, synced=synced)
        self.masks = masks
        self.objective = objective
        self.mask_token, self.empty_token = (
            nn.Parameter(_token(channels, token_std, nonnegative_tokens), requires_grad=learn_tokens)
            for _ in range(2)
        )

    def draw_masks(self, voxels: VoxelBatch, seeds: Sequence[int]) -> BEVMasks:
        """Split the BEV cells of a batch (step 2); the split is a function of each sample's seed."""
        return self.masks(self.encoder.occupied(voxels), seeds=seeds)

    def embed(self, voxels: VoxelBatch, masks: BEVMasks) -> Embeddings:
        """Context, prediction and target embeddings (steps 3 to 5)."""
        visible, masked = split_voxels(voxels, masks, stride=self.encoder.stride)

        z = self.encoder(visible)
        z = torch.where(masks.visible.unsqueeze(1), z, self.mask_token.to(z.dtype))
        z = torch.where(masks.visible_empty.unsqueeze(1), self.empty_token.to(z.dtype), z)
        context = unit(z)

        prediction = unit(self.predictor(context))

        # The token is detached: a token that moves toward the prediction would be a shortcut.
        t = self.target(self.encoder, masked)
        target = unit(torch.where(masks.masked_empty.unsqueeze(1), self.empty_token.detach().to(t.dtype), t))
        return Embeddings(context=context, prediction=prediction, target=target, masks=masks)

    def forward(self, voxels: VoxelBatch, seeds: Sequence[int], step: int) -> Loss:
        """Loss of one batch."""
        return self.objective(self.embed(voxels, self.draw_masks(voxels, seeds)), step=step)


def split_voxels(voxels: VoxelBatch, masks: BEVMasks, *, stride: int) -> tuple[VoxelBatch, VoxelBatch]:
    """Voxels of visible and of masked cells: two disjoint halves whose union is the input (step 3)."""
    b, _, y, x = voxels.coordinates.unbind(1)
    visible = masks.visible[b, y // stride, x // stride]
    return tuple(  # type: ignore[return-value]
        replace(voxels, features=voxels.features[rows], coordinates=voxels.coordinates[rows])
        for rows in (visible, ~visible)
    )


def _token(channels: int, std: float, nonnegative: bool) -> torch.Tensor:
    token = torch.randn(1, channels, 1, 1) * std
    return token.abs() if nonnegative else token
