"""Two-view baselines of seq-JEPA, on the first two observations of an episode and trained by the same loop.

SimCLR (arXiv 2002.05709), VICReg (2105.04906), BYOL (2006.07733), conditional BYOL (the action goes to the predictor)
and a plain JEPA (no projector; the next embedding from the last, with or without the action). What is judged after
training is the encoder's output; projectors and predictors are dropped. Losses and gradients are those of one process
on any number of ranks.
"""

import itertools
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from worldmodel.batches import EpisodeBatch
from worldmodel.distributed import at_least_fp32, mean_over_ranks, rank, sum_over_ranks, world_size
from worldmodel.monitors import representation_health
from worldmodel.nn.batch_norm import SyncedBatchNorm1d
from worldmodel.objectives import Loss, PredictionError, unit
from worldmodel.protocols import RepresentationCollapse
from worldmodel.regularizers import covariance_term, variance_term
from worldmodel.targets import EMATarget


def all_rows(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Rows [N, D] of all ranks in rank order and where this rank's begin; differentiable, N may differ between ranks.

    Every rank writes its rows into a table of zeros and the tables are summed: the gradient of any rank's use of a row
    comes back to the rank it belongs to.
    """
    counts = rows.new_zeros(world_size(), dtype=torch.float64)
    counts[rank()] = len(rows)
    sizes = [int(n) for n in sum_over_ranks(counts)]
    start, own = sum(sizes[: rank()]), len(rows)
    return sum_over_ranks(F.pad(rows, (0, 0, start, sum(sizes) - start - own))), start


def nt_xent(first: torch.Tensor, second: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Normalised temperature-scaled cross-entropy: each view finds its partner among all other views of all ranks.

    Args:
        first, second: [N, D], two views of each sample; normalised here. N may differ between ranks.

    Returns:
        Scalar; log(2 N - 1) if all embeddings are equal, N over all ranks.
    """
    keys_first, start = all_rows(unit(first))
    keys_second, _ = all_rows(unit(second))
    own, count = len(first), len(keys_first)
    keys = torch.cat([keys_first, keys_second])
    anchors = torch.cat([keys_first[start : start + own], keys_second[start : start + own]])
    mine = torch.arange(start, start + own, device=first.device)
    itself, partner = torch.cat([mine, mine + count]), torch.cat([mine + count, mine])
    logits = (anchors @ keys.T / temperature).scatter(1, itself.unsqueeze(1), -torch.inf)
    return mean_over_ranks(F.cross_entropy(logits, partner, reduction="sum"), 2 * own)


class Method(Protocol):
    """What a baseline adds to the encoder: heads, a loss of two views, a target to update."""

    def __call__(
        self, encoder: nn.Module, views: tuple[torch.Tensor, torch.Tensor], action: torch.Tensor
    ) -> Loss: ...

    def update(self, encoder: nn.Module, *, progress: float) -> dict[str, float]: ...


def mlp(*widths: int) -> nn.Sequential:
    """Linear-BN-ReLU between the widths, the last layer linear: projector and predictor of all baselines."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(a, b, bias=False), SyncedBatchNorm1d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


class SimCLR(nn.Module):
    """NT-Xent of the projections of two views."""

    def __init__(self, dim: int, *, widths: Sequence[int] = (2048, 2048, 2048), temperature: float = 0.5):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"the temperature must be positive, got {temperature}")
        self.projector, self.temperature = mlp(dim, *widths), temperature

    def forward(
        self, encoder: nn.Module, views: tuple[torch.Tensor, torch.Tensor], action: torch.Tensor
    ) -> Loss:
        first, second = self.projector(encoder(torch.cat(views))).chunk(2)
        loss = nt_xent(first, second, temperature=self.temperature)
        return Loss.weighted({"loss/nt_xent": (1.0, loss)})

    def update(self, encoder: nn.Module, *, progress: float) -> dict[str, float]:
        return {}


class VICReg(nn.Module):
    """Invariance, variance and covariance of the projections of two views; weights of arXiv 2505.03176, A.3."""

    def __init__(
        self,
        dim: int,
        *,
        widths: Sequence[int] = (2048, 2048, 2048),
        invariance: float = 10.0,
        variance: float = 10.0,
        covariance: float = 1.0,
    ):
        super().__init__()
        self.projector = mlp(dim, *widths)
        self.weights = (invariance, variance, covariance)

    def forward(
        self, encoder: nn.Module, views: tuple[torch.Tensor, torch.Tensor], action: torch.Tensor
    ) -> Loss:
        both = torch.stack(self.projector(encoder(torch.cat(views))).chunk(2))  # [2, N, D]: one test per view
        square = at_least_fp32(both[0] - both[1]).square()
        invariance, variance, covariance = self.weights
        return Loss.weighted(
            {
                "loss/invariance": (invariance, mean_over_ranks(square.sum(), square.numel())),
                "loss/variance": (variance, variance_term(both)),
                "loss/covariance": (
                    covariance,
                    2 * covariance_term(both),
                ),  # summed over views, as in the released code
            }
        )

    def update(self, encoder: nn.Module, *, progress: float) -> dict[str, float]:
        return {}


class SelfDistillation(nn.Module):
    """BYOL and its relatives: the EMA target's projection of one view from the online projection of the other.

    Without projectors (`widths=None`) it is a plain JEPA: the second embedding from the first. With `action_dim` the
    predictor sees the action that leads from the first view to the second; then, and for the plain JEPA, only that
    direction is predicted, since a batch holds no action of the way back.

    Args:
        encoder: copied for the target.
        dim: of its output.
        widths: of the projector, or None for none.
        hidden: of the predictor.
        action_dim, action_embed: of the action given to the predictor; action_dim None for none.
        momentum: of the target at the start; rises to 1 along half a cosine.
    """

    def __init__(
        self,
        encoder: nn.Module,
        dim: int,
        *,
        widths: Sequence[int] | None = (2048, 2048, 2048),
        hidden: int = 512,
        action_dim: int | None = None,
        action_embed: int = 128,
        momentum: float = 0.996,
    ):
        super().__init__()
        self.projector: nn.Module = nn.Identity() if widths is None else mlp(dim, *widths)
        out = dim if widths is None else widths[-1]
        embedded = 0 if action_dim is None else action_embed
        self.action_embedding = None if action_dim is None else nn.Linear(action_dim, embedded, bias=False)
        self.predictor = mlp(out + embedded, hidden, out)
        online = nn.Sequential(encoder, self.projector)
        self.target = EMATarget(online, momentum=momentum, schedule="cosine", copy_buffers=True)
        self.symmetric = widths is not None and action_dim is None
        self.error = PredictionError(kind="cosine")

    def forward(
        self, encoder: nn.Module, views: tuple[torch.Tensor, torch.Tensor], action: torch.Tensor
    ) -> Loss:
        if self.symmetric:
            online, goal = torch.cat(views), torch.cat(views[::-1])
        else:
            online, goal = views
        latent = self.projector(encoder(online))
        if self.action_embedding is not None:
            latent = torch.cat([latent, self.action_embedding(action).to(latent.dtype)], dim=1)
        return self.error(prediction=self.predictor(latent), target=self.target(encoder, goal))

    def update(self, encoder: nn.Module, *, progress: float) -> dict[str, float]:
        online = nn.Sequential(encoder, self.projector)
        return {"ema_momentum": self.target.update(online, progress=progress)}


class TwoViewPretraining(nn.Module):
    """An encoder and a baseline's method, as a task of the training loop.

    Args:
        encoder: observations [N, ...] to embeddings [N, D]; what is kept.
        method: of this module.
        collapse_std: sqrt(D) x standard deviation of the normalised held-out embeddings below which training stops.
    """

    def __init__(self, *, encoder: nn.Module, method: nn.Module, collapse_std: float = 0.1) -> None:
        super().__init__()
        self.encoder, self.method, self.collapse_std = encoder, method, collapse_std

    def training_step(self, batch: EpisodeBatch, step: int) -> Loss:
        """Loss of the first two observations of each stretch.

        Raises:
            ValueError: if the stretches hold fewer than two.
        """
        if batch.observations.shape[1] < 2:
            raise ValueError(f"two views are needed, got stretches of {batch.observations.shape[1]}")
        views = (batch.observations[:, 0], batch.observations[:, 1])
        return self.method(self.encoder, views, batch.actions[:, 0])

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        return self.method.update(self.encoder, progress=step / total_steps)  # type: ignore[operator]

    @torch.no_grad()
    def monitors(self, batches: Sequence[EpisodeBatch]) -> dict[str, float]:
        """Health of the normalised embeddings of held-out views."""
        z = torch.cat([self.encoder(b.observations.flatten(0, 1)) for b in batches])
        health = representation_health(unit(z))
        spread = health["std"] * z.shape[-1] ** 0.5
        if not spread >= self.collapse_std:
            raise RepresentationCollapse(
                f"the embeddings collapsed: their spread on held-out views is {spread:.3f} of an isotropic one's "
                f"(limit {self.collapse_std}). Lower the learning rate, raise the EMA momentum or the variance weight"
            )
        return {**health, "z_std": spread}
