"""Policies that imitate demonstrations: ACT-JEPA and what it is held against."""
