"""The run folder: config, metrics, checkpoints, figures and the report of one run."""

import fcntl
import json
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from worldmodel.training.checkpoints import list_checkpoints, write_json


class RunFolderError(RuntimeError):
    """A run folder cannot be used as asked."""


class RunFolder:
    """runs/<job>/<name>/ with config.json, metrics.jsonl, checkpoints/, figures/ and report.html."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.figures = path / "figures"
        self.metrics = path / "metrics.jsonl"
        self.config = path / "config.json"
        self.report = path / "report.html"
        self._lock: IO[str] | None = None

    @classmethod
    def locate(cls, directory: str | None, *, job: str, root: Path, resume: bool) -> "RunFolder":
        """The folder named, or the newest run of the job to resume, or a new one named by the time.

        Raises:
            RunFolderError: if there is nothing to resume.
        """
        if directory is not None:
            return cls(Path(directory).expanduser())
        if not resume:
            return cls(root / job / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
        runs = sorted(
            (p for p in (root / job).glob("*") if (p / "config.json").is_file()), key=lambda p: p.name
        )
        if not runs:
            raise RunFolderError(f"no run to resume under {root / job}: name one with run.dir=DIR")
        return cls(runs[-1])

    def check(self, config: dict[str, Any], *, resume: bool, volatile: tuple[str, ...]) -> None:
        """Refuse what `open` would refuse, without touching anything: before data are read or made.

        Raises:
            RunFolderError: if the folder holds another run, or the config differs.
        """
        if not self.config.is_file():
            return
        if not resume:
            raise RunFolderError(
                f"{self.path} already holds a run: continue it with resume=true, "
                f"or choose another folder with run.dir=DIR"
            )
        before = flatten(json.loads(self.config.read_text()))
        now = flatten(json.loads(json.dumps(config)))
        changed = [
            f"{key}: {before.get(key, 'absent')!r} -> {now.get(key, 'absent')!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not _may_change(key, volatile)
        ]
        if changed:
            raise RunFolderError(
                f"{self.path} was started with other settings ({'; '.join(changed[:6])}). "
                f"Resume with the old ones, or start a new run with run.dir=DIR"
            )

    def open(self, config: dict[str, Any], *, resume: bool, volatile: tuple[str, ...]) -> None:
        """Create the folder, or check that a resumed run has the config it was started with.

        Args:
            config: nested plain values; stored as config.json.
            volatile: dotted keys that may change between starts (paths, progress, worker counts); one that ends in a
                dot stands for its whole group.

        Raises:
            RunFolderError: if the folder holds another run, the config differs, or another process is at work on it.
        """
        self.check(config, resume=resume, volatile=volatile)
        self._take()
        if not self.config.is_file():
            write_json(self.config, config)

    def stored_config(self) -> dict[str, Any]:
        """The config the run was started with; empty if there is none."""
        return json.loads(self.config.read_text()) if self.config.is_file() else {}

    def _take(self) -> None:
        """Hold the folder until this process ends, however it ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"another process is training in {self.path}: wait for it or stop it, or choose another folder "
                f"with run.dir=DIR"
            ) from None
        except OSError:
            pass  # a file system without locks

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        found = list_checkpoints(self.checkpoints)
        return found[-1] if found else None


def _may_change(key: str, volatile: tuple[str, ...]) -> bool:
    return any(key == v or (v.endswith(".") and key.startswith(v)) for v in volatile)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
