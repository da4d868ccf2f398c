"""Packages of the extra `manipulation`, imported when they are needed."""

from typing import Any

from envs.gym_base import require


def require_manipulation(module: str) -> Any:
    """The module, imported.

    Raises:
        ImportError: naming the extra that brings it.
    """
    try:
        return require(module)
    except ImportError as error:
        raise ImportError(f"{module} is missing: pip install 'robot-worldmodel[manipulation]'") from error
