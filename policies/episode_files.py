"""Finished episodes on disk, one line each, so that an evaluation that was stopped can go on."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from policies.rollouts import Episode
from worldmodel.training.run_folder import flatten


class EpisodeFileError(RuntimeError):
    """A file of episodes is of another evaluation, or damaged."""


class EpisodeFile:
    """JSON lines: first what was evaluated and how, then one episode per line.

    Args:
        header: what the file must have been written for; made the first line of a new file.

    Raises:
        EpisodeFileError: if the file is of another evaluation.
    """

    def __init__(self, path: Path, *, header: dict[str, Any]) -> None:
        self.path = path
        header = json.loads(json.dumps(header))
        if not path.is_file() or path.stat().st_size == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write([header], mode="w")
            return
        before = self._lines()[0]
        old, new = flatten(before), flatten(header)
        changed = [
            f"{key}: {old.get(key, 'absent')!r} -> {new.get(key, 'absent')!r}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
        if changed:
            more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
            raise EpisodeFileError(
                f"{path} holds episodes of another evaluation ({'; '.join(changed[:4])}{more}): choose another folder "
                f"with out=DIR, or delete the file"
            )

    def read(self) -> list[Episode]:
        """The finished episodes.

        Raises:
            EpisodeFileError: if a line other than the last, which a crash may cut, cannot be read.
        """
        try:
            return [Episode.from_json(line) for line in self._lines()[1:]]
        except (TypeError, KeyError) as error:
            raise EpisodeFileError(
                f"{self.path} was written by another version ({error}): delete it to evaluate anew"
            ) from error

    def append(self, episodes: Iterable[Episode]) -> None:
        self._write([e.json() for e in episodes], mode="a")

    def _write(self, lines: Iterable[dict[str, Any]], *, mode: str) -> None:
        with self.path.open(mode) as file:
            file.write("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def _lines(self) -> list[dict[str, Any]]:
        whole = self.path.read_text()
        complete, _, torn = whole.rpartition("\n")
        if torn:  # a crash in the middle of a line
            self.path.write_text(complete + "\n" if complete else "")
        lines = complete.split("\n") if complete else []
        try:
            parsed = [json.loads(line) for line in lines]
        except ValueError as error:
            raise EpisodeFileError(f"{self.path} is damaged ({error}): delete it to evaluate anew") from error
        if not parsed or not isinstance(parsed[0], dict) or "agent" not in parsed[0]:
            raise EpisodeFileError(f"{self.path} does not begin with what was evaluated: delete it")
        return parsed
