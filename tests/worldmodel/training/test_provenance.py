"""What is written beside every result."""

import json
import sys
from pathlib import Path

import pytest

from worldmodel.training import provenance as module
from worldmodel.training.provenance import command_line, provenance


def test_every_field_is_there_and_plain() -> None:
    record = provenance()
    assert set(record) == {"command", "commit", "machine", "platform", "python", "torch", "threads", "date"}
    assert json.loads(json.dumps(record)) == record
    assert all(record.values())


def test_command_is_relative_to_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", [f"{tmp_path}/scripts/run.py", "name=a b", f"data.root={tmp_path}/frames"]
    )
    words = command_line()
    assert words.endswith("scripts/run.py 'name=a b' data.root=frames")
    assert str(tmp_path) not in words


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object, **options: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(module.subprocess, "run", missing)
    assert provenance()["commit"] == "unknown"
