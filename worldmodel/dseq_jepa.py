"""DSeq-JEPA: predict an image's salient regions one after another, most salient first (arXiv 2511.17354).

An image's saliency is the similarity of the teacher's [CLS] token with its patches. The features of region k + 1 are
predicted from regions 1 to k. All steps run in one pass under a block-causal mask; patches that are no context are not
given to the encoder at all, since masking attention keys alone leaves a patch its own pixels. The published gain over
I-JEPA is about one point on ImageNet: what is reproduced here is the mechanism.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import nn

from worldmodel.batches import EpisodeBatch
from worldmodel.distributed import at_least_fp32
from worldmodel.masking.sequential import SequentialRegions
from worldmodel.masking.target_sequence import TargetSequence
from worldmodel.monitors import representation_health
from worldmodel.nn.transformer import Block, Packed, block_causal, init_weights, sincos_positions
from worldmodel.nn.vit import ViT
from worldmodel.objectives import Loss, feature_distance, masked_mean, unit
from worldmodel.protocols import RepresentationCollapse
from worldmodel.targets import EMATarget

STRIDE = 1_000_003  # between the seeds of the observations of one stretch


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Predicted features of the target patches of a batch, padded to the longest row.

    Attributes:
        features: [B, Q, D].
        patch: [B, Q] int64, which patch each is of; 0 in the padding.
        step: [B, Q] int64, the step that predicts it; -1 in the padding.
    """

    features: torch.Tensor
    patch: torch.Tensor
    step: torch.Tensor


class RegionPredictor(nn.Module):
    """Narrow transformer over context tokens and mask tokens: the learned token plus the position of a target patch.

    Args:
        grid: (height, width) of the map in patches.
        embed_dim: D, width of the encoder's tokens.
        dim, depth, heads, mlp_ratio: of the predictor.
    """

    positions: torch.Tensor

    def __init__(
        self,
        *,
        grid: tuple[int, int],
        embed_dim: int,
        dim: int = 96,
        depth: int = 3,
        heads: int = 3,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(embed_dim, dim)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(dim), std=0.02))
        self.register_buffer("positions", sincos_positions(dim, height=grid[0], width=grid[1]))
        self.blocks = nn.ModuleList(Block(dim, heads=heads, mlp_ratio=mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.proj = nn.Linear(dim, embed_dim)
        init_weights(self, depth=depth)

    def forward(self, context: torch.Tensor, packed: Packed, sequence: TargetSequence) -> Predicted:
        """Features of the targets of all valid steps.

        Args:
            context: [B, K, D] tokens of the patches that are context of some step.
            packed: which patches they are.
            sequence: which step may use which, and what it predicts.
        """
        cells = self.grid[0] * self.grid[1]
        rank = torch.where(packed.valid, packed.take(sequence.rank.flatten(1)), -1)
        asked = Packed.of(sequence.queries())
        patch = asked.index % cells
        step = torch.where(asked.valid, asked.index // cells, -1)

        x = self.embed(context) + self.positions[packed.index]
        queries = (self.mask_token + self.positions[patch]).to(x.dtype)
        tokens = torch.cat([x, queries], dim=1)
        allowed = block_causal(rank, step)
        for block in self.blocks:
            tokens = block(tokens, allowed)
        features = self.proj(self.norm(tokens[:, context.shape[1] :]))
        return Predicted(features=features, patch=patch, step=step)


class DSeqJEPA(nn.Module):
    """Encoder, teacher, predictor and mask sampler as a task of the training loop.

    Args:
        encoder: the context encoder; pool="mean" gives an embedding that the loss trains directly.
        target: its moving average; 0.996 at the start in the paper.
        predictor: built for the encoder's grid and width.
        sampler: draws regions and their order.
        saliency_block: block of the teacher, from 1, after which [CLS] and patches are compared; 10 of 12 in the paper.
            Without, the last but one.
        average: the loss is a mean over target patches, which lets a large background dominate, or over regions, each
            being the mean of its patches.
        collapse_std: sqrt(D) x standard deviation of the normalised held-out embeddings below which training stops. An
            untrained transformer starts near 0.05, its embeddings having a large common mean, and dips to 0.01.
    """

    def __init__(
        self,
        *,
        encoder: ViT,
        target: EMATarget,
        predictor: RegionPredictor,
        sampler: SequentialRegions,
        saliency_block: int | None = None,
        average: Literal["region", "token"] = "token",
        collapse_std: float = 0.003,
    ) -> None:
        super().__init__()
        if average not in ("region", "token"):
            raise ValueError(f"average is region or token, got {average!r}")
        if predictor.grid != encoder.grid or predictor.proj.out_features != encoder.embed_dim:
            raise ValueError(
                f"the predictor is for a grid of {predictor.grid} and width {predictor.proj.out_features}, the encoder "
                f"has {encoder.grid} and {encoder.embed_dim}"
            )
        block = max(encoder.depth - 1, 1) if saliency_block is None else saliency_block
        if not 1 <= block <= encoder.depth:
            raise ValueError(f"saliency_block must be 1 to {encoder.depth}, got {block}")
        self.encoder, self.target, self.predictor = encoder, target, predictor
        self.sampler, self.saliency_block, self.average = sampler, block, average
        self.collapse_std = collapse_std

    @torch.no_grad()
    def look(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Saliency [B, H, W] and target features [B, P, D] of images [B, C, ...], from the teacher.

        Features are layer-normalised without affine.
        """
        tokens = cast(ViT, self.target.encoder).tokens(images)
        cls, patches = tokens.hidden[self.saliency_block - 1].float().tensor_split([1], dim=1)
        similarity = (cls * patches).sum(-1) / patches.shape[-1] ** 0.5
        features = at_least_fp32(tokens.patches)
        return similarity.unflatten(1, self.encoder.grid), F.layer_norm(features, features.shape[-1:])

    def predict(self, images: torch.Tensor, sequence: TargetSequence) -> Predicted:
        """Predicted features of every valid step's targets, from the context of that step alone."""
        tokens = self.encoder.tokens(images, sequence.rank.flatten(1))
        return self.predictor(tokens.patches, tokens.packed, sequence)

    def forward(
        self,
        images: torch.Tensor,
        *,
        seeds: Sequence[int],
        step: int,
        occupied: torch.Tensor | None = None,
    ) -> Loss:
        """Loss of images, or of bird's-eye-view maps with `occupied` [B, H, W] bool, the patches that count."""
        saliency, features = self.look(images)
        if occupied is None:
            occupied = torch.ones_like(saliency, dtype=torch.bool)
        sequence = self.sampler(occupied, seeds=seeds, saliency=saliency, step=step)
        return self.loss(self.predict(images, sequence), features)

    def loss(self, predicted: Predicted, features: torch.Tensor) -> Loss:
        """Huber distance (delta 1) of predictions to the teacher's features [B, P, D]; 0 where nothing was asked."""
        rows = torch.arange(len(features), device=features.device).unsqueeze(1)
        distance = feature_distance(
            prediction=predicted.features, target=features[rows, predicted.patch], kind="smooth_l1"
        )
        asked = predicted.step >= 0
        if self.average == "region":
            distance, asked = _mean_per_step(distance, predicted.step)
        return Loss.weighted({"loss/prediction": (1.0, masked_mean(distance, asked))})

    def training_step(self, batch: EpisodeBatch, step: int) -> Loss:
        """Loss with every observation of the stretches as an image of its own; actions are not used."""
        images = batch.observations.flatten(0, 1)
        times = batch.observations.shape[1]
        return self(images, seeds=[s + t * STRIDE for s in batch.seeds for t in range(times)], step=step)

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        return {"ema_momentum": self.target.update(self.encoder, progress=step / total_steps)}

    @torch.no_grad()
    def monitors(self, batches: Sequence[EpisodeBatch]) -> dict[str, float]:
        """Health of the embeddings, and the share of images with 0, 1, ... salient regions."""
        device = self.predictor.mask_token.device
        embeddings, histograms = [], []
        for batch in batches:
            images = batch.observations.flatten(0, 1).to(device)
            embeddings.append(unit(self.encoder(images)))
            histograms.append(self.sampler.regions(self.look(images)[0]).histogram())
        health = representation_health(torch.cat(embeddings))
        spread = health["std"] * self.encoder.embed_dim**0.5
        if not spread >= self.collapse_std:
            raise RepresentationCollapse(
                f"the embeddings collapsed: their spread on held-out images is {spread:.3f} of an isotropic one's "
                f"(limit {self.collapse_std}). Lower trainer.max_lr or raise the EMA momentum"
            )
        counts = torch.stack(histograms).sum(0)
        shares = {f"images_with_{n}_regions": float(c / counts.sum()) for n, c in enumerate(counts)}
        return {**health, **shares, "z_std": spread}


def _mean_per_step(distance: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of distance [B, Q] over the queries of each step [B, Q], and whether it has any: both [B, S]."""
    steps = int(step.max()) + 1 if step.numel() else 0
    member = step.unsqueeze(2) == torch.arange(steps, device=step.device)
    total = torch.where(member, distance.unsqueeze(2), 0.0).sum(1)
    count = member.sum(1)
    return total / count.clamp_min(1), count > 0
