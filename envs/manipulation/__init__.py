"""Simulators and their scripted experts behind one protocol, and demonstrations recorded from them.

Needs `pip install 'robot-worldmodel[manipulation]'`; recording needs the extra `lerobot` as well.
"""

from envs.manipulation.protocol import Expert, ManipulationEnv, NoExpertError, Observation
from envs.manipulation.registry import EnvOptions, env_names, make_env
from envs.manipulation.rollout import RolloutSettings, demonstrate

__all__ = [
    "EnvOptions",
    "Expert",
    "ManipulationEnv",
    "NoExpertError",
    "Observation",
    "RolloutSettings",
    "demonstrate",
    "env_names",
    "make_env",
]
