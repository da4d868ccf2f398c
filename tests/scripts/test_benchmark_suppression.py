"""The benchmark of suppression on few boxes: what it stores and prints."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def test_all_layouts_and_thresholds_are_timed(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script("benchmark_suppression").main(["--boxes", "64", "--repeats", "1", "--out", str(tmp_path)])
    stored = json.loads((tmp_path / "suppression.json").read_text())
    assert {len(row) for row in stored["found"].values()} == {6}
    crowded = [row["kept"] for row in stored["found"]["around 40 objects"].values()]
    assert crowded[0] < crowded[-1] <= 64
    assert stored["commit"]
    assert capsys.readouterr().out == (tmp_path / "suppression.md").read_text() + "\n"
