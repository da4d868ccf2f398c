"""Files of finished episodes: cheap to add to, whatever else happens to them."""

import json
import multiprocessing
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from policies.episode_files import EpisodeFile, EpisodeFileError

HEADER = {"agent": "walker", "split": "test"}


@dataclass(frozen=True)
class Number:
    value: int

    def json(self) -> dict[str, Any]:
        return asdict(self)


def parse(line: dict[str, Any]) -> Number:
    return Number(**line)


def opened(path: Path, **changes: str) -> EpisodeFile:
    return EpisodeFile(path, header={**HEADER, **changes}, commit="c0ffee")


def test_adding_does_not_read_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    whole = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (reads.append(path), whole(path))[1])
    file = opened(tmp_path / "new" / "walker.jsonl")
    for value in range(20):
        file.append([Number(value)])
    assert not reads
    assert file.read(parse) == [Number(v) for v in range(20)]
    again = opened(file.path)
    again.append([Number(20), Number(21)])
    assert len(reads) == 2
    assert len(file.path.read_text().splitlines()) == 1 + 22


def test_a_file_of_another_evaluation_is_noticed_between_two_episodes(tmp_path: Path) -> None:
    file = opened(tmp_path / "walker.jsonl")
    file.append([Number(0)])
    file.path.unlink()
    opened(file.path, split="selection").append([Number(7)])
    with pytest.raises(EpisodeFileError, match="split: 'selection' -> 'test'"):
        file.append([Number(1)])
    assert len(file.path.read_text().splitlines()) == 2
    file.path.write_text('{"value": 1}\n')
    with pytest.raises(EpisodeFileError, match="does not begin with what was evaluated"):
        file.append([Number(1)])


def test_a_file_that_was_deleted_or_grew_is_gone_on_with(tmp_path: Path) -> None:
    file, other = opened(tmp_path / "walker.jsonl"), opened(tmp_path / "walker.jsonl")
    file.append([Number(0)])
    other.append([Number(1)])
    file.append([Number(2)])
    assert file.read(parse) == [Number(0), Number(1), Number(2)]
    file.path.unlink()
    file.append([Number(3)])
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert lines == [{**HEADER, "commit": "c0ffee"}, {"value": 3}]


def test_a_torn_line_is_cut_off_before_the_next(tmp_path: Path) -> None:
    file = opened(tmp_path / "walker.jsonl")
    file.append([Number(0)])
    with file.path.open("a") as torn:
        torn.write('{"val')
    file.append([Number(1)])
    assert file.read(parse) == [Number(0), Number(1)]


def _append_for_ever(path: Path) -> None:
    file, value = opened(path), 0
    while True:
        file.append([Number(value)])
        value += 1


def test_what_was_added_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "walker.jsonl"
    process = multiprocessing.get_context("fork").Process(target=_append_for_ever, args=(path,))
    process.start()
    until = time.monotonic() + 30
    while not (path.is_file() and path.read_bytes().count(b"\n") > 5) and time.monotonic() < until:
        time.sleep(0.005)
    process.kill()
    process.join()
    whole = path.read_bytes().count(b"\n") - 1
    assert whole >= 5
    file = opened(path)
    file.append([Number(-1)])
    assert file.read(parse) == [*(Number(v) for v in range(whole)), Number(-1)]
