"""ACT-JEPA: imitation with a predictive representation (arXiv 2501.14622v4).

    memory  = context encoder(observation_t)                            task, state, environment and image tokens
    actions = action decoder(memory)                                    L1 to a_t ... a_{t+C-1}
    latents = predictor(memory)                                         L1 to s_t ... s_{t+T-1}
    s       = target encoder(task, state_t ... state_{t+T-1})           moving average of the context encoder

Both errors are means over the steps within the episode and have weight 1. The predictor is not told the actions: it
forecasts what the demonstrator will see, and is dropped after training. ACT is the same without the last two lines.
"""

from collections.abc import Sequence

import torch
from torch import nn

from policies.imitation.act import ACT
from policies.imitation.batches import ChunkBatch, PolicyObservation
from policies.imitation.interface import ChunkError
from policies.imitation.policy import Noise, masked_l1
from policies.imitation.targets import Target, TargetProvider
from worldmodel.distributed import at_least_fp32, sum_over_ranks
from worldmodel.monitors import representation_health
from worldmodel.nn.decoder import QueryDecoder
from worldmodel.objectives import Loss
from worldmodel.protocols import RepresentationCollapse


class ACTJEPA(nn.Module):
    """ACT with an auxiliary prediction of coming observations. A `ChunkNetwork`.

    Args:
        act: context encoder and action decoder.
        predictor: memory to one vector per target step; narrow in the paper.
        targets: a `TargetProvider`.
        weight: lambda of the auxiliary loss.
        action_weight: of the action loss; 0 pretrains the context encoder alone, the first of two stages.
        drop_first: leave out the current step, which could be copied from the context.
        collapse_share: of the spread that learned targets had at the first step; training stops below it.

    The spread is the standard deviation between samples. Targets of different kinds and untrained networks of different
    sizes differ in it by a factor of a hundred, so that it is only compared with itself.
    """

    first_spread: torch.Tensor  # of the targets of the first step; 0 before. Part of the checkpoint.

    def __init__(
        self,
        *,
        act: ACT,
        predictor: QueryDecoder,
        targets: nn.Module,
        weight: float = 1.0,
        action_weight: float = 1.0,
        drop_first: bool = False,
        collapse_share: float = 0.05,
    ) -> None:
        super().__init__()
        if act.style is not None:
            raise ValueError(
                "ACT-JEPA has no style: it would tell the predictor of actions that are not yet known"
            )
        if min(weight, action_weight) < 0 or weight == action_weight == 0:
            raise ValueError(
                f"the weights of the auxiliary and the action loss are not negative and not both 0, got {weight} and "
                f"{action_weight}"
            )
        self.act, self.predictor, self.targets = act, predictor, targets
        self.weight, self.action_weight = weight, action_weight
        self.drop_first, self.collapse_share = drop_first, collapse_share
        self.register_buffer("first_spread", torch.zeros(()))

    def loss(self, batch: ChunkBatch, step: int) -> Loss:
        """L1 of actions and L1 of predicted observations; demonstrations without actions count in the latter alone."""
        memory = self.act.context(batch.observation)
        target, prediction = self._predict(memory, batch, step)
        if step == 0:
            self._remember_spread(target)
        return Loss.weighted(
            {
                "loss/action": (self.action_weight, self.act.action_error(memory, batch)),
                "loss/observation": (
                    self.weight,
                    masked_l1(prediction, target.value, self._counts(target)),
                ),
                **target.terms,
            }
        )

    def sample(self, observation: PolicyObservation, noise: Noise = None) -> torch.Tensor:
        """Normalised actions [B, C, Da]; the predictor is not run."""
        return self.act.sample(observation, noise)

    def memory(self, observation: PolicyObservation) -> torch.Tensor:
        """What actions are read from, [B, K, D]."""
        return self.act.memory(observation)

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        """Moves the target encoder."""
        return self._provider.update(self.act.context, progress=step / total_steps)

    @torch.no_grad()
    def diagnostics(self, batches: Sequence[ChunkBatch]) -> dict[str, float]:
        """Held-out error of the prediction, that of the mean target of each step, and the health of learned targets.

        `target_std` pools all steps, `target_spread` is between samples at the same step: positions alone keep the
        former from 0. A collapse is told by the latter, before any normalisation of the targets.
        """
        found = [self._predict(self.act.context(b.observation), b, 0) for b in batches]
        target = torch.cat([t.value for t, _ in found])
        prediction = torch.cat([p for _, p in found])
        valid = torch.cat([t.valid for t, _ in found])
        counts = torch.cat([self._counts(t) for t, _ in found])
        share = valid.unsqueeze(-1) / valid.sum(0).clamp_min(1).unsqueeze(-1)
        mean = (target * share).sum(0)
        values = {
            "observation_l1": float(masked_l1(prediction, target, counts)),
            "observation_l1_mean": float(masked_l1(mean.expand_as(target), target, counts)),
        }
        if not self._provider.learned:
            return values
        judged = torch.cat([t.value if t.judged is None else t.judged for t, _ in found])
        spread, first = float(_spread(judged, valid)), float(self.first_spread)
        if not spread >= self.collapse_share * first:
            raise RepresentationCollapse(
                f"the targets collapsed: between held-out samples their standard deviation is {spread:.2g}, at the "
                f"first step it was {first:.2g}. Raise the EMA momentum or the weight of SIGReg, or lower "
                f"trainer.max_lr"
            )
        health = representation_health(target[valid])
        return {
            **values,
            "target_spread": spread,
            **{f"target_{name}": value for name, value in health.items()},
        }

    def _predict(self, memory: torch.Tensor, batch: ChunkBatch, step: int) -> tuple[Target, torch.Tensor]:
        target = self._provider(batch, self.act.context, step)
        asked, given = len(self.predictor.queries), target.valid.shape[1]
        if asked != given:
            raise ChunkError(
                f"the predictor forecasts {asked} steps, the batch has targets of {given}: give the data set and the "
                f"auxiliary branch the same horizon"
            )
        return target, self.predictor(memory, ~target.valid)

    @torch.no_grad()
    def _remember_spread(self, target: Target) -> None:
        """The mean over ranks, which all then agree on."""
        if self._provider.learned:
            spread = _spread(target.value if target.judged is None else target.judged, target.valid)
            total, ranks = sum_over_ranks(torch.stack([spread, torch.ones_like(spread)]))
            self.first_spread.copy_(total / ranks)

    def _counts(self, target: Target) -> torch.Tensor:
        counts = target.valid.clone()
        if self.drop_first:
            counts[:, 0] = False
        return counts

    @property
    def _provider(self) -> TargetProvider:
        return self.targets  # type: ignore[return-value]


def _spread(target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Standard deviation of targets [B, K, D] over samples, meaned over steps and features.

    Of samples that end before the episode does, if there are two: how much is padded differs and shows in a target.
    """
    whole = valid.all(1)
    rows = target[whole] if int(whole.sum()) >= 2 else target[:, :1]
    return at_least_fp32(rows).std(0, correction=0).mean()
