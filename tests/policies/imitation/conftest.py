"""Fixtures of the tests of imitation policies."""

from tests.worldmodel.conftest import two_processes

__all__ = ["two_processes"]
