"""ACT-JEPA (arXiv 2501.14622) as a LeRobot policy; importing the package registers `--policy.type=act_jepa`."""

from lerobot_policy_act_jepa.configuration_act_jepa import ACTJEPAConfig
from lerobot_policy_act_jepa.modeling_act_jepa import ACTJEPAPolicy
from lerobot_policy_act_jepa.processor_act_jepa import make_act_jepa_pre_post_processors

__all__ = ["ACTJEPAConfig", "ACTJEPAPolicy", "make_act_jepa_pre_post_processors"]
