"""Simulators of manipulation and their scripted experts, behind one protocol."""

from envs.manipulation.protocol import Expert, ManipulationEnv, NoExpertError, Observation

__all__ = ["Expert", "ManipulationEnv", "NoExpertError", "Observation"]
