"""Probe heads on frozen features, trained by Adam from an explicit seed on features standardised once.

The convex linear classifier of worldmodel.probes has no seed and no schedule; these are the heads of the protocols
that prescribe Adam for so many epochs, and those that are not convex.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

Kind = Literal["linear", "mlp", "attentive"]


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """A head and its training.

    Attributes:
        kind: linear; mlp, `layers` hidden layers of `hidden` with ReLU; attentive, one learned query attends over the
            tokens of a sample, then linear.
        hidden, layers: of the mlp.
        heads: of the attention; must divide the width of the features.
        epochs, batch_size, lr, weight_decay: of Adam.
    """

    kind: Kind = "linear"
    hidden: int = 256
    layers: int = 2
    heads: int = 4
    epochs: int = 30
    batch_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "mlp", "attentive"):
            raise ValueError(f"a head is linear, mlp or attentive, got {self.kind!r}")
        if min(self.hidden, self.layers, self.heads, self.epochs, self.batch_size) < 1 or self.lr <= 0:
            raise ValueError(f"sizes and epochs must be at least 1 and lr positive: {self}")


class AttentiveHead(nn.Module):
    """One learned query attends over tokens [N, T, D]; a linear map reads the answer."""

    def __init__(self, dim: int, out_dim: int, *, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"features of width {dim} cannot be split over {heads} attention heads")
        self.query = nn.Parameter(torch.randn(dim) * 0.02)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.out = nn.Linear(dim, out_dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        query = self.query.expand(len(tokens), 1, -1)
        return self.out(self.attention(query, tokens, tokens, need_weights=False)[0][:, 0])


@dataclass(frozen=True, kw_only=True)
class FittedHead:
    """A trained head with the standardisation of its training features: call it on features [N, (T,) D]."""

    module: nn.Module
    mean: torch.Tensor
    std: torch.Tensor

    @torch.no_grad()
    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Logits or predictions [N, C].

        Raises:
            ValueError: if the features are not as wide as those it was trained on.
        """
        if features.shape[-1] != len(self.mean):
            raise ValueError(
                f"this head reads features of width {len(self.mean)}, got {tuple(features.shape)}"
            )
        return self.module((features.float() - self.mean) / self.std)

    def accuracy(self, features: torch.Tensor, labels: torch.Tensor) -> float:
        """Share of samples whose largest logit is that of their label [N]."""
        return float((self(features).argmax(1) == labels).double().mean())


def fit_classifier(
    features: torch.Tensor, labels: torch.Tensor, *, classes: int, config: HeadConfig, seed: int
) -> FittedHead:
    """Cross-entropy on labels [N] in 0..classes-1; see `_fit` for the rest.

    Raises:
        ValueError: if a label is out of range or the shapes do not fit.
    """
    if labels.ndim != 1 or len(labels) == 0 or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels must be [N] in 0..{classes - 1}, got {tuple(labels.shape)}")
    return _fit(features, labels.long(), out_dim=classes, loss=F.cross_entropy, config=config, seed=seed)


def fit_regressor(
    features: torch.Tensor, targets: torch.Tensor, *, config: HeadConfig, seed: int
) -> FittedHead:
    """Mean squared error on targets [N, C], which are taken as they are.

    Raises:
        ValueError: if a target is not finite or the shapes do not fit.
    """
    if targets.ndim != 2 or not bool(targets.isfinite().all()):
        raise ValueError(f"targets must be finite and [N, C], got {tuple(targets.shape)}")
    return _fit(
        features, targets.float(), out_dim=targets.shape[1], loss=F.mse_loss, config=config, seed=seed
    )


def _fit(
    features: torch.Tensor,
    targets: torch.Tensor,
    *,
    out_dim: int,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    config: HeadConfig,
    seed: int,
) -> FittedHead:
    """Train a head as wide as the features; weights and order of the samples are functions of the seed."""
    tokens = config.kind == "attentive"
    if features.ndim != 2 + tokens or len(features) != len(targets):
        shape = "[N, T, D]" if tokens else "[N, D]"
        raise ValueError(
            f"a {config.kind} head takes features {shape} and one target each, got {tuple(features.shape)} and "
            f"{tuple(targets.shape)}"
        )
    if not bool(features.isfinite().all()):
        raise ValueError("features hold NaN or infinite numbers")
    x = features.detach().float()
    rows = x.flatten(0, -2).double()
    mean, std = rows.mean(0).float(), rows.std(0, correction=0).float()
    # A feature that does not vary stays 0 on the training part, and near it elsewhere.
    std = torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std))
    x = (x - mean) / std
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _module(x.shape[-1], out_dim, config)
    optimizer = torch.optim.Adam(
        module.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(config.epochs):
            for index in torch.randperm(len(x), generator=generator).split(config.batch_size):
                optimizer.zero_grad(set_to_none=True)
                loss(module(x[index]), targets[index]).backward()
                optimizer.step()
    return FittedHead(module=module.eval().requires_grad_(False), mean=mean, std=std)


def _module(dim: int, out_dim: int, config: HeadConfig) -> nn.Module:
    if config.kind == "attentive":
        return AttentiveHead(dim, out_dim, heads=config.heads)
    widths = [dim] + ([config.hidden] * config.layers if config.kind == "mlp" else [])
    hidden = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU(inplace=True))]
    return nn.Sequential(*hidden, nn.Linear(widths[-1], out_dim))
