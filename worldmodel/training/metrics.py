"""Metrics: one JSON object a line, the same to wandb when asked."""

import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; a last line cut off by a crash is ignored.

    Raises:
        ValueError: if another line is not JSON.
    """
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}: line {number} is not JSON; delete it to go on") from error
    return rows


class MetricsLog:
    """Appends rows to metrics.jsonl. Rows of steps after the checkpoint a run resumes from are dropped first, so the
    file of an interrupted run ends up as that of an undisturbed one.

    Args:
        path: the file; None writes nothing (ranks other than 0).
        finished_steps: steps of the checkpoint to go on from; None where there is none: the file starts anew.
        wandb_mode: "disabled", "offline" or "online".
    """

    def __init__(
        self,
        path: Path | None,
        *,
        finished_steps: int | None,
        wandb_mode: str = "disabled",
        run_name: str = "",
    ) -> None:
        self._file = None
        self._wandb: Any = None
        if path is None:
            return
        last = -1 if finished_steps is None else finished_steps
        kept = [row for row in read_metrics(path) if row["step"] <= last]
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        temporary.replace(path)
        self._file = path.open("a", buffering=1)
        if wandb_mode != "disabled":
            self._wandb = _start_wandb(wandb_mode, run_name, path.parent)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row for the state after `step` finished steps; numbers that are not finite become strings."""
        row = {k: v if math.isfinite(v) else repr(v) for k, v in values.items()}
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **row}) + "\n")
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def sync(self) -> None:
        """Force the rows to disk, so that a checkpoint written afterwards never has rows missing before it."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


def _wandb_id(folder: Path) -> str:
    """The id of the folder's wandb run, made once: a resumed run goes on in the same curve."""
    path = folder / "wandb_id"
    if not path.is_file():
        path.write_text(secrets.token_hex(8))
    return path.read_text()


def _start_wandb(mode: str, name: str, folder: Path) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ImportError(
            "trainer.wandb is on but wandb is not installed: pip install -e '.[wandb]', "
            "or set trainer.wandb=disabled"
        ) from error
    config = folder / "config.json"
    return wandb.init(
        project="robot-worldmodel",
        name=name,
        id=_wandb_id(folder),
        resume="allow",
        config=json.loads(config.read_text()) if config.is_file() else {},
        dir=str(folder),
        mode=mode,  # type: ignore[arg-type]
    )
