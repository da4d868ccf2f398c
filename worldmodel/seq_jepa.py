"""seq-JEPA: an action-conditioned world model with an equivariant and an invariant code (arXiv 2505.03176).

A sequence of views x_1..x_M and the actions between them is aggregated by a small transformer; from the aggregate and
the next action a predictor guesses the embedding of view x_{M+1}. The encoder's output is the equivariant code, the
aggregate the invariant one; nothing in the loss enforces either.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from worldmodel.batches import EpisodeBatch, LatentState
from worldmodel.distributed import at_least_fp32
from worldmodel.lejepa import LeJEPA
from worldmodel.monitors import CopyLast, representation_health
from worldmodel.nn.batch_norm import SyncedBatchNorm1d
from worldmodel.objectives import Loss, PredictionError, unit
from worldmodel.protocols import RepresentationCollapse
from worldmodel.targets import EMATarget, SharedTarget


class Aggregator(nn.Module):
    """Transformer encoder over [AGG] and one token per (view, action); returns the output at [AGG].

    Bidirectional, post-norm, ReLU, one LayerNorm at the end, as in the paper and its code.

    Args:
        dim: width of a token.
        layers, heads, mlp_ratio, dropout: of the transformer.
        positions: "none" as in the paper: views may be permuted with their actions. "learned" tells steps apart, which
            actions that do not commute need.
        max_views: number of learned positions; ignored without.
        token_std: standard deviation the [AGG] token is drawn with; 0 in the official code.
    """

    def __init__(
        self,
        dim: int,
        *,
        layers: int = 3,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        positions: Literal["none", "learned"] = "none",
        max_views: int = 16,
        token_std: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(
                f"the token width {dim} (embedding and action) is not a multiple of {heads} heads"
            )
        if positions not in ("none", "learned"):
            raise ValueError(f"positions is none or learned, got {positions!r}")
        layer = nn.TransformerEncoderLayer(dim, heads, int(mlp_ratio * dim), dropout, batch_first=True)
        self.transformer = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False
        )
        self.token = nn.Parameter(torch.randn(dim) * token_std)
        self.positions = nn.Parameter(torch.randn(max_views, dim) * 0.02) if positions == "learned" else None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [B, M, D] to the aggregate [B, D]. Learned positions count from the last view backwards.

        Raises:
            ValueError: if there are more views than learned positions.
        """
        views = tokens.shape[1]
        if self.positions is not None:
            if views > len(self.positions):
                raise ValueError(
                    f"{views} views but {len(self.positions)} learned positions: raise max_views, or give the last "
                    f"{len(self.positions)} views only"
                )
            tokens = tokens + self.positions[:views].flip(0)
        start = self.token.expand(len(tokens), 1, -1).to(tokens.dtype)
        return self.transformer(torch.cat([start, tokens], dim=1))[:, 0]


class Predictor(nn.Sequential):
    """Linear without bias, BatchNorm, ReLU, Linear: aggregate and action embedding to the next embedding."""

    def __init__(self, in_dim: int, out_dim: int, *, hidden: int = 1024) -> None:
        super().__init__(
            nn.Linear(in_dim, hidden, bias=False),
            SyncedBatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out_dim),
        )


class SeqWorldModel(nn.Module):
    """Encoder, action embedding, aggregator, predictor: what is used after training.

    Args:
        encoder: observations [N, ...] to embeddings [N, D].
        embed_dim: D.
        action_dim: A.
        action_scale: what actions are divided by first, a number or [A], for those that are far from 1 in size.
        action_embed: E, width of the embedded action. One linear map embeds observed and upcoming actions alike.
        condition: where actions enter; "none" is the action-free ablation.
        hidden: of the predictor.
        window: views the aggregator sees at most when it imagines, the latest; all without.
        aggregator: options of `Aggregator`.
    """

    action_scale: torch.Tensor

    def __init__(
        self,
        *,
        encoder: nn.Module,
        embed_dim: int,
        action_dim: int,
        action_scale: float | torch.Tensor = 1.0,
        action_embed: int = 128,
        condition: Literal["both", "predictor", "aggregator", "none"] = "both",
        hidden: int = 1024,
        window: int | None = None,
        **aggregator: object,
    ) -> None:
        super().__init__()
        if condition not in ("both", "predictor", "aggregator", "none"):
            raise ValueError(f"condition is both, predictor, aggregator or none, got {condition!r}")
        scale = torch.as_tensor(action_scale, dtype=torch.float32).expand(action_dim)
        if not bool((scale > 0).all()):
            raise ValueError(f"the action scale must be positive, got {action_scale}")
        self.condition, self.window = condition, window
        self.register_buffer("action_scale", scale.clone(), persistent=False)
        self.encoder = encoder
        self.action_embedding = nn.Linear(action_dim, action_embed, bias=False)
        self.aggregator = Aggregator(embed_dim + action_embed, **aggregator)  # type: ignore[arg-type]
        self.predictor = Predictor(embed_dim + 2 * action_embed, embed_dim, hidden=hidden)

    def encode(self, observations: torch.Tensor) -> torch.Tensor:
        """Equivariant code z [B, T, D] of observations [B, T, ...]."""
        flat = self.encoder(observations.flatten(0, 1))
        return flat.unflatten(0, observations.shape[:2])

    def aggregate(self, z: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Invariant code [B, D + E] of views z [B, M, D] and the M - 1 actions between them [B, M - 1, A].

        The last view has no action yet: its slot is zero.
        """
        if actions.shape[:2] != (z.shape[0], z.shape[1] - 1):
            raise ValueError(
                f"{z.shape[1]} views have {z.shape[1] - 1} actions between them, got z {tuple(z.shape)} and actions "
                f"{tuple(actions.shape)}"
            )
        embedded = self._embedded(actions, used=self.condition in ("both", "aggregator"))
        last = embedded.new_zeros(len(z), 1, embedded.shape[-1])
        return self.aggregator(torch.cat([z, torch.cat([embedded, last], dim=1).to(z.dtype)], dim=-1))

    def predict(self, aggregate: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Embedding of the next view [B, D], up to its norm, from the aggregate [B, D + E] and an action [B, A]."""
        embedded = self._embedded(action, used=self.condition in ("both", "predictor"))
        return self.predictor(torch.cat([aggregate, embedded.to(aggregate.dtype)], dim=-1))

    def rollout(self, state: LatentState, future: torch.Tensor) -> torch.Tensor:
        """Imagine H steps: embeddings [B, H, D] for future actions [B, H, A].

        The cosine loss leaves the norm of a prediction open: each is brought to the mean norm of the state's latents,
        of real views as of imagined ones, before it is fed back.
        """
        imagined = []
        for action in future.unbind(1):
            norm = at_least_fp32(state.latents).norm(dim=-1).mean(dim=1, keepdim=True)
            guess = self.predict(self.aggregate(state.latents, state.actions), action)
            guess = nn.functional.normalize(at_least_fp32(guess), dim=-1) * norm
            imagined.append(guess)
            state = state.append(guess, action, window=self.window)
        return torch.stack(imagined, dim=1)

    def _embedded(self, actions: torch.Tensor, *, used: bool) -> torch.Tensor:
        embedded = self.action_embedding(actions / self.action_scale)
        return embedded if used else torch.zeros_like(embedded)


class SeqJEPA(nn.Module):
    """The world model with its target and objective, as a task of the training loop.

    Args:
        model: the world model.
        target: EMATarget as in the paper, or SharedTarget with LeJEPA's regulariser.
        error: prediction error of the next embedding; cosine in the paper.
        lejepa: with SharedTarget, SIGReg on every step's embeddings: one test per time step.
        views: observed views M; (low, high) draws M anew for every step, the same on all ranks.
        collapse_std: sqrt(D) x standard deviation of the normalised held-out embeddings below which training stops.
    """

    def __init__(
        self,
        *,
        model: SeqWorldModel,
        target: EMATarget | SharedTarget,
        error: PredictionError | None = None,
        lejepa: LeJEPA | None = None,
        views: int | tuple[int, int] = 3,
        collapse_std: float = 0.1,
    ) -> None:
        super().__init__()
        if isinstance(target, SharedTarget) and lejepa is None:
            raise ValueError("a shared target without a regulariser collapses: give lejepa=LeJEPA(...)")
        self.views = (views, views) if isinstance(views, int) else views
        if not 1 <= self.views[0] <= self.views[1]:
            raise ValueError(f"views must be at least 1 and in order, got {views}")
        self.model, self.target, self.lejepa = model, target, lejepa
        self.error = error or PredictionError(kind="cosine")
        self.collapse_std = collapse_std

    def forward(self, batch: EpisodeBatch, step: int) -> Loss:
        """Loss of predicting the last observation of each stretch from all before it."""
        z = self.model.encode(batch.observations[:, :-1])
        aggregate = self.model.aggregate(z, batch.actions[:, :-1])
        prediction = self.model.predict(aggregate, batch.actions[:, -1])
        goal = self.target(self.model.encoder, batch.observations[:, -1])
        loss = self.error(prediction=prediction, target=goal)
        if self.lejepa is None:
            return loss
        steps = torch.cat([z, goal.unsqueeze(1)], dim=1).transpose(0, 1)  # [T, B, D]: one test per time step
        return self.lejepa(prediction=loss, embeddings=[steps], step=step)

    def training_step(self, batch: EpisodeBatch, step: int) -> Loss:
        """Loss with the number of views of this step.

        Raises:
            ValueError: if the stretches are shorter than the views and the target.
        """
        low, high = self.views
        if batch.observations.shape[1] < high + 1:
            raise ValueError(
                f"{high} views and a target need stretches of {high + 1} observations, got "
                f"{batch.observations.shape[1]}"
            )
        views = low + int(torch.randint(high - low + 1, (), generator=torch.Generator().manual_seed(step)))
        return self(batch.first(views + 1), step)

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        momentum = self.target.update(self.model.encoder, progress=step / total_steps)
        return {} if momentum is None else {"ema_momentum": momentum}

    @torch.no_grad()
    def monitors(self, batches: Sequence[EpisodeBatch]) -> dict[str, float]:
        """Health of the embeddings, and the prediction error against copying, shuffled targets and the floor 0."""
        model, views = self.model, self.views[1]
        copy_last = CopyLast()
        errors: dict[str, list[float]] = {"error": [], "error_shuffled": [], "error_copy": []}
        embeddings = []
        for whole in batches:
            batch = whole.first(views + 1).to(model.action_embedding.weight.device)
            z = model.encode(batch.observations)
            past, goal = z[:, :-1], z[:, -1]
            guess = model.predict(model.aggregate(past, batch.actions[:, :-1]), batch.actions[:, -1])
            shuffled = goal.roll(1, 0)
            for name, (a, b) in {
                "error": (guess, goal),
                "error_shuffled": (guess, shuffled),
                "error_copy": (past[:, -1], goal),
            }.items():
                errors[name].append(float(self.error(prediction=a, target=b).total))
            copy_last.update(prediction=unit(guess), target=unit(goal), last=unit(past[:, -1]))
            embeddings.append(unit(z.flatten(0, 1)))
        health = representation_health(torch.cat(embeddings))
        spread = health["std"] * z.shape[-1] ** 0.5
        values = {name: sum(v) / len(v) for name, v in errors.items()}
        if not spread >= self.collapse_std:
            raise RepresentationCollapse(
                f"the embeddings collapsed: their spread on held-out episodes is {spread:.3f} of an isotropic one's "
                f"(limit {self.collapse_std}). Lower trainer.max_lr, raise the EMA momentum or give SIGReg more weight"
            )
        return {**health, **values, "z_std": spread, "copy_last_ratio": copy_last.compute().ratio}
