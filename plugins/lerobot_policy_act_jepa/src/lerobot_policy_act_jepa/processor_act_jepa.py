"""The pipelines before and after the policy: LeRobot's own. States and actions are z-scores, images stay in 0..1."""

from typing import Any

import torch
from lerobot.processor import PolicyAction, PolicyProcessorPipeline, make_default_pre_post_processors

from lerobot_policy_act_jepa.configuration_act_jepa import ACTJEPAConfig


def make_act_jepa_pre_post_processors(
    config: ACTJEPAConfig, dataset_stats: dict[str, dict[str, torch.Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Pipelines of observations and of actions; `dataset_stats` are kept beside the weights."""
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
