"""Fixtures of the tests of detectors."""

from tests.worldmodel.conftest import two_processes

__all__ = ["two_processes"]
