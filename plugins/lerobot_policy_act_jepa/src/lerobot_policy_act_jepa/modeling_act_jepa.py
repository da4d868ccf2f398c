"""The policy of `policies.imitation` behind LeRobot's interface. Nothing is modelled here."""

import logging
from typing import Any

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy

from lerobot_policy_act_jepa.configuration_act_jepa import ACTJEPAConfig
from policies.imitation.build import build_policy
from policies.imitation.execution import ChunkQueue, Executor, TemporalEnsemble, next_actions
from policies.imitation.statistics import Statistics

logger = logging.getLogger(__name__)


class ACTJEPAPolicy(PreTrainedPolicy):
    """Action chunks and, in training, predicted latents of the coming states (arXiv 2501.14622).

    LeRobot's processors normalise before and after, so that the policy within has the identity for statistics.

    Args:
        config: its `tasks` are filled here if it has none.
        dataset_meta: of the data set to train on; where it is known, tasks are taken from it.
        options: whatever else LeRobot hands to policies.

    Raises:
        ValueError: if the features of the config do not suit the policy.
    """

    config_class = ACTJEPAConfig
    name = "act_jepa"

    def __init__(self, config: ACTJEPAConfig, dataset_meta: Any = None, **options: Any) -> None:
        super().__init__(config)
        config.validate_features()
        if config.tasks is None and dataset_meta is not None:
            config.tasks = [str(task) for task in dataset_meta.tasks.index]
        self.config, self.columns = config, config.columns
        interface = self.columns.interface
        unbounded = np.full(interface.action_dim, np.inf)
        self.policy = build_policy(
            "act_jepa",
            interface=interface,
            sizes=config.sizes,
            auxiliary=config.auxiliary,
            statistics=Statistics.identity(
                action_low=-unbounded,
                action_high=unbounded,
                state_dim=interface.state_dim,
                environment_dim=interface.environment_dim,
            ),
        )
        # Part of the checkpoint: a resumed run goes on with the momentum it had.
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.reset()

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Matrices, and vectors, which do not decay."""
        trained = [p for p in self.parameters() if p.requires_grad]
        matrices, vectors = ([p for p in trained if (p.ndim > 1) is many] for many in (True, False))
        return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]

    def forward(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of a normalised batch of T states and C actions, and its unweighted parts.

        Raises:
            ObservationError, ChunkError: if the batch does not suit the policy.
        """
        loss = self.policy.training_step(self.columns.chunk(batch), int(self.updates))
        return loss.total, {name.replace("/", "_"): float(value) for name, value in loss.parts.items()}

    def update(self) -> None:
        """Move the target encoder; LeRobot's training script calls this after every optimiser step."""
        done, total = int(self.updates), self.config.training_steps
        if done == total:
            logger.warning(
                "the target encoder of ACT-JEPA stands still from step %d on: give --policy.training_steps the "
                "number of all steps, those of a policy that is trained further included",
                done,
            )
        self.policy.after_step(min(done, total), total)
        self.updates += 1

    def reset(self) -> None:
        """New episodes begin in all environments, of which there may be another number."""
        self._executor: Executor | None = None
        self._environments = 0

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **options: Any) -> torch.Tensor:
        """Normalised actions [B, C, Da]; the policy is in evaluation mode afterwards.

        Raises:
            ObservationError: if a part of the observation is missing, of another shape or not finite.
        """
        self.eval()
        return self.policy.act(self.columns.observation(batch))

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **options: Any) -> torch.Tensor:
        """Normalised actions [B, Da] of this step; a new chunk is decided on when the last one is used up.

        Raises:
            ObservationError: as `predict_action_chunk`.
            ValueError: if there are more or fewer environments than at the last step.
        """
        self.eval()
        observation = self.columns.observation(batch)
        if self._executor is None:
            self._environments, self._executor = len(observation), self._new_executor(len(observation))
        if len(observation) != self._environments:
            raise ValueError(
                f"observations of {len(observation)} environments after {self._environments}: call reset() between"
            )
        return next_actions(self._executor, observation, lambda due, rows: self.policy.act(due))

    def _new_executor(self, environments: int) -> Executor:
        decay = self.config.temporal_ensemble_coeff
        if decay is not None:
            return TemporalEnsemble(environments, chunk=self.config.chunk_size, decay=decay)
        return ChunkQueue(environments, execute=self.config.n_action_steps)
