"""An end-to-end JEPA dynamics model for planning: encoder, recurrent predictor, inverse dynamics; no decoder or reward.

The latent of an observation is the state of the predictor: z_{t+1} = g(z_t, a_t). Everything is trained together from
pixels, kept from collapsing by VICReg's terms (PLDM, arXiv 2502.14819; eb_jepa, arXiv 2602.03604) or by SIGReg (LeWM).
Without the inverse-dynamics term a latent may hold the still background and forget what moves: eb_jepa's success in
Two Rooms falls from 97 % to 1 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from worldmodel.batches import EpisodeBatch, LatentState
from worldmodel.distributed import at_least_fp32, mean_over_ranks
from worldmodel.monitors import representation_health
from worldmodel.nn.batch_norm import SyncedBatchNorm1d, recalibrated
from worldmodel.nn.dynamics import Workspace
from worldmodel.objectives import Loss
from worldmodel.planning import error_by_horizon
from worldmodel.protocols import RepresentationCollapse
from worldmodel.regularizers import covariance_term, variance_term
from worldmodel.sigreg import SIGReg


class GoalCode(nn.Sequential):
    """A short code of a latent in which distances to a goal are measured: Linear-ReLU-Linear-BatchNorm.

    Args:
        dim: numbers of a latent.
        code_dim: C.
        hidden: width in between.
    """

    def __init__(self, dim: int, code_dim: int, *, hidden: int = 128) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(dim, hidden),
            nn.ReLU(),
            nn.Linear(hidden, code_dim),
            SyncedBatchNorm1d(code_dim, affine=False),
        )


class DynamicsModel(nn.Module):
    """Encoder and predictor: what is used after training. A `WorldModel`.

    A latent that says everything needed for prediction is a poor ruler: its dimensions are to be independent, so many
    of them vary fast and distances saturate. Goals are compared in a code of the latent that is trained to vary slowly
    and to tell actions (`JEPADynamics`).

    Args:
        encoder: observations [N, ...] to latents [N, D], or to maps [N, C, h, w].
        predictor: latents and scaled actions [N, A] to the next latents; for planners also `imagine`, see
            `worldmodel.nn.dynamics`.
        action_scale: [A], what an action is divided by before the predictor sees it.
        goal_code: latents [N, D] to the code [N, C]; the latent itself without.
    """

    action_scale: torch.Tensor

    def __init__(
        self,
        *,
        encoder: nn.Module,
        predictor: nn.Module,
        action_scale: torch.Tensor,
        goal_code: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not bool((action_scale > 0).all()):
            raise ValueError(f"the action scale must be positive, got {action_scale.tolist()}")
        self.encoder, self.predictor = encoder, predictor
        self.goal_code = goal_code or nn.Flatten()
        self.register_buffer("action_scale", action_scale.float())

    def encode(self, observations: torch.Tensor) -> torch.Tensor:
        """Latents [B, T, D] or [B, T, C, h, w] of observations [B, T, ...]."""
        return self.encoder(observations.flatten(0, 1)).unflatten(0, observations.shape[:2])

    def step(self, z: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Next latents [N, D] of latents [N, D] and actions [N, A] in the environment's units."""
        return self.predictor(z, action / self.action_scale)

    def rollout(self, state: LatentState, future: torch.Tensor) -> torch.Tensor:
        """Imagined latents [B, H, D] for future actions [B, H, A]; only the newest latent of the state counts."""
        z, imagined = state.latents[:, -1], []
        for action in future.unbind(1):
            z = self.step(z, action)
            imagined.append(z)
        return torch.stack(imagined, dim=1)

    def rollout_candidates(
        self, state: LatentState, candidates: torch.Tensor, workspace: Workspace | None = None
    ) -> torch.Tensor:
        """Imagined latents [B, K, H, D] for K candidates [B, K, H, A] per row of the state, without gradients.

        What a planner calls. Equal to `rollout` of the repeated state up to rounding. With a workspace the latents are
        overwritten by the next call with it.
        """
        imagined: torch.Tensor = self.predictor.imagine(  # type: ignore[operator]
            state.latents[:, -1], candidates / self.action_scale, workspace
        )
        return imagined


@dataclass(frozen=True, kw_only=True)
class DynamicsWeights:
    """Weights of the loss terms.

    Attributes:
        prediction: of the imagined latents; a map is mostly background, whose error is small.
        one_step: prediction error from every true latent (teacher forcing).
        variance, covariance: VICReg's terms of the latents, over the batch at each time step.
        code_covariance: the same of the goal codes.
        smoothness: mean squared change of a goal code from one step to the next.
        inverse: error of the action read from two consecutive goal codes.
        sigreg: SIGReg, over the batch at each time step.
        ramp: steps over which the weights of both predictions rise from 0. As long as the codes do not tell actions,
            the easy way to predict is to forget what moves.
    """

    prediction: float = 1.0
    one_step: float = 1.0
    variance: float = 1.0
    covariance: float = 1.0
    code_covariance: float = 0.2
    smoothness: float = 0.1
    inverse: float = 10.0
    sigreg: float = 0.0
    ramp: int = 0


class JEPADynamics(nn.Module):
    """The dynamics model with its training signals, as a task of the training loop.

    Args:
        model: the dynamics model.
        dim: D.
        action_dim: A.
        code_dim: C of the model's goal code; D without one.
        weights: of the loss terms.
        sigreg: the statistic; needed where weights.sigreg is not 0.
        inverse_hidden: width of the inverse-dynamics head.
        collapse_std: mean standard deviation of held-out latents below which training stops.
    """

    def __init__(
        self,
        *,
        model: DynamicsModel,
        dim: int,
        action_dim: int,
        code_dim: int | None = None,
        weights: DynamicsWeights | None = None,
        sigreg: SIGReg | None = None,
        inverse_hidden: int = 256,
        collapse_std: float = 0.05,
    ) -> None:
        super().__init__()
        self.weights = weights or DynamicsWeights()
        if self.weights.sigreg and sigreg is None:
            raise ValueError("a weight of SIGReg needs the statistic: give sigreg=SIGReg(...)")
        if not (self.weights.variance or self.weights.sigreg):
            raise ValueError(
                "without variance or sigreg all latents collapse to one: give one of them a weight"
            )
        self.model, self.sigreg, self.collapse_std = model, sigreg, collapse_std
        self.inverse = nn.Sequential(
            nn.Linear(2 * (code_dim or dim), inverse_hidden), nn.ReLU(), nn.Linear(inverse_hidden, action_dim)
        )

    def training_step(self, batch: EpisodeBatch, step: int) -> Loss:
        """Loss of imagining each stretch from its first observation."""
        weights, actions = self.weights, batch.actions
        z = self.model.encode(batch.observations)
        imagined = self.model.rollout(LatentState(latents=z[:, :1], actions=actions[:, :0]), actions)
        share = min(1.0, (step + 1) / weights.ramp) if weights.ramp else 1.0
        terms = {"loss/prediction": (share * weights.prediction, _mean_square(imagined - z[:, 1:]))}
        if weights.one_step:
            forced = self.model.step(z[:, :-1].flatten(0, 1), actions.flatten(0, 1))
            terms["loss/one_step"] = (share * weights.one_step, _mean_square(forced - z[:, 1:].flatten(0, 1)))
        steps = _samples(z)
        if weights.variance:
            terms["loss/variance"] = (weights.variance, variance_term(steps))
        if weights.covariance:
            terms["loss/covariance"] = (weights.covariance, covariance_term(steps))
        code = self.model.goal_code(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        if weights.code_covariance:
            terms["loss/code_covariance"] = (weights.code_covariance, covariance_term(code.transpose(0, 1)))
        if weights.smoothness:
            terms["loss/smoothness"] = (weights.smoothness, _mean_square(code[:, 1:] - code[:, :-1]))
        if weights.inverse:
            guess = self.inverse(torch.cat([code[:, :-1], code[:, 1:]], dim=-1))
            wanted = actions / self.model.action_scale
            terms["loss/inverse"] = (weights.inverse, _mean_square(guess - wanted))
        if weights.sigreg and self.sigreg is not None:
            terms["loss/sigreg"] = (weights.sigreg, self.sigreg(steps, step=step))
        return Loss.weighted(terms)

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        return {}

    @torch.no_grad()
    def monitors(self, batches: Sequence[EpisodeBatch]) -> dict[str, float]:
        """Health of the latents, and the prediction error against copying the first latent, per horizon.

        Of a copy whose BatchNorm statistics are those of the held-out episodes. `copy_last_ratio_raw_*` are of the
        model as it is stored, with the running statistics of training: what a planner will use.
        """
        here = [batch.to(self.model.action_scale.device) for batch in batches]
        raw, model = (
            recalibrated(self.model, seen, lambda m, batch: m.encode(batch.observations))  # type: ignore[operator]
            for seen in ([], here)
        )
        assert isinstance(raw, DynamicsModel)
        assert isinstance(model, DynamicsModel)
        latents = [_samples(model.encode(batch.observations)).flatten(0, 1) for batch in here]
        health = representation_health(torch.cat(latents))
        if not health["std"] >= self.collapse_std:
            raise RepresentationCollapse(
                f"the latents collapsed: their standard deviation on held-out episodes is {health['std']:.3f} (limit "
                f"{self.collapse_std}). Raise the weight of variance or sigreg, or lower trainer.max_lr"
            )
        longest = min(batch.actions.shape[1] for batch in here)
        ratios = {
            f"{name}_{h}": summary.ratio
            for name, judged in (("copy_last_ratio", model), ("copy_last_ratio_raw", raw))
            for h, summary in enumerate(error_by_horizon(judged, here, context=1, horizon=longest), start=1)
        }
        return {**health, **ratios}


def _mean_square(difference: torch.Tensor) -> torch.Tensor:
    """Mean of squares over all numbers of all ranks, in fp32."""
    square = at_least_fp32(difference).square()
    return mean_over_ranks(square.sum(), square.numel())


def _samples(z: torch.Tensor) -> torch.Tensor:
    """Latents [B, T, D] as [T, B, D] and maps [B, T, C, h, w] as [T, B h w, C]: one test per time step."""
    steps = z.transpose(0, 1)
    return steps if z.ndim == 3 else steps.movedim(2, -1).flatten(1, -2)
