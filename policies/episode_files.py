"""Finished episodes on disk, one line each, so that an evaluation that was stopped can go on."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from worldmodel.training.run_folder import flatten

E = TypeVar("E")


class Line(Protocol):
    """What can be written."""

    def json(self) -> dict[str, Any]: ...


class _State(NamedTuple):
    """By which a file is recognised; of none, zeros."""

    inode: int
    size: int
    modified_ns: int


class EpisodeFileError(RuntimeError):
    """A file of episodes is of another evaluation, or damaged."""


def run_names(name: str, count: int) -> list[str]:
    """Names of an agent's runs and of their files, one per training seed."""
    return [f"{name}_{i}" for i in range(count)] if count > 1 else [name]


class EpisodeFile:
    """JSON lines: first what was evaluated, how and with which code, then one episode per line. Where other code went
    on with the file, a line names its commit. The file is read again before something is added only if it is not as
    this object left it.

    Args:
        header: what the file must have been written for; the first line of a new file, written with its first episodes.
        commit: of this code.

    Raises:
        EpisodeFileError: if the file is of another evaluation.
    """

    def __init__(self, path: Path, *, header: dict[str, Any], commit: str) -> None:
        self.path, self.commit = path, commit
        self.header = json.loads(json.dumps({**header, "commit": commit}))
        self._check()

    def _check(self) -> None:
        """Raises EpisodeFileError if the file is of another evaluation."""
        lines = self._lines()
        old, new = flatten(lines[0] if lines else self.header), flatten(self.header)
        changed = [
            f"{key}: {old.get(key, 'absent')!r} -> {new.get(key, 'absent')!r}"
            for key in sorted((old.keys() | new.keys()) - {"commit"}, key=_fingerprints_first)
            if old.get(key) != new.get(key)
        ]
        if changed:
            more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
            raise EpisodeFileError(
                f"{self.path} holds episodes of another evaluation ({'; '.join(changed[:4])}{more}): choose another "
                f"folder with out=DIR, or delete the file"
            )
        self._newest = _commits(lines)[-1:]
        self._left = self._state()

    def read(self, parse: Callable[[dict[str, Any]], E]) -> list[E]:
        """The finished episodes, each from its line.

        Raises:
            EpisodeFileError: if a line other than the last, which a crash may cut, cannot be read.
        """
        try:
            return [parse(line) for line in self._lines()[1:] if "commit" not in line]
        except (TypeError, KeyError) as error:
            raise EpisodeFileError(
                f"{self.path} was written by another version ({error}): delete it to evaluate anew"
            ) from error

    def commits(self) -> tuple[str, ...]:
        """Of the code that made the episodes, first to last."""
        return _commits(self._lines())

    def append(self, episodes: Iterable[Line]) -> None:
        """Add finished episodes; they are on disk when this returns.

        Raises:
            EpisodeFileError: if the file was replaced by one of another evaluation, or damaged.
        """
        if self._state() != self._left:
            self._check()
        begin: list[dict[str, Any]] = []
        if not self._newest:
            begin = [self.header]
        elif self._newest != (self.commit,):
            begin = [{"commit": self.commit}]
        self._write([*begin, *(e.json() for e in episodes)])
        self._newest = (self.commit,)

    def _write(self, lines: Iterable[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        added = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
        before = self._left.size
        with self.path.open("ab") as file:
            file.write(added)
            file.flush()
            os.fsync(file.fileno())
        # The size that this object made, not the one found: what others add meanwhile is to be noticed.
        self._left = self._state()._replace(size=before + len(added))

    def _state(self) -> "_State":
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return _State(0, 0, 0)
        return _State(found.st_ino, found.st_size, found.st_mtime_ns)

    def _lines(self) -> list[dict[str, Any]]:
        whole = self.path.read_bytes() if self.path.is_file() else b""
        complete, _, torn = whole.rpartition(b"\n")
        if (
            torn
        ):  # a crash in the middle of a line; cutting it off leaves the others untouched if this crashes too
            os.truncate(self.path, len(whole) - len(torn))
        lines = complete.split(b"\n") if complete else []
        try:
            parsed = [json.loads(line) for line in lines]
        except ValueError as error:
            raise EpisodeFileError(f"{self.path} is damaged ({error}): delete it to evaluate anew") from error
        if parsed and not (isinstance(parsed[0], dict) and "agent" in parsed[0]):
            raise EpisodeFileError(f"{self.path} does not begin with what was evaluated: delete it")
        return parsed


def _commits(lines: list[dict[str, Any]]) -> tuple[str, ...]:
    first = [line.get("commit", "unknown") for line in lines[:1]]
    return (*first, *(line["commit"] for line in lines[1:] if "commit" in line))


def _fingerprints_first(key: str) -> tuple[bool, str]:
    """Order of what an error lists: another model explains most other differences."""
    return not key.endswith("fingerprint"), key
