"""gymnasium.Env as a base class that can be absent: episodes of an environment need numpy alone."""

import importlib
from typing import Any

try:
    from gymnasium import Env
except ImportError:  # pragma: no cover - depends on what is installed

    class Env:  # type: ignore[no-redef]
        """Stands in for gymnasium.Env; environments call `require_gymnasium` when they are made."""


def require(module: str) -> Any:
    """The module, imported.

    Raises:
        ImportError: naming the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is missing: pip install 'robot-worldmodel[sim]'") from error


def require_gymnasium() -> Any:
    """Gymnasium, or an error that names the extra."""
    return require("gymnasium")
